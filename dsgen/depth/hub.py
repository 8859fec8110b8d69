"""Models of Hugging Face: from a folder, from the cache of the hub's client, or from the hub if it can be reached."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dsgen.errors import DsgenError, InvalidValueError, NotFoundError, reason_of

HUGGING_FACE = "hf:"
_SECONDS = 8.0  # to wait for the hub's first answer

T = TypeVar("T")


def load_from_hub(name: str, load: Callable[[bool], T]) -> T:
    """Call `load(local_only)` for the model of this name or folder, without the network wherever that will do.

    A model that is in the cache is used as it is there. The hub's client tries for minutes to reach a hub that it
    cannot reach, so the hub is asked for one answer first. Raises `NotFoundError` for a folder that does not exist,
    `InvalidValueError` for what is no model, and `DsgenError` for a hub that does not answer.
    """
    option = f"--model {HUGGING_FACE}{name}"
    is_folder = bool(name) and Path(name).is_dir()
    unfit = "no depth-estimation model can be loaded"
    remedy = "give the folder, or the name on the hub, of a transformers model for depth estimation"
    if is_folder and not (Path(name) / "config.json").is_file():
        raise InvalidValueError(option, f"{unfit} (the folder has no config.json)", remedy)
    if not is_folder and (not name or name.startswith((".", "/", "~", "\\")) or name.count("/") > 1):
        raise NotFoundError(option, "no such folder, expected one or NAME or ORGANISATION/NAME on the hub", "check it")
    try:
        try:
            return load(True)
        except OSError:
            if is_folder:
                raise
        _reach_hub(option)
        return load(False)
    except DsgenError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InvalidValueError(option, f"{unfit} ({reason_of(error)})", remedy) from error


def _reach_hub(option: str) -> None:
    """Raise `DsgenError` unless the hub answers anything within a few seconds."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    remedy = f"connect to it, or download the model elsewhere and give its folder: --model {HUGGING_FACE}FOLDER"
    if constants.HF_HUB_OFFLINE:
        reason = "not in the cache, and HF_HUB_OFFLINE keeps the hub from being asked"
        raise DsgenError(option, reason, f"unset it, or give the model's folder: --model {HUGGING_FACE}FOLDER")
    failure: list[Exception] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_SECONDS)
        except Exception as error:  # of whichever client the hub's package uses
            failure.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # resolving a name cannot be given a time limit
    thread.start()
    thread.join(_SECONDS)
    if thread.is_alive() or failure:
        why = reason_of(failure[0]) if failure else f"no answer within {_SECONDS:g} s"
        raise DsgenError(option, f"not in the cache, and {constants.ENDPOINT} cannot be reached ({why})", remedy)
