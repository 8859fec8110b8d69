"""Trees of files: what is no file neither blocks a tree nor counts as one of its files; errors of the system pass."""

import errno
import os
import socket

import pytest

from dsgen.errors import DsgenError, is_system_error
from dsgen.integrity.verify import verify
from dsgen.io.filesystem import LocalFiles, hash_tree
from dsgen.views.info import describe


def _strange(folder):
    """Put what is no file beside the files of a folder; return the names."""
    (folder / "dangling").symlink_to("/nowhere/at/all")
    (folder / "loop").symlink_to("loop")
    (folder / "linked").symlink_to(folder.parent)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket may not be long
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    return ["dangling", "linked", "loop", "pipe", "socket"]


def test_what_is_no_file_is_listed_without_size_and_cannot_be_read(tmp_path):
    """Links to nothing, to themselves and to folders, pipes and sockets: none is followed, none is waited for."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(b"abc")
    names = _strange(tmp_path / "tree")
    files = LocalFiles(tmp_path / "tree")
    assert files.sizes() == dict(sorted({"file": 3, **dict.fromkeys(names, 0)}.items()))
    for name in names:
        with pytest.raises(OSError, match=r"not a file|No such|symbolic links|No such device") as caught:
            files.read(name)
        assert not is_system_error(caught.value)
    digests = dict(hash_tree(files, files.sizes(), 2))
    assert [name for name, digest in digests.items() if digest is None] == names


def test_strange_files_beside_a_store_are_findings(tmp_path, labelled_corpus):
    """The store opens; verify lists them, each once."""
    from dsgen.store.packing import pack

    pack(labelled_corpus, tmp_path / "store", shards=1, jobs=1)
    names = _strange(tmp_path / "store")
    assert describe(tmp_path / "store").rows == 72
    findings = verify(tmp_path / "store", fast=True, jobs=1).findings
    assert sorted((finding.file, finding.what) for finding in findings) == [
        (name, "not written by dsgen") for name in names
    ]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    """It blocks nothing; the root of the tree itself does."""
    (tmp_path / "tree/closed").mkdir(parents=True)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert LocalFiles(tmp_path / "tree").sizes() == {"closed/": 0}
    with pytest.raises(PermissionError):
        LocalFiles(tmp_path / "tree/closed").sizes()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ENOMEM])
def test_an_error_of_the_system_is_no_damage_to_a_shard(tmp_path, labelled_corpus, monkeypatch, number):
    """It passes as it is, with the file's name, and nobody is told to remove the shard."""
    from dsgen.store.packing import pack
    from dsgen.store.reader import Store

    pack(labelled_corpus, tmp_path / "store", shards=1, jobs=1)
    store = Store(tmp_path / "store")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            store.read(0, 4)
    assert not isinstance(caught.value, DsgenError)
    assert str(caught.value.filename).startswith(str(tmp_path / "store"))


def test_too_little_memory_is_no_damage_to_a_shard(tmp_path, labelled_corpus, monkeypatch):
    """A `MemoryError` passes as it is."""
    from dsgen.store import reader
    from dsgen.store.packing import pack

    pack(labelled_corpus, tmp_path / "store", shards=1, jobs=1)
    store = reader.Store(tmp_path / "store")

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(reader, "decode_zstd", fail)
    with pytest.raises(MemoryError):
        store.read(0, 4)
