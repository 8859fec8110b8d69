"""Folders: every picture's answer has a name of its own."""

from pathlib import Path

from dsgen.io.folders import output_names


def test_pictures_that_share_a_stem_keep_their_ending():
    """a.jpg and a.png do not overwrite each other."""
    names = output_names([Path("a.jpg"), Path("a.png"), Path("b.webp"), Path("s/a.jpg")])
    assert [str(n) for n in names] == ["a.jpg.png", "a.png.png", "b.png", "s/a.png"]
