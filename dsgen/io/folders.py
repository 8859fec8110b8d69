"""Folders of pictures: which files every command takes from them, how names match, and where answers go.

Hidden files and folders and those that systems leave behind (`._x.png`, `.ipynb_checkpoints`, `__MACOSX`) are passed
by. Everything else that is not taken is named in one warning. Links to folders are followed, each folder once. Names
must be UTF-8. Names match by their composed form (NFC), since macOS writes the accents of names apart.
"""

import logging
import os
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dsgen.errors import DsgenError, InvalidValueError, NotFoundError, printable, raise_all, reason_of
from dsgen.io import images
from dsgen.io.json_files import read_json

FORMATS = ("png", "npy")  # of depth maps: uint16 millimetres, float32 metres
DEPTH_SUFFIXES = frozenset({".png", ".npy"})
DEPTH_JSON, PREDICTIONS_JSON = "depth.json", "predictions.json"  # what a folder of answers was made with
_ANSWERS = {DEPTH_JSON, PREDICTIONS_JSON}
_CORPUS_JSON = "corpus.json"
_OWN = {*_ANSWERS, "depth.csv", "predictions.csv"}
_OWN_ENDING = ".view.jpg"
_OF_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"}
_SHOWN = 5  # names in a message

log = logging.getLogger("dsgen")


def list_pictures(folder: Path, kind: str, *, in_classes: bool = False) -> list[Path]:
    """List the picture files of a folder in order of name; warn about other entries.

    `kind`, such as backgrounds, is the option that names the folder in errors. With `in_classes` the pictures may lie
    in sub-folders of it instead, one for each class, see `class_of`. Raises `NotFoundError` if the folder does not
    exist, `InvalidValueError` if it has no pictures, or some in sub-folders and some not, and `DsgenError` as
    `list_files`.
    """
    if not folder.is_dir():
        raise NotFoundError(f"--{kind}", f"{folder} is no folder, expected one with pictures", "check the path")
    pictures = _list_classes(folder, kind) if in_classes and _has_classes(folder) else list_files(folder)
    if not pictures:
        raise InvalidValueError(
            f"--{kind}", f"{folder} has no pictures, expected files ending in {endings_in_words()}", "check the path"
        )
    return pictures


def class_of(folder: Path, path: Path) -> str | None:
    """Return the class of a picture: the name of the sub-folder of `folder` that it is in, None if it is in none.

    >>> class_of(Path("cutouts"), Path("cutouts/chair/stool.png")), class_of(Path("cutouts"), Path("cutouts/ann.png"))
    ('chair', None)
    """
    inside = path.relative_to(folder).parts
    return match_key(inside[0]) if len(inside) > 1 else None


def _has_classes(folder: Path) -> bool:
    """Return whether any sub-folder of a folder has pictures."""
    found = _Listing(images.SUFFIXES, below=True, with_answers=False, seen=set(map(_identity, _corpora(folder))))
    try:
        found.add(folder)
    except DsgenError:  # of a folder that cannot be read, which concerns only those without pictures of their own
        return all(class_of(folder, path) for path in found.files)
    return any(class_of(folder, path) for path in found.files)


def _list_classes(folder: Path, kind: str) -> list[Path]:
    """List the pictures in all sub-folders of a folder but corpora; raise for pictures that are in none."""
    pictures = list_files(folder, below=True, skip=_corpora(folder))
    by_class = defaultdict(list)
    for path in pictures:
        by_class[class_of(folder, path)].append(path.name)
    loose = by_class.pop(None, [])
    if loose:
        reason = f"{folder} has pictures ({names_in_words(loose)}) and sub-folders with pictures"
        raise InvalidValueError(
            f"--{kind}",
            f"{reason} ({names_in_words([name for name in by_class if name])}), expected one or the other",
            f"move the pictures into a sub-folder that is named like their class, such as {folder / 'person'}, or the "
            "sub-folders out of it",
        )
    return pictures


def _corpora(folder: Path) -> list[Path]:
    """Return the corpora in a folder, whose pictures are no sources."""
    return [path for path in _entries(folder) if path.is_dir() and _is_own_json(path / _CORPUS_JSON)]


def list_files(
    folder: Path,
    suffixes: Collection[str] = frozenset(images.SUFFIXES),
    *,
    below: bool = False,
    skip: Iterable[Path] = (),
    with_answers: bool = False,
) -> list[Path]:
    """List the files of a folder, and with `below` of all folders below it, that end in one of `suffixes`, in order.

    One warning names what else is there. Folders in `skip` are passed by, and, unless `with_answers`, folders of
    answers that dsgen wrote. Raises `DsgenError` for a folder that cannot be read, and for names that are not UTF-8.
    """
    check_name(folder)
    found = _Listing(suffixes, below, with_answers, {_identity(path) for path in skip if path.is_dir()})
    found.add(folder)
    raise_all(
        _name_error(path)
        for path in (*found.files, *(path for path, _ in found.left_out))
        if not _is_nameable(path.name)
    )
    files = sorted(found.files)
    _warn_of_left_out(folder, found.left_out)
    _warn_of_twins(folder, files)
    return files


@dataclass
class _Listing:
    """The files of a tree, and what is not taken, with the reason."""

    suffixes: Collection[str]
    below: bool
    with_answers: bool
    seen: set[tuple[int, int]]  # folders that were walked, or are not to be
    files: list[Path] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)

    def add(self, folder: Path) -> None:
        """Walk a folder: first everything that is really below it, then the links to folders found there."""
        above = {_identity(parent) for parent in folder.resolve().parents}
        links = self._walk(folder)
        while links:
            link = links.pop(0)
            if _identity(link) in self.seen | above:
                self.left_out.append((link, "links to folders that are listed already"))
            elif not self.with_answers and is_answers(link):
                self.left_out.append((link, "folders that dsgen wrote"))
            else:
                links += self._walk(link)

    def _walk(self, folder: Path) -> list[Path]:
        links: list[Path] = []
        waiting = [folder]
        while waiting:
            inner = waiting.pop(0)
            self.seen.add(_identity(inner))
            for path in _entries(inner):
                if not path.is_dir():
                    self._take(path)
                elif not self.below:
                    self.left_out.append((path, "folders"))
                elif path.is_symlink():
                    links.append(path)
                elif _identity(path) in self.seen:
                    pass
                elif not self.with_answers and is_answers(path):
                    self.left_out.append((path, "folders that dsgen wrote"))
                else:
                    waiting.append(path)
        return links

    def _take(self, path: Path) -> None:
        if path.suffix.lower() in self.suffixes and path.is_file():
            self.files.append(path)
        elif path.is_symlink() and not path.exists():
            self.left_out.append((path, "broken links"))
        elif path.name not in _OWN and not path.name.endswith(_OWN_ENDING):
            self.left_out.append((path, "not picture files"))


def _entries(folder: Path) -> Iterator[Path]:
    """Return the entries of a folder in order of name, without those that nobody means to give."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DsgenError(
            folder, f"cannot be listed ({reason_of(error, folder)})", "allow it to be read, or move it away"
        ) from error
    return (folder / name for name in names if not name.startswith(".") and name not in _OF_SYSTEMS)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _warn_of_left_out(folder: Path, left_out: list[tuple[Path, str]]) -> None:
    by_reason = defaultdict(list)
    for path, reason in left_out:
        by_reason[reason].append(path.relative_to(folder).as_posix())
    if by_reason:
        parts = [f"{reason}: {names_in_words(sorted(names))}" for reason, names in by_reason.items()]
        log.warning("%s: skipped, %s", printable(folder), "; ".join(parts))


def _warn_of_twins(folder: Path, files: list[Path]) -> None:
    """Warn of files that are one file to other systems: their names differ by case or Unicode normalisation alone."""
    by_name = defaultdict(list)
    for path in files:
        inside = path.relative_to(folder).as_posix()
        by_name[match_key(inside).casefold()].append(inside)
    twins = [" and ".join(map(ascii, names)) for names in by_name.values() if len(names) > 1]
    if twins:
        log.warning(
            "%s: names that differ only in case or Unicode normalisation, which other systems take for one file: %s",
            printable(folder),
            names_in_words(twins),
        )


def names_in_words(names: list[str]) -> str:
    """Write the first few names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(map(printable, names[:_SHOWN])) + (f" and {more:,} more" if more > 0 else "")


def endings_in_words(suffixes: Collection[str] = frozenset(images.SUFFIXES)) -> str:
    """Write the endings that a command takes."""
    return " ".join(sorted(suffixes))


def match_key(name: str) -> str:
    """Return a name in the form in which names are compared: composed (NFC).

    >>> match_key("cafe\\u0301") == match_key("caf\\u00e9")
    True
    """
    return unicodedata.normalize("NFC", name)


def check_name(path: Path) -> None:
    """Raise `DsgenError` for a path that cannot be written to UTF-8 text, such as one in Latin-1."""
    if not _is_nameable(str(path)):
        raise _name_error(path)


def _is_nameable(name: str) -> bool:
    if sys.getfilesystemencoding() != "utf-8":
        return name.isascii()
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _name_error(path: Path) -> DsgenError:
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return DsgenError(path, "the name is not UTF-8", "rename it")
    reason = f"the locale's encoding is {sys.getfilesystemencoding()}, in which this name cannot be used"
    return DsgenError(path, reason, "set PYTHONUTF8=1 in the environment")


def attempt(path: Path) -> np.ndarray | DsgenError:
    """Decode a picture to (h,w,3) u1 RGB; return the error, so that the other pictures can still be processed."""
    try:
        return images.read_picture(path)
    except DsgenError as error:
        return error
    except OSError as error:
        return DsgenError(path, reason_of(error, path), "check the file, or leave it out")


def beside(path: Path, ending: str) -> Path:
    """Return the path beside a file or folder that is named like it, without a file's own ending, plus `ending`.

    Paths without a name, such as `.` and `..`, are resolved first. Raises `InvalidValueError` for the root of a disk.
    """
    if path.name in ("", ".."):
        path = path.resolve()
    if not path.name:
        raise InvalidValueError("--out", f"there is no place beside {path}", "name a folder with --out")
    return path.with_name((path.name if path.is_dir() else path.stem) + ending)


def is_answers(folder: Path) -> bool:
    """Return whether a folder holds answers that dsgen wrote: labels of pictures, or predictions."""
    return any(_is_own_json(folder / name) for name in _ANSWERS)


def check_answers_folder(out: Path, mark: str) -> None:
    """Raise `InvalidValueError` unless answers may be written to `out`: it is new, empty, or has the `mark` of dsgen.

    `mark` is the JSON file that says what the answers were made with.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise InvalidValueError("--out", f"{out} is a file, expected a folder", "choose another")
    foreign = [path.name for path in _entries(out) if path.name != f"{mark}.partial"]
    if foreign and not _is_own_json(out / mark):
        reason = f"{out} is not empty ({names_in_words(foreign)}) and has no {mark} of dsgen"
        raise InvalidValueError("--out", reason, "choose another with --out, so that no file is overwritten")


def _is_own_json(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        content = read_json(path)
    except (DsgenError, OSError, RecursionError):
        return False
    return isinstance(content, dict) and "dsgen" in content


def output_names(pictures: list[Path], ending: str = ".png") -> list[Path]:
    """Name the output of every picture, in order: with `ending` in place of the picture's own.

    Where several pictures would share a name, `ending` is appended instead: `a.jpg.png` and `a.png.png`.
    """
    replaced = [path.with_suffix(ending) for path in pictures]
    uses = Counter(replaced)
    names = [
        path.with_name(path.name + ending) if uses[name] > 1 else name
        for path, name in zip(pictures, replaced, strict=True)
    ]
    if len(set(names)) < len(names):  # as with a.jpg, a.png and a.jpg.jpg
        names = [path.with_name(path.name + ending) for path in pictures]
    return names
