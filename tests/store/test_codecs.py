"""Chunks that decode to another length than their shape are refused before memory is taken for them."""

import numpy as np
import pytest
from numcodecs.zstd import Zstd

from dsgen.store.codecs import check_checksum, decode_depth, decode_zstd, encode_chunk, with_checksum


@pytest.mark.parametrize("shape", [(3,), (255,), (300, 7), (70_000,), (2**17, 3)])
def test_what_is_encoded_is_decoded(shape):
    """For every width of the length in zstd's header, and into memory that is given."""
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    code, out = encode_chunk("image", values), np.empty(shape, np.uint8)
    assert np.array_equal(decode_zstd(code, shape, "u1"), values)
    assert decode_zstd(code, shape, "u1", out) is out
    assert np.array_equal(out, values)
    depth = np.resize(values, shape).astype("<u2")
    assert np.array_equal(decode_depth(encode_chunk("depth", depth), shape, "<u2"), depth)


@pytest.mark.parametrize("count", [0, 1, 99, 101, 10**7])
def test_another_length_is_refused(count):
    """Shorter, which would leave memory as it was, or longer; by zstd and by blosc."""
    with pytest.raises(ValueError, match=rf"decodes to {count:,} bytes, expected 100 by its shape"):
        decode_zstd(encode_chunk("image", np.zeros(count, np.uint8)), (100,), "u1")
    with pytest.raises(ValueError, match=rf"decodes to {2 * count:,} bytes, expected 200 by its shape"):
        decode_depth(encode_chunk("depth", np.zeros(count, "<u2")), (100,), "<u2")


def test_a_header_that_says_terabytes_takes_no_memory():
    """The length is compared first; one that the header does not say is refused too."""
    code = b"\x28\xb5\x2f\xfd\xe0" + (10**13).to_bytes(8, "little") + bytes(20)
    with pytest.raises(ValueError, match="decodes to 10,000,000,000,000 bytes"):
        decode_zstd(code, (100,), "u1")
    with pytest.raises(ValueError, match=r"decodes to -1 bytes"):
        decode_zstd(b"\x28\xb5\x2f\xfd\x00\x58" + bytes(20), (100,), "u1")
    for short in (b"", b"\x28\xb5\x2f\xfd", b"x" * 40):
        with pytest.raises(ValueError, match="not encoded by zstd"):
            decode_zstd(short, (100,), "u1")


def test_a_length_of_blosc_that_is_not_its_own_is_refused():
    """Its decoder would read past the end."""
    code = bytearray(check_checksum(encode_chunk("depth", np.arange(1000, dtype="<u2"))))
    code[12:16] = (len(code) + 1000).to_bytes(4, "little")
    with pytest.raises(ValueError, match="expected"):
        decode_depth(with_checksum(bytes(code)), (1000,), "<u2")


def test_zstd_says_the_length_of_what_numcodecs_encodes():
    """Which the check relies on."""
    assert Zstd(level=3).encode(b"")[:4] == b"\x28\xb5\x2f\xfd"
