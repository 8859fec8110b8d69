"""Compact depth: own code restores it, and so do the codecs of Zarr that it stands for."""

import asyncio
import warnings

import numpy as np
import pytest
import zarr
from numcodecs import blosc
from zarr.codecs import BloscCodec, Crc32cCodec

from dsgen.store import blosc_frames, differences
from dsgen.store.codecs import Coding, decode_depth, encode_chunk

COMPACT = Coding(compact=True, differences=True)
SHAPES = [(2, 8, 8), (2, 2, 2), (20, 16, 16), (3, 5, 7), (7, 33, 33), (3, 35, 48)]


def depth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Smooth depth with jumps up and down over the whole range, so that differences wrap."""
    rng = np.random.default_rng(seed)
    values = np.add.outer(np.arange(shape[0]) * 7, np.add.outer(np.arange(shape[1]) * 40, np.arange(shape[2])))
    jumps = rng.random(shape) < 0.05
    return np.where(jumps, rng.integers(0, 2**16, shape), values + rng.integers(0, 4, shape)).astype("<u2")


@pytest.mark.parametrize("undo", [differences.undo, differences.undo_by_numpy])
@pytest.mark.parametrize("shape", SHAPES)
def test_differences_are_undone(shape, undo):
    """To the bit: by a slow sum, by compiled loops and by numpy."""
    values = depth(shape)
    taken = differences.take(values)
    assert taken.shape == shape
    across = np.cumsum(taken.astype(np.int64).transpose(0, 2, 1)).reshape(shape[0], shape[2], shape[1])
    slow = np.cumsum(across.transpose(0, 2, 1)).reshape(shape)
    np.testing.assert_array_equal(slow % 2**16, values)
    out = np.empty(shape, "<u2")
    undo(taken, out)
    np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_codecs_of_zarr_decode_what_dsgen_encodes(shape):
    """No transposition leads numcodecs to add up along another axis."""
    values = depth(shape)
    code = encode_chunk("depth", values, COMPACT)
    memory: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create_array(
            zarr.storage.MemoryStore(memory),
            shape=shape,
            chunks=shape,
            dtype="uint16",
            filters=differences.ZARR_CODECS,
            compressors=[
                BloscCodec(cname="zstd", shuffle="bitshuffle", typesize=2),
                Crc32cCodec(),
            ],
        )
    store = array.store
    asyncio.run(store.set("c/0/0/0", zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(code)))
    np.testing.assert_array_equal(array[:], values)


@pytest.mark.parametrize("level", [-5, -2, 3])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000, 2**18, 2**18 + 8, 600_000, 600_001])
def test_blosc_decodes_the_frames(count, level):
    """Of any length: in several blocks, the last one shorter, and where bits do not fill bytes."""
    values = np.cumsum(np.random.default_rng(1).integers(-3, 4, count)).astype("<u2")
    np.testing.assert_array_equal(np.frombuffer(blosc.decompress(blosc_frames.compress(values, level)), "<u2"), values)


def test_what_does_not_compress_is_stored_as_it_is():
    """A block that zstd would make longer."""
    values = np.random.default_rng(2).integers(0, 2**16, 4096).astype("<u2")
    code = blosc_frames.compress(values, -2)
    assert len(code) < values.nbytes + 100
    np.testing.assert_array_equal(np.frombuffer(blosc.decompress(code), "<u2"), values)


def test_bits_are_shuffled_as_blosc_does():
    """Bit by bit."""
    values = np.random.default_rng(3).integers(0, 2**16, 64).astype("<u2")
    planes = [np.packbits(values >> bit & 1, bitorder="little") for bit in range(16)]
    np.testing.assert_array_equal(blosc_frames.shuffle_bits(values), np.concatenate(planes))


def test_a_damaged_length_is_refused_before_it_is_decoded():
    """As with other depth."""
    code = encode_chunk("depth", depth((4, 8, 8)), COMPACT)
    with pytest.raises(ValueError, match="decodes to 512 bytes, expected 1,024 by its shape"):
        decode_depth(code, (8, 8, 8), "<u2", is_differences=True)
    with pytest.raises(ValueError, match="checksum wrong"):
        decode_depth(code[:-6] + b"\0\0" + code[-4:], (4, 8, 8), "<u2", is_differences=True)
