"""Models of Hugging Face: from a folder, from the cache of the hub's client, or from the hub if it can be reached."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dsgen.errors import DsgenError, InvalidValueError, NotFoundError, reason_of
from dsgen.io.hub import reach_hub

HUGGING_FACE = "hf:"

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
        folder = f"{option.removesuffix(name)}FOLDER"
        connect = f"connect to it, or download the model elsewhere and give its folder: {folder}"
        reach_hub(option, connect, f"unset it, or give the model's folder: {folder}")
        return load(False)
    except DsgenError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InvalidValueError(option, f"{unfit} ({reason_of(error)})", remedy) from error
