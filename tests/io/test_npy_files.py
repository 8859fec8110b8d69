""".npy files are read if they are as large as their header says, and no memory is taken for others."""

import io

import numpy as np
import pytest

from dsgen.errors import DamagedError
from dsgen.io.npy_files import read_npy


def _npy(array=None):
    out = io.BytesIO()
    np.save(out, np.arange(12, dtype=np.float32).reshape(3, 4) if array is None else array)
    return out.getvalue()


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "|u1", "<u2"])
def test_what_numpy_writes_is_read(tmp_path, dtype):
    """In any byte and memory order."""
    for order in ("C", "F"):
        array = np.asarray(np.arange(12).reshape(3, 4), dtype=dtype, order=order)
        (tmp_path / "a.npy").write_bytes(_npy(array))
        assert np.array_equal(read_npy(tmp_path / "a.npy"), array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04x",
        b"\x93NUMPY",
        _npy()[:-1],
        _npy() + b"x",
        _npy().replace(b"(3, 4)", b"(100000000000, 4)"),
        _npy().replace(b"(3, 4), }         ", b"(100000000, 4), }"),
        _npy().replace(b"'<f4'", b"'|O' "),
        _npy().replace(b"(3, 4)", b"(-3,-4)"),
        _npy().replace(b"{'descr'", b"[[[[[[[["),
        _npy(np.array([{}], dtype=object)),
    ],
)
def test_anything_else_is_refused(tmp_path, content):
    """Empty, cut, a zip, with Python objects, with a shape that no memory holds."""
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DamagedError, match=r"a\.npy: .*; replace it"):
        read_npy(tmp_path / "a.npy")
