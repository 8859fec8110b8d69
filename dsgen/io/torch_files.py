"""Files written by `torch.save`, read without running any code in them."""

import zipfile
from pathlib import Path
from typing import Any

from dsgen.errors import DamagedError, is_system_error, reason_of


def read_torch(path: Path, remedy: str) -> dict[str, Any]:
    """Read a dictionary that `torch.save` wrote onto the CPU.

    Raises `DamagedError` for a file that is damaged or holds anything but plain values and tensors. Its entries must be
    stored as `torch.save` stores them, uncompressed, so that reading takes no more memory than the file is large.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        compressed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise DamagedError(path, "its entries are compressed, expected a file of torch.save", remedy)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (DamagedError, FileNotFoundError):
        raise
    except Exception as error:  # torch and zipfile raise errors of any class for damaged files
        if is_system_error(error):
            raise
        raise DamagedError(path, f"damaged checkpoint ({reason_of(error, path)})", remedy) from error
    if not isinstance(content, dict):
        raise DamagedError(path, f"holds a {type(content).__name__}, expected a dictionary", remedy)
    return content
