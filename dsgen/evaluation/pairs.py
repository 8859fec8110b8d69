"""Pairs of a composite and its background, and the names of the files that hold their answers."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dsgen.errors import DsgenError, NotFoundError
from dsgen.io.folders import check_name, endings_in_words, list_files, match_key, output_names


@dataclass(frozen=True)
class Pair:
    """A composite, its background, None for a black one, and the files of its answers.

    `title` is the composite's path within its folder; `files` has, by kind of answer, the path of its file.
    """

    picture: Path
    background: Path | None
    title: str
    files: Mapping[str, Path]


@dataclass
class Pairing:
    """The pairs found, in order, and by title what is wrong with the other composites."""

    pairs: list[Pair] = field(default_factory=list)
    failed: dict[str, DsgenError] = field(default_factory=dict)


def list_pictures(path: Path, skip: tuple[Path, ...] = ()) -> list[Path]:
    """List the pictures below a folder, in order, except those below the folders to skip; a picture lists itself."""
    if path.is_file():
        check_name(path)
        return [path]
    if not path.is_dir():
        raise NotFoundError(path, "no such folder or picture", "check the path")
    found = list_files(path, below=True, skip=skip)
    if not found:
        raise NotFoundError(path, f"no pictures ({endings_in_words()}) in it or below", "check the path")
    return found


def pair_pictures(
    paths: list[Path], folder: Path, backgrounds: Path | None, out: Path, endings: Mapping[str, str]
) -> Pairing:
    """Find the background of every composite of a folder, and name the files of its answers.

    `backgrounds` is one picture for all, a folder, or None for black ones. In a folder, the background of `a/b/c.jpg`
    is `a/b/c`, or else `a/b`, or else `a`, with any ending; of several the one with the composite's own ending.
    `endings` has the ending of the files of every kind of answer.
    """
    named = {} if backgrounds is None or backgrounds.is_file() else _list_by_name(backgrounds, out)
    inside = [path.relative_to(folder) for path in paths]
    names = {kind: [out / kind / name for name in output_names(inside, ending)] for kind, ending in endings.items()}
    pairing = Pairing()
    for k, (path, relative) in enumerate(zip(paths, inside, strict=True)):
        title = relative.as_posix()
        background = backgrounds
        if named:
            try:
                background = _find_background(named, path, relative, backgrounds)
            except DsgenError as error:
                pairing.failed[title] = error
                continue
        pairing.pairs.append(Pair(path, background, title, {kind: files[k] for kind, files in names.items()}))
    return pairing


def _list_by_name(backgrounds: Path, out: Path) -> dict[str, list[Path]]:
    """List the pictures below a folder by their path within it without ending, in the form in which names match."""
    named: defaultdict[str, list[Path]] = defaultdict(list)
    for path in list_pictures(backgrounds, skip=(out,)):
        named[match_key(path.relative_to(backgrounds).with_suffix("").as_posix())].append(path)
    return dict(named)


def _find_background(named: dict[str, list[Path]], path: Path, relative: Path, backgrounds: Path | None) -> Path:
    """Return the background of a composite by its path within its folder; raise where there is none, or several."""
    own = match_key(relative.with_suffix("").as_posix())
    above = [match_key(parent.as_posix()) for parent in relative.parents][:-1]
    found = next((named[name] for name in (own, *above) if name in named), [])
    if not found:
        nor = f", nor {' or '.join(above)}" if above else ""
        reason = f"no background {own} in {backgrounds}, with any ending{nor}"
        raise NotFoundError(path, reason, "add it, or pass one picture for all")
    if len(found) > 1:
        found = [background for background in found if background.suffix == path.suffix] or found
    if len(found) > 1:
        several = ", ".join(background.name for background in found)
        raise DsgenError(path, f"{len(found)} backgrounds ({several}), expected 1", "remove all but one")
    return found[0]
