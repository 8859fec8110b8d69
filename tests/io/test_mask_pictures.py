"""Masks of every kind are read rightly, and what is no mask is refused by name."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.corpora import draw_background, draw_cutout
from support.picture_files import write_keyed_png, write_tiff

from dsgen.errors import DsgenError
from dsgen.io.mask_pictures import read_mask


def shape(height: int = 48, width: int = 60) -> np.ndarray:
    """A disc off the middle, (height,width) bool."""
    y, x = np.mgrid[:height, :width]
    return np.hypot(y - 20, x - 24) < 12


def palette(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    """A palette picture."""
    picture = Image.fromarray(indices.astype(np.uint8))
    picture.putpalette([value for colour in colours for value in colour])
    return picture


def colours(foreground: tuple[int, ...], background: tuple[int, ...]) -> Image.Image:
    """Two colours, RGB or RGBA."""
    return Image.fromarray(np.where(shape()[..., None], foreground, background).astype(np.uint8))


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (128, 0, 0)
MASKS: dict[str, Callable[[], Image.Image]] = {
    "grey 0 and 255": lambda: Image.fromarray(shape() * np.uint8(255)),
    "grey 0 and 1": lambda: Image.fromarray(shape() * np.uint8(1)),
    "1 bit": lambda: Image.fromarray(shape()),
    "16 bits": lambda: Image.fromarray(shape() * np.uint16(65535)),
    "16 bits, 0 and 1": lambda: Image.fromarray(shape() * np.uint16(1)),
    "16 bits, 0 and 255": lambda: Image.fromarray(shape() * np.uint16(255)),
    "palette by index, all black": lambda: palette(shape(), BLACK, BLACK),
    "palette, dark red": lambda: palette(shape(), BLACK, RED),
    "palette, white": lambda: palette(shape(), BLACK, WHITE),
    "palette, white first": lambda: palette(~shape(), WHITE, BLACK),
    "palette, two colours": lambda: palette(shape(), (9, 99, 200), RED),
    "palette of greys": lambda: palette(shape() * 255, *((n, n, n) for n in range(256))),
    "red on black": lambda: colours((255, 0, 0), BLACK),
    "green on black": lambda: colours((0, 200, 0), BLACK),
    "blue on black": lambda: colours((0, 0, 255), BLACK),
    "yellow on black": lambda: colours((255, 255, 0), BLACK),
    "white on black": lambda: colours(WHITE, BLACK),
    "1 in the third channel": lambda: colours((0, 0, 1), BLACK),
    "alpha, black": lambda: colours((0, 0, 0, 255), (0, 0, 0, 0)),
    "alpha, white": lambda: colours((255, 255, 255, 255), (255, 255, 255, 0)),
    "alpha, red on white": lambda: colours((255, 0, 0, 255), (255, 255, 255, 0)),
    "opaque alpha": lambda: colours((255, 255, 255, 255), (0, 0, 0, 255)),
    "grey and alpha": lambda: Image.fromarray(np.stack([shape() * 0, shape() * 255], 2).astype(np.uint8)),
    "grey and opaque alpha": lambda: Image.fromarray(np.stack([shape() * 255, shape() * 0 + 255], 2).astype(np.uint8)),
    "colours and alpha alike": lambda: colours((255, 255, 255, 255), (0, 0, 0, 0)),
    "a cut-out": lambda: Image.fromarray(np.dstack([draw_background(0, 48, 60), shape() * np.uint8(255)])),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_kind_of_mask_is_read(tmp_path: Path, name: str):
    """The disc, 255 inside, 0 outside."""
    MASKS[name]().save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    assert mask.dtype == np.uint8
    assert (mask == shape() * 255).all()


def test_masks_of_other_formats(tmp_path: Path):
    """WhiteIsZero TIFFs, colour keys, and BMP."""
    write_tiff(tmp_path / "m.tif", (~shape(48, 48) * np.uint16(65535)).astype("<u2").tobytes(), 48, 16, 0)
    assert (read_mask(tmp_path / "m.tif") == shape(48, 48) * 255).all()
    write_keyed_png(tmp_path / "m.png", (~shape()).astype(int)[..., None] * 3, 2, (3,))
    assert (read_mask(tmp_path / "m.png") == shape() * 255).all()
    Image.fromarray(shape() * np.uint8(255)).save(tmp_path / "m.bmp")
    assert (read_mask(tmp_path / "m.bmp") == shape() * 255).all()


@pytest.mark.parametrize("ending", ["jpg", "webp"])
@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("colour", [WHITE, (255, 0, 0)])
def test_the_noise_of_lossy_formats_is_cut_at_half(tmp_path: Path, ending: str, quality: int, colour):
    """All but pixels at the edge are as they were."""
    large = np.repeat(np.repeat(shape(), 8, 0), 8, 1)
    picture = np.where(large[..., None], colour, 0).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / f"m.{ending}", quality=quality)
    wrong = read_mask(tmp_path / f"m.{ending}") != large * 255
    edge = cv2.dilate(large.astype(np.uint8), np.ones((5, 5))) - cv2.erode(large.astype(np.uint8), np.ones((5, 5)))
    assert not (wrong & (edge == 0)).any()


@pytest.mark.parametrize("blur", [0.6, 2, 5])
@pytest.mark.parametrize("colour", [WHITE, (255, 0, 0), (0, 128, 128)])
def test_soft_edges_are_cut_at_half(tmp_path: Path, blur: float, colour):
    """Blurred grey and coloured masks."""
    large = np.repeat(np.repeat(shape(), 4, 0), 4, 1)
    soft = cv2.GaussianBlur(large.astype(np.float32), None, blur)
    Image.fromarray(np.rint(soft[..., None] * colour).astype(np.uint8)).save(tmp_path / "m.png")
    wrong = (read_mask(tmp_path / "m.png") == 255) != (soft >= 0.5)
    assert (wrong & (abs(soft - 0.5) > 0.01)).sum() == 0


def class_ids(*ids: int) -> np.ndarray:
    """Bands of class ids, (48,60) u1."""
    return np.repeat(np.resize(ids, 6), 10)[None].repeat(48, 0).astype(np.uint8)


NO_MASKS: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "class ids": (lambda: Image.fromarray(class_ids(0, 1, 2)), "values 0, 1, 2, expected a mask of 0 and 255"),
    "one class id": (lambda: Image.fromarray(class_ids(0, 15)), "values 0, 15"),
    "class ids and void": (lambda: Image.fromarray(class_ids(0, 15, 255)), "values 0, 15, 255"),
    "class ids above 127": (lambda: Image.fromarray(class_ids(0, 130)), "values 0, 130"),
    "class ids of 16 bits": (lambda: Image.fromarray(class_ids(0, 7).astype(np.uint16) * 100), "values 0, 700"),
    "palette of class ids": (lambda: palette(class_ids(0, 15), *([BLACK] + [RED] * 20)), "palette indices up to 15"),
    "palette with void": (lambda: palette(class_ids(0, 1, 255), *([BLACK] + [RED] * 255)), "found 0, 1, 255"),
    "id in a channel": (lambda: colours((15, 0, 0), BLACK), "values 0, 15"),
    "two colours": (lambda: Image.fromarray(np.eye(3, dtype=np.uint8)[class_ids(0, 1)] * 255), "several colours"),
    "photograph": (lambda: Image.fromarray(draw_background(0)), "several colours"),
    "grey photograph": (lambda: Image.fromarray(draw_background(0)[..., 0]), "values 16, 19, 20"),
    "nothing visible": (lambda: Image.new("RGBA", (60, 48)), "alpha 0 everywhere"),
    "two masks": (
        lambda: Image.fromarray(np.dstack([*[np.roll(shape(), 9, 1)] * 3, shape()]) * np.uint8(255)),
        "one mask in its alpha and another in its colours",
    ),
    "all 1": (lambda: Image.new("L", (60, 48), 1), "values up to 1, expected a mask of 0 and 255"),
}


@pytest.mark.parametrize("name", NO_MASKS)
def test_what_is_not_clearly_a_mask_is_refused(tmp_path: Path, name: str):
    """By name, with what was found."""
    picture, message = NO_MASKS[name]
    picture().save(tmp_path / "m.png")
    with pytest.raises(DsgenError, match=message) as caught:
        read_mask(tmp_path / "m.png")
    assert str(tmp_path / "m.png") in str(caught.value)


def test_masks_are_turned_upright(tmp_path: Path):
    """As pictures are."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(shape() * np.uint8(255)).save(tmp_path / "m.png", exif=exif)
    assert (read_mask(tmp_path / "m.png") == np.rot90(shape() * 255, -1)).all()


def test_the_alpha_of_a_soft_cutout_is_its_mask(tmp_path: Path):
    """A rendered cut-out with soft edges may be the mask of its picture."""
    rgba = draw_cutout(0, 200, 120)
    Image.fromarray(rgba).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png") == np.where(rgba[..., 3] >= 128, 255, 0)).all()
