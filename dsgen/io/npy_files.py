"""NumPy's .npy files, read only if they are what their header says."""

import math
from pathlib import Path

import numpy as np

from dsgen.errors import DamagedError, is_system_error, reason_of
from dsgen.io.regular_files import regular


def read_npy(path: Path, remedy: str = "replace it") -> np.ndarray:
    """Read an array; raise `DamagedError` for a file that is damaged, no .npy file, or holds Python objects.

    Nothing is allocated before shape and dtype of the header agree with the size of the file.
    """
    try:
        with regular(path).open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read_header(file)
            expected = file.tell() + math.prod(shape) * dtype.itemsize
        found = path.stat().st_size
        if dtype.hasobject or min(shape, default=0) < 0 or found != expected:
            reason = f"got {found:,} bytes, expected {expected:,} for {dtype} {'x'.join(map(str, shape))}"
            raise DamagedError(path, "damaged, " + ("holds Python objects" if dtype.hasobject else reason), remedy)
        return np.asarray(np.load(path, allow_pickle=False))
    except (DamagedError, FileNotFoundError):
        raise
    except Exception as error:  # numpy parses the header as Python, which fails in many ways
        if is_system_error(error):
            raise
        raise DamagedError(path, f"cannot be read as .npy ({reason_of(error, path)})", remedy) from error
