"""Keep passwords, keys and tokens of URLs out of whatever is shown or written.

`hide_secrets` is the one function for it. Errors, log records, results and records of runs all pass through it. Which
parts of a URL are secret it sees itself: what stands before the `@` of the host, and the values of its query. The
texts of other libraries may repeat a secret without the URL around it, so `note_secrets` remembers those of every
location that is opened.
"""

import logging
import re
from urllib.parse import unquote

HIDDEN = "***"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)((?:(?!::[A-Za-z][A-Za-z0-9+.-]*://)[^\s\"'<>`])*)")
_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*:/)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+")
# a URL that lost a slash, as a path does, or that never had it
_ONE_SLASH = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]+:/)(?!/)([^/@\s\"'<>`]*:[^@\s\"'<>`]*)@")
_PORT = re.compile(r":\d*$")
# characters of a secret that is hidden outside its URL too: shorter ones occur in any text
_SHORTEST, _SHORTEST_IN_QUERY = 4, 8
_known: set[str] = set()


def hide_secrets(text: str) -> str:
    """Return the text with the secrets of all URLs in it replaced by `***`.

    >>> hide_secrets("s3://KEY:SECRET@bucket/shards: cannot be reached")
    's3://***@bucket/shards: cannot be reached'
    >>> hide_secrets("https://host/shards?X-Amz-Signature=0a1b")
    'https://host/shards?X-Amz-Signature=***'
    """
    if "://" in text:
        text = _URL.sub(lambda match: match[1] + _hide_in_url(match[2]), text)
    if ":/" in text:
        text = _ONE_SLASH.sub(rf"\1{HIDDEN}@", text)
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def has_credentials(url: str) -> bool:
    """Return whether the first part of a URL names a user or a key: `s3://KEY:SECRET@bucket`."""
    match = _URL.match(url)
    return match is not None and _end_of_credentials(re.split(r"[?#]", match[2])[0]) > 0


def note_secrets(location: str) -> None:
    """Remember the secrets of a URL, to hide them in texts that repeat them without the URL.

    All of the text is one URL, or several chained by `::`, with whatever quotes and spaces the secrets hold.
    """
    for url in _CHAIN.split(location):
        scheme = _SCHEME.match(url)
        if scheme is None:
            continue
        address, *query = re.split(r"[?#]", url[scheme.end() :])
        end = _end_of_credentials(address)
        credentials = address[: end - 1] if end else ""
        _note([credentials, unquote(credentials).partition(":")[2]], _SHORTEST)
        _note([pair.partition("=")[2] or pair for part in query for pair in part.split("&")], _SHORTEST_IN_QUERY)


def note_secret(secret: str) -> None:
    """Remember a password or token that is part of no URL, to hide it in every text."""
    _note([secret], _SHORTEST)


def _note(secrets: list[str], shortest: int) -> None:
    for secret in secrets:
        _known.update(form for form in (secret, unquote(secret)) if len(form) >= shortest)


def _hide_in_url(rest: str) -> str:
    """Hide the secrets of a URL from which the scheme was taken."""
    address, mark, query = re.match(r"([^?#]*)([?#]?)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    end = _end_of_credentials(address)
    hidden = HIDDEN + address[end - 1 :] if end else address
    return hidden + mark + re.sub(r"(^|[&;?#])([^&;?#=]*=)?[^&;?#]+", _hide_value, query)


def _hide_value(match: re.Match[str]) -> str:
    return match[1] + (match[2] or "") + HIDDEN


def _end_of_credentials(address: str) -> int:
    """Return the position after the `@` that ends user and password, 0 without any.

    Keys may hold slashes, so that the `@` may come after what looks like the host.
    """
    host = address.partition("/")[0]
    with_password = ":" in _PORT.sub("", host)
    return (address if with_password else host).rfind("@") + 1


class HideSecrets(logging.Filter):
    """Hides the secrets in log records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the record's message by one without secrets; keep every record."""
        message = record.getMessage()
        hidden = hide_secrets(message)
        if hidden != message:
            record.msg, record.args = hidden, ()
        return True


logging.getLogger("dsgen").addFilter(HideSecrets())
