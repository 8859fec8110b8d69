"""Tell files from what only has the name of one, before it is opened: reading a pipe or a device may never end."""

import errno
import os
import stat
from pathlib import Path


def regular(path: Path) -> Path:
    """Return the path of a file; raise `FileNotFoundError` for a folder, a pipe, a device, a link to nothing or a loop.

    A link to a file is a file.
    """
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        is_file = False
    if not is_file:
        raise FileNotFoundError(errno.ENOENT, "not a file", str(path))
    return path
