"""The one error a user can cause."""


class DsgenError(Exception):
    """Something the user can put right; the message is one line: what, the value, the rule, the remedy."""
