"""The errors a user can put right, and how they are worded.

Each says in one line what it is about, what is wrong with it, and what to do: `what: reason; remedy`. The three are
fields, so nothing has to parse the message. A bug is no `DsgenError` and keeps its traceback.

    DsgenError
      InvalidValueError     a value that an option or a setting cannot have    (also a ValueError)
      NotFoundError         what is to be read is not there                    (also a FileNotFoundError)
      DamagedError          it is there, and cannot be read as what it should be
      ConflictError         what is there was made with other inputs
      BusyError             another dsgen is at work on it
      MissingPackageError   an optional package is not installed               (also an ImportError)
      SeveralErrors         more than one, found in one pass
"""

import errno
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dsgen.secrets import hide_secrets

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def _in_a_line(text: str) -> str:
    """Hide secrets, and write out control characters: what files hold must not start lines or steer a terminal."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], hide_secrets(text))


class DsgenError(Exception):
    """Something the user can put right.

    `what` is the option, file or folder at fault, `reason` what is wrong with it and what was expected, `remedy` what
    to do; `remedy` may be empty. Secrets of URLs in them are hidden, and control characters written out.

    >>> error = DsgenError("foregrounds/cat.png", "no alpha channel (mode RGB)", "save it as an RGBA PNG")
    >>> str(error)
    'foregrounds/cat.png: no alpha channel (mode RGB); save it as an RGBA PNG'
    """

    def __init__(self, what: object, reason: str = "", remedy: str = ""):
        # torch's DataLoader raises the errors of its workers again from their message alone, so `what` must do
        self.what, self.reason, self.remedy = map(_in_a_line, (str(what), reason, remedy))
        super().__init__(str(self))

    def __str__(self) -> str:
        text = self.what + (f": {self.reason}" if self.reason else "") + (f"; {self.remedy}" if self.remedy else "")
        return printable(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.reason, self.remedy)


class InvalidValueError(DsgenError, ValueError):
    """A value that an option or a setting cannot have."""

    @classmethod
    def expected(cls, name: str, value: object, rule: str, remedy: str = "") -> Self:
        """Word it as `--name: got value, expected rule`; `name` is that of the setting or of the option."""
        return cls(option(name), f"got {in_words(value)}, expected {rule}", remedy)


class NotFoundError(DsgenError, FileNotFoundError):
    """What is to be read is not there."""


class DamagedError(DsgenError):
    """What is there cannot be read as what it should be."""


class BusyError(DsgenError):
    """Another dsgen is at work on the same folder."""


class MissingPackageError(DsgenError, ImportError):
    """An optional package is not installed."""


@dataclass(frozen=True)
class Difference:
    """One value that differs between what is given now and what was given before."""

    name: str
    now: Any
    was: Any

    def describe(self, owner: str) -> str:
        """Say it in words: `--size 48 (the corpus has 224)`."""
        return _in_a_line(f"{self.name} {in_words(self.now)} (the {owner} has {in_words(self.was)})")


class ConflictError(DsgenError):
    """What is there was made with other inputs; `differences` says which, and `owner` what it is called."""

    def __init__(self, what: object, reason: str, remedy: str, differences: Sequence[Difference], owner: str):
        self.differences, self.owner = tuple(differences), owner
        super().__init__(what, reason, remedy)

    def __str__(self) -> str:
        lines = [f"  {difference.describe(self.owner)}" for difference in self.differences]
        return "\n".join([super().__str__(), *lines])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.reason, self.remedy, self.differences, self.owner)


_LISTED = 200


class SeveralErrors(DsgenError):
    """Several errors found in one pass; `errors` has each of them, and the message the first 200."""

    def __init__(self, errors: Sequence[DsgenError]):
        self.errors = tuple(errors)
        super().__init__(f"{len(errors):,} problems", "nothing was written")

    def __str__(self) -> str:
        lines = [f"{self.what}, {self.reason}:", *(f"  {error}" for error in self.errors[:_LISTED])]
        more = len(self.errors) - _LISTED
        return "\n".join([*lines, f"  ... and {more:,} more"] if more > 0 else lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errors,)


def raise_all(errors: Iterable[DsgenError]) -> None:
    """Raise the errors found in one pass, if there are any: a single one as it is."""
    found = list(errors)
    if len(found) == 1:
        raise found[0]
    if found:
        raise SeveralErrors(found)


def check_rules(rules: Iterable[tuple[bool, str, Any, str]]) -> None:
    """Raise for every rule that does not hold; a rule is (holds, name, value, what is expected)."""
    raise_all(InvalidValueError.expected(name, value, rule) for holds, name, value, rule in rules if not holds)


def find_differences(now: Mapping[str, Any], was: Mapping[str, Any]) -> list[Difference]:
    """Compare what is given now with what was given before, name by name."""
    names = dict.fromkeys([*now, *was])
    return [Difference(name, now.get(name), was.get(name)) for name in names if now.get(name) != was.get(name)]


def printable(name: object) -> str:
    """Write a name in one line that any terminal can show: control characters and bytes that are no text as escapes.

    >>> printable("two\\nlines")
    'two\\\\nlines'
    """
    return "".join(map(_escape, str(name)))


def _escape(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp"):
        return character
    if "\udc80" <= character <= "\udcff":  # how Python keeps a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()


def option(name: str) -> str:
    """Return the option of a setting: `--batch-size` for `batch_size`."""
    return name if name.startswith("-") else f"--{name.replace('_', '-')}"


def in_words(value: object) -> str:
    """Write a value as one would on the command line: lists with commas, None as `none`."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def reason_of(error: BaseException, path: Path | str | None = None) -> str:
    """Say in a line why something failed, without repeating its path."""
    text = (isinstance(error, OSError) and error.strerror) or str(error).strip() or type(error).__name__
    first, *more = text.strip().splitlines()
    line = hide_secrets(f"{first} {more[0].strip()}" if more and first.endswith(":") else first)
    if path is None:
        return line
    for quoted in (repr(str(path)), f'"{path}"', str(path)):
        line = line.replace(quoted, "it")
    return line


# what a damaged or missing file may be the cause of: names, sizes and offsets in other files lead to it
_OF_FILES = {
    getattr(errno, name)
    for name in ("ENOENT", "ENOTDIR", "EISDIR", "EINVAL", "EOVERFLOW", "ELOOP", "ENAMETOOLONG", "EFBIG", "ENXIO")
    if hasattr(errno, name)
}
_REMEDIES = {
    errno.ENOSPC: "free some space, and run the same command again",
    errno.EDQUOT: "remove some files or ask for a larger quota, and run the same command again",
    errno.EFBIG: "use a file system, or a limit (ulimit -f), that allows larger files",
    errno.EMFILE: "raise the limit, for example with ulimit -n 4096, and run the same command again",
    errno.ENFILE: "close other programs, and run the same command again",
    errno.EACCES: "change the permissions, or choose another place",
    errno.EPERM: "change the permissions, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.EIO: "check the disk or the network file system, and run the same command again",
    errno.ESTALE: "mount the network file system again, and run the same command again",
    errno.ENOMEM: "close other programs or use fewer --jobs, and run the same command again",
    errno.ENAMETOOLONG: "choose shorter names",
}


def is_system_error(error: BaseException) -> bool:
    """Return whether the system failed rather than a file's content: no memory, no permission, a broken disk.

    Such an error says nothing of the file, so it passes as it is where others are turned into a `DamagedError`.
    """
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _OF_FILES
    return isinstance(error, MemoryError)


def is_local_shortage(error: BaseException) -> bool:
    """Return whether this machine lacks memory or open files, whatever the file or server at the other end."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def remedy_of(error: BaseException) -> str:
    """Say what to do about an error of the system, in a line; empty where nothing general can be said."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    return _REMEDIES.get(number, "") if number is not None else ""


def explain_system_error(error: OSError, stage: str) -> tuple[str, str, str]:
    """Return what an error of the operating system is about, its reason and a remedy; `stage` is what met it."""
    what = stage if error.filename is None else hide_secrets(str(error.filename))
    reason = reason_of(error) + ("" if error.filename is None else f" (during {stage})")
    return what, reason, remedy_of(error)
