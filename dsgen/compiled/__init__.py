"""Inner loops that numba compiles to machine code, if it is installed (the extra `fast`).

They do what numpy does elsewhere in this code, bit by bit, in fewer passes over memory. They also run without Python's
lock, so that threads do not wait for each other. Each is compiled when it is first called, and then kept on disk.
"""

import importlib
import logging
from functools import cache
from types import ModuleType

log = logging.getLogger("dsgen")


@cache
def find_loops(name: str) -> ModuleType | None:
    """Return a module of this package, or None if numba is not installed.

    A numba that cannot be used here, as it is too old for the numpy beside it, is warned of.
    """
    try:
        return importlib.import_module(f"dsgen.compiled.{name}")
    except ModuleNotFoundError as error:
        if error.name == "numba":
            return None
        raise
    except ImportError as error:
        log.warning("numba cannot be used (%s): decoding and drawing take longer", error)
        return None
