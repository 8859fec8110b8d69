"""Whether the hub of Hugging Face can be reached, asked before its client tries for minutes."""

import threading

from dsgen.errors import DsgenError, reason_of

_SECONDS = 8.0  # to wait for the hub's first answer


def reach_hub(what: str, remedy: str, offline_remedy: str = "") -> None:
    """Raise `DsgenError` about `what` unless the hub answers anything within a few seconds.

    `offline_remedy` is for who keeps the hub from being asked with HF_HUB_OFFLINE; by default to unset it, or `remedy`.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        reason = "not in the cache, and HF_HUB_OFFLINE keeps the hub from being asked"
        raise DsgenError(what, reason, offline_remedy or f"unset it, and {remedy}")
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
        raise DsgenError(what, f"not in the cache, and {constants.ENDPOINT} cannot be reached ({why})", remedy)
