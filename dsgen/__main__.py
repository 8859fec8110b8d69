"""The program `dsgen`, also as `python -m dsgen`, which is what torchrun starts.

Signals are handled before anything large is imported, so that Ctrl-C prints no traceback at any time.
"""

import atexit
import os
import sys
from typing import NoReturn

from dsgen.parallel.signals import SIGNAL_EXIT_CODES, exit_at_once, ignore_signals


def main() -> NoReturn:
    """Run the command line, and exit."""
    exit_at_once(announce=True)
    atexit.register(ignore_signals)  # the first to be registered is the last to be called
    from dsgen.cli.app import main as run

    try:
        run()
    except SystemExit as ended:
        exit_at_once(announce=False)
        if ended.code in SIGNAL_EXIT_CODES:  # everything was tidied up; do not wait for threads that may be stuck
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(ended.code)
        raise


if __name__ == "__main__":
    main()
