"""Parts of a stage: how blocks are divided, and which runs may share a folder."""

from pathlib import Path

import pytest

from dsgen.errors import DsgenError, InvalidValueError
from dsgen.parallel.locks import LOCK
from dsgen.parallel.parts import Part, lock_stage, parse_part, select_part


@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_shares_are_disjoint_cover_all_and_differ_by_one_at_most(count: int):
    """In order, for more parts than blocks too."""
    blocks = list(range(13))
    shares = [select_part(blocks, parse_part(f"{number + 1}/{count}")) for number in range(count)]
    assert [block for part in shares for block in part] == blocks
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/8", "9/8", "x", "3", "3/", "-1/8", "3/0", "1.5/2", ""])
def test_parts_that_cannot_be_are_refused(text: str):
    """The text is shown with an example."""
    assert parse_part("3/8") == Part(3, 8)
    with pytest.raises(InvalidValueError, match=f"--part: got '{text}', expected K/N with K from 1 to N, like 3/8"):
        parse_part(text)


def test_a_refused_part_keeps_nobody_out(tmp_path: Path):
    """Its lock files stay, empty; itself, another division and a run without parts may begin."""
    with pytest.raises(DsgenError, match="pictures: bad"), lock_stage(tmp_path / "c", "composite", Part(1, 2)):
        raise DsgenError("pictures", "bad")
    assert {path.name: path.stat().st_size for path in (tmp_path / "c").iterdir()} == {
        LOCK: 0,
        f"{LOCK}-composite-1-of-2": 0,
    }
    for part in (Part(1, 2), Part(1, 3), None):
        with lock_stage(tmp_path / "c", "composite", part):
            pass
