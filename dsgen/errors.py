"""The one error a user can cause."""

from collections.abc import Mapping
from typing import Any


class DsgenError(Exception):
    """Something the user can put right; the message is one line: what, the value, the rule, the remedy."""


def differences(now: Mapping[str, Any], was: Mapping[str, Any], owner: str) -> list[str]:
    """Say, name by name, where what is given now differs from what `owner` was made with."""
    return [
        f"{name} {now.get(name, 'none')} (the {owner} has {was.get(name, 'none')})"
        for name in dict.fromkeys([*now, *was])
        if now.get(name) != was.get(name)
    ]
