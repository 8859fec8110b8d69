"""Files of torch.save: no code in them is run, and they take no more memory than they are large."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from dsgen.errors import DamagedError
from dsgen.io.torch_files import read_torch


class _Call:
    """An object whose unpickling runs a command."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_what_torch_saves_is_read(tmp_path):
    """Values and tensors."""
    torch.save({"a": torch.arange(3), "b": [1, "x", None]}, tmp_path / "a.pt")
    found = read_torch(tmp_path / "a.pt", "remove it")
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b"] == [1, "x", None]


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_is_run(tmp_path, legacy):
    """In torch's own format, and in a bare pickle."""
    content = {"a": _Call(tmp_path / "ran")}
    if legacy:
        (tmp_path / "a.pt").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DamagedError, match=r"a\.pt: damaged checkpoint .*; remove it"):
        read_torch(tmp_path / "a.pt", "remove it")
    assert not (tmp_path / "ran").exists()


def test_compressed_entries_are_refused(tmp_path):
    """A megabyte may stand for a gigabyte."""
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as plain, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert (tmp_path / "b.pt").stat().st_size < 10**5
    with pytest.raises(DamagedError, match="its entries are compressed"):
        read_torch(tmp_path / "b.pt", "remove it")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02]q\x00."])
def test_other_files_are_refused(tmp_path, content):
    """Empty, cut, another format."""
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(DamagedError, match="damaged checkpoint"):
        read_torch(tmp_path / "a.pt", "remove it")
    torch.save([1], tmp_path / "a.pt")
    with pytest.raises(DamagedError, match="holds a list, expected a dictionary"):
        read_torch(tmp_path / "a.pt", "remove it")
