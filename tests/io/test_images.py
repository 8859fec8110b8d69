"""Picture files: decoding, encoding, resizing."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from support.corpora import draw_background
from support.picture_files import icc_profile, write_keyed_png, write_tiff

from dsgen.errors import DsgenError
from dsgen.io import images


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("RGB", "png"),
        ("RGB", "jpg"),
        ("RGB", "webp"),
        ("RGB", "tiff"),
        ("RGB", "bmp"),
        ("L", "png"),
        ("P", "png"),
        ("CMYK", "jpg"),
        ("RGBA", "png"),
        ("LA", "png"),
        ("1", "png"),
    ],
)
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str, ending: str):
    """Shape, type, and, roughly, colour survive."""
    picture = draw_background(0)
    Image.fromarray(picture).convert(mode).save(tmp_path / f"p.{ending}")
    read = images.read_picture(tmp_path / f"p.{ending}")
    assert read.shape == picture.shape
    assert read.dtype == np.uint8
    grey = mode in ("L", "LA", "1")
    expected = np.asarray(Image.fromarray(picture).convert("L").convert("RGB")) if grey else picture
    assert abs(read.astype(int).mean() - expected.mean()) < 6


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path, channels: int):
    """65535 is white and the middle is the middle, for grey, RGB and RGBA PNGs of 16 bits."""
    picture = np.zeros((4, 3, channels), np.uint16)
    picture[0], picture[1] = 65535, 32896
    if channels == 4:
        picture[..., 3] = 65535
    cv2.imwrite(str(tmp_path / "p.png"), picture)
    read = images.read_picture(tmp_path / "p.png")
    assert read[:, 0, 0].tolist() == [255, 128, 0, 0]


def test_exif_rotation_is_honoured(tmp_path: Path):
    """A picture stored on its side with orientation 6 is turned upright."""
    picture = draw_background(0, 40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "p.png", exif=exif)
    assert (images.read_picture(tmp_path / "p.png") == np.rot90(picture, -1)).all()


def test_palette_transparency_counts_as_alpha(tmp_path: Path):
    """A palette PNG with a transparent colour is a cut-out."""
    palette = Image.fromarray(draw_background(0)).quantize(8)
    palette.save(tmp_path / "p.png", transparency=3)
    rgba = images.read_cutout(tmp_path / "p.png")
    assert rgba.shape[2] == 4
    assert set(np.unique(rgba[..., 3])) == {0, 255}


@pytest.mark.parametrize(("bits", "channels"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 3), (16, 3)])
def test_a_colour_key_is_transparent_and_nothing_else_is(tmp_path: Path, bits: int, channels: int):
    """PNG specification, 11.3.1.1: samples equal to the key, in all their bits, have alpha 0; the others 255."""
    top = 2**bits - 1
    key = [0x1234, 0x5678, 0x9ABC] if bits == 16 else [top // 2, top, 0]
    samples = np.random.default_rng(bits).integers(0, top + 1, (16, 32, channels))
    samples[:, :8] = key[:channels]
    samples[:, 8:16] = key[:channels]
    samples[:, 8:16, channels - 1] ^= 1  # differs in the lowest bit of one channel
    expected = np.where((samples == key[:channels]).all(2), 0, 255)
    write_keyed_png(tmp_path / "p.png", samples, bits, tuple(key[:channels]))
    rgba = images.read_cutout(tmp_path / "p.png")
    assert (rgba[..., 3] == expected).all()
    assert (rgba[..., :3] == images.read_picture(tmp_path / "p.png")).all()
    assert abs(rgba[..., 0].astype(float) - samples[..., 0] * (255 / top)).max() <= 1


def test_grey_tiffs_of_more_than_8_bits_keep_their_brightness(tmp_path: Path):
    """12 bits are scaled, and 0 may be white, as with 8 bits."""
    write_tiff(tmp_path / "12.tif", bytes([0x80, 0x08, 0x00]) * (64 * 64 // 2), 64, 12, 1)
    write_tiff(tmp_path / "white16.tif", struct.pack("<H", 16384) * 64 * 64, 64, 16, 0)
    write_tiff(tmp_path / "white8.tif", bytes([64]) * 64 * 64, 64, 8, 0)
    assert (images.read_picture(tmp_path / "12.tif") == 128).all()
    assert (images.read_picture(tmp_path / "white16.tif") == 191).all()
    assert (images.read_picture(tmp_path / "white8.tif") == 191).all()


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        *(("RGB", e) for e in ("png", "jpg", "webp", "tif")),
        ("RGBA", "png"),
        ("RGBA", "webp"),
        ("RGBA", "tif"),
        ("P", "png"),
    ],
)
def test_colour_profiles_are_converted_to_srgb(tmp_path: Path, mode: str, ending: str):
    """What LittleCMS gives for the wide gamut of Adobe RGB; alpha is kept."""
    plain = Image.new("RGBA", (16, 16), (120, 200, 60, 77)).convert(mode)
    plain.save(tmp_path / f"p.{ending}", icc_profile=icc_profile(), **({"quality": 100} if ending != "tif" else {}))
    assert abs(images.read_picture(tmp_path / f"p.{ending}")[4, 4].astype(int) - [51, 201, 37]).max() <= 6
    if mode == "RGBA":
        assert (images.read_cutout(tmp_path / f"p.{ending}")[..., 3] == 77).all()


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_profiles_are_converted_to_srgb(tmp_path: Path, mode: str):
    """Half of the light is 188 in sRGB."""
    grey = np.full((8, 8), 128, np.uint8)
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    picture.save(tmp_path / "p.png", icc_profile=icc_profile(1.0, ()))
    assert (images.read_picture(tmp_path / "p.png") == 188).all()


def test_an_srgb_profile_changes_no_byte(tmp_path: Path):
    """Nor does one that differs from sRGB by rounding only."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(draw_background(0)).save(tmp_path / "p.png", icc_profile=profile)
    assert (images.read_picture(tmp_path / "p.png") == draw_background(0)).all()


@pytest.mark.parametrize("profile", [b"rubbish" * 40, icc_profile()[:200], icc_profile(2.2, ())])
def test_a_profile_that_cannot_be_used_is_said(tmp_path: Path, profile: bytes, caplog: pytest.LogCaptureFixture):
    """Damaged, cut short, or for grey pictures: the file is named, and its colours are taken as they are."""
    Image.fromarray(draw_background(0)).save(tmp_path / "p.png", icc_profile=profile)
    assert (images.read_picture(tmp_path / "p.png") == draw_background(0)).all()
    assert f"{tmp_path}/p.png: its colour profile cannot be used" in caplog.text


def _bomb(path: Path) -> None:
    Image.new("1", (9000, 9000)).save(path)


def _truncated(path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(draw_background(0)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue()[:-2000])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b""), "empty file"),
        (lambda p: p.write_bytes(b"this is no picture"), "cannot be decoded"),
        (_truncated, "cannot be decoded"),
        (_bomb, "9000x9000 pixels, expected at most 64,000,000 in total"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, make, message: str):
    """One line that names the file and the reason."""
    make(tmp_path / "bad.png")
    with pytest.raises(DsgenError, match=message) as error:
        images.read_picture(tmp_path / "bad.png")
    assert str(tmp_path / "bad.png") in str(error.value)
    assert "\n" not in str(error.value)


def test_cutout_without_alpha_is_refused(tmp_path: Path):
    """An opaque picture is no foreground."""
    Image.fromarray(draw_background(0)).save(tmp_path / "p.png")
    with pytest.raises(DsgenError, match="no alpha channel"):
        images.read_cutout(tmp_path / "p.png")


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_png_is_lossless(shape, kind):
    """Pillow and OpenCV read back what was encoded, 8 and 16 bits."""
    picture = np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, shape).astype(kind)
    code = images.encode_png(picture)
    read = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture.ndim == 3:
        read = cv2.cvtColor(read, cv2.COLOR_BGR2RGB if shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    assert (read == picture).all()
    assert Image.open(io.BytesIO(code)).size == (7, 5)


def test_jpeg_keeps_colours_in_order():
    """Red stays red through encoder and decoder."""
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    read = np.asarray(Image.open(io.BytesIO(images.encode_jpeg(red))))
    assert abs(read[8, 8].astype(int) - [200, 0, 0]).max() < 6


def test_resizing_a_cutout_lends_no_colour_from_what_is_transparent():
    """White under alpha 0 does not brighten the edge of a black shape."""
    rgba = np.full((40, 40, 4), 255, np.uint8)
    rgba[..., 3] = 0
    rgba[10:30, 10:30] = 0, 0, 0, 255
    small = images.resize_cutout(rgba, 17, 17)
    assert small[small[..., 3] > 0][:, :3].max() == 0
    assert (small[..., 3] % 255 > 0).sum() > 0


def test_trim_and_centre_square():
    """Trimming keeps every visible pixel; the square is the middle."""
    rgba = np.zeros((10, 12, 4), np.uint8)
    rgba[2, 3, 3] = rgba[6, 8, 3] = 1
    assert images.trim(rgba).shape == (5, 6, 4)
    picture = np.arange(4 * 10 * 3).reshape(4, 10, 3).astype(np.uint8)
    assert (images.centre_square(picture) == picture[:, 3:7]).all()


@pytest.mark.parametrize(
    ("height", "width"), [(110, 96), (96, 110), (100, 100), (100, 117), (117, 100), (1500, 7), (3, 1400), (750, 1400)]
)
def test_large_cutouts_shrink_in_bands_to_the_same_bits(height: int, width: int, monkeypatch: pytest.MonkeyPatch):
    """Factors that are integers along both axes, one and none, and an axis that keeps its length."""
    rgba = np.random.default_rng(0).integers(0, 256, (1500, 1400, 4), np.uint8)
    in_bands = images.resize_cutout(rgba, height, width)
    monkeypatch.setattr(images, "_BAND_PIXELS", 10**9)
    assert (images.resize_cutout(rgba, height, width) == in_bands).all()
