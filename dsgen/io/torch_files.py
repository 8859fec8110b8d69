"""Files of arrays, those of `torch.save` and safetensors, read without running any code in them."""

import zipfile
from collections.abc import Mapping
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


def read_arrays(path: Path, remedy: str) -> tuple[Mapping[str, str], dict[str, Any]]:
    """Read weights that others made onto the CPU: the metadata, which only safetensors has, and what the file holds.

    Which kind of file it is, its first bytes say: safetensors, or what `torch.save` writes and wrote before torch 1.6.
    Raises `DamagedError` for any other and for a damaged one.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] == b"PK\x03\x04":
        return {}, read_torch(path, remedy)
    try:
        if start[8:] == b"{":
            with safe_open(path, "pt") as arrays:
                return arrays.metadata() or {}, {name: arrays.get_tensor(name) for name in arrays.keys()}  # noqa: SIM118
        return {}, _read_old_torch(path)
    except Exception as error:  # of any class for damaged files
        if is_system_error(error) and not isinstance(error, SafetensorError):
            raise
        reason = f"no readable weights of torch or safetensors ({reason_of(error, path)})"
        raise DamagedError(path, reason, remedy) from error


def _read_old_torch(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save` before torch 1.6: pickles, and behind them the values of the arrays."""
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise TypeError(f"holds a {type(content).__name__}, expected a dictionary")
    return content
