"""Encoders of composites: the bytes are those of the whole picture."""

import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.corpora import draw_background, draw_cutout

from dsgen.corpus.encoders import JpegPatcher, MaskEncoder
from dsgen.corpus.render import Cutout, render
from dsgen.io import images


@pytest.mark.parametrize(("size", "height"), [(48, 20), (48, 48), (300, 299)])
def test_mask_encoder_makes_the_whole_mask(tmp_path: Path, size: int, height: int):
    """What is encoded by window decodes, checksums and all, to the whole mask; the same bytes for the same mask."""
    encoder = MaskEncoder(size)
    rng = np.random.default_rng(0)
    room = size - height
    for top, left in [(0, 0), (room, room), (0, room), (room, 0), *rng.integers(0, room + 1, (5, 2)).tolist()]:
        window = np.where(rng.random((height, height)) < 0.5, 255, 0).astype(np.uint8)
        whole = np.zeros((size, size), np.uint8)
        whole[top : top + height, left : left + height] = window
        code = encoder.encode(window, top, left)
        assert code == MaskEncoder(size).encode(window, top, left)
        (tmp_path / "mask.png").write_bytes(code)
        with Image.open(tmp_path / "mask.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), whole)
        np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_UNCHANGED), whole)
        start = code.index(b"IDAT") + 4
        length = int.from_bytes(code[start - 8 : start - 4], "big")
        assert len(zlib.decompress(code[start : start + length])) == size * (size + 1)


@pytest.mark.parametrize("size", [48, 50, 63, 224])
def test_patched_jpeg_is_the_jpeg_of_the_whole_picture(size: int):
    """Byte for byte, at every edge, for sizes that are and are not multiples of 16."""
    background = draw_background(3, size, size)
    cutout = Cutout.from_rgba(draw_cutout(1, 21, 17))
    patcher = JpegPatcher(background, 95)
    far = size - 21, size - 17
    for top, left in [(0, 0), far, (0, far[1]), (far[0], 0), (5, 11), (16, 16), (15, 17)]:
        row = np.array([(0, 0, 0, top, left)], [(n, "i4") for n in ("background", "foreground", "flip", "top", "left")])
        whole = render(row, {0: background}, {(0, 0): cutout}, size)[0][0]
        assert patcher.encode(cutout, top, left) == images.encode_jpeg(whole, 95, restart=1)
