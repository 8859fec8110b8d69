"""Which picture files are opened, and how errors and warnings name them."""

import ast
import os
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.corpora import draw_background
from support.picture_files import write_tiff

import dsgen
from dsgen.errors import DsgenError
from dsgen.io import images
from dsgen.io.picture_files import _PixelBudget, read_size

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


def test_every_call_of_pillow_says_which_formats_it_opens():
    """No Image.open in the package without formats: Pillow's others start programs or are little tested."""
    calls = [
        (path.name, any(keyword.arg == "formats" for keyword in node.keywords))
        for path in Path(dsgen.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open")
    ]
    assert len(calls) >= 2
    assert [name for name, restricted in calls if not restricted] == []


def test_postscript_starts_no_program(tmp_path: Path):
    """PostScript by the name of room.png is refused, and the gs on the path is not run."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    program.chmod(0o755)
    (tmp_path / "room.png").write_bytes(POSTSCRIPT)
    script = "import pathlib, sys, dsgen.io.images as images; images.read_picture(pathlib.Path(sys.argv[1]))"
    path = f"{program.parent}:{os.environ['PATH']}"
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "room.png")],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert "PostScript, expected JPEG, PNG, WebP, TIFF or BMP" in run.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (POSTSCRIPT, "PostScript, expected JPEG, PNG, WebP, TIFF or BMP"),
        (b"GIF89a\1\0\1\0\0\0\0", "GIF, expected"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, expected"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, expected"),
        (b"hello", "text, expected"),
        (bytes(range(128, 160)), "begins with 80 81 82 83, expected"),
        (b"\x89PNG\r\n\x1a\n broken", "begins like a PNG file, but is damaged"),
        (b"II*\0\x08\0\0\0", "begins like a TIFF file, but is damaged"),
    ],
)
def test_what_was_found_is_said(tmp_path: Path, content: bytes, found: str):
    """Content decides, not the name."""
    (tmp_path / "p.png").write_bytes(content)
    with pytest.raises(DsgenError, match=found):
        images.read_picture(tmp_path / "p.png")


def test_formats_under_another_name_are_read(tmp_path: Path):
    """A JPEG called .png is a JPEG."""
    Image.fromarray(draw_background(0)).save(tmp_path / "p.png", format="JPEG")
    assert images.read_picture(tmp_path / "p.png").shape == (110, 130, 3)


def test_errors_of_the_system_do_not_blame_the_picture(tmp_path: Path):
    """A link that leads nowhere is named, without advice to replace the picture."""
    (tmp_path / "p.png").symlink_to(tmp_path / "missing.png")
    with pytest.raises(DsgenError) as caught:
        images.read_picture(tmp_path / "p.png")
    assert str(caught.value) == f"{tmp_path}/p.png: cannot be read (No such file or directory)"


@pytest.mark.parametrize(
    ("bits", "photometric", "tags", "message"),
    [
        (8, 1, {"t339": 2}, "signed samples"),
        (16, 1, {"t339": 3}, "1 samples of 16 bits, float, photometric 1"),
        (10, 1, {}, "1 samples of 10 bits"),
        (14, 1, {}, "1 samples of 14 bits"),
        (24, 1, {}, "1 samples of 24 bits"),
        (32, 1, {}, "32-bit samples"),
        (32, 1, {"t339": 3}, "32-bit samples"),
    ],
)
def test_odd_tiffs_are_refused_by_name(tmp_path: Path, bits: int, photometric: int, tags: dict[str, int], message: str):
    """Each with what it is."""
    write_tiff(tmp_path / "p.tif", bytes(8 * 8 * bits // 8), 8, bits, photometric, **tags)
    with pytest.raises(DsgenError, match=message) as caught:
        images.read_picture(tmp_path / "p.tif")
    assert str(tmp_path / "p.tif") in str(caught.value)


def test_damaged_tiffs_leave_nothing_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """The error names the file; libtiff's own line, which cannot, is not printed."""
    Image.fromarray(draw_background(0)).save(tmp_path / "p.tif", compression="tiff_lzw")
    code = bytearray((tmp_path / "p.tif").read_bytes())
    code[len(code) // 2 : len(code) // 2 + 40] = bytes(40)
    (tmp_path / "p.tif").write_bytes(code)
    with pytest.raises(DsgenError, match=r"p.tif: cannot be decoded \(its data are damaged\)"):
        images.read_picture(tmp_path / "p.tif")
    assert capfd.readouterr().err == ""


def test_warnings_of_pillow_become_lines_that_name_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Bad EXIF data: the picture is read, the file named, and Python's warnings are as they were, in threads too."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x0f\x01\x02\0\xff\xff\0\0\x10\x27\0\0"
    paths = [tmp_path / f"{n}.jpg" for n in range(8)]
    for path in paths:
        Image.fromarray(draw_background(0)).save(path, exif=exif)
    before = list(warnings.filters), warnings.showwarning
    threads = [threading.Thread(target=images.read_picture, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (list(warnings.filters), warnings.showwarning) == before
    for path in paths:
        assert f"{path}: Corrupt EXIF data" in caplog.text


def test_the_first_page_counts_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A TIFF of two pages."""
    first, second = (Image.fromarray(draw_background(n)) for n in (0, 1))
    first.save(tmp_path / "p.tif", save_all=True, append_images=[second])
    assert (images.read_picture(tmp_path / "p.tif") == np.asarray(first)).all()
    assert f"{tmp_path}/p.tif: the first of its 2 pictures is used" in caplog.text


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_in_the_header_is_that_of_the_picture(tmp_path: Path, ending: str, orientation: int):
    """As displayed, for every orientation."""
    picture = Image.fromarray(draw_background(0, 40, 60))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if ending == "tif" else {"exif": exif}
    picture.save(tmp_path / f"p.{ending}", **options)
    assert read_size(tmp_path / f"p.{ending}") == images.read_picture(tmp_path / f"p.{ending}").shape[:2]


def test_pictures_of_all_threads_share_a_budget():
    """Never more pixels at once than allowed; one that is larger than all has it alone."""
    budget, lock, held, most = _PixelBudget(100), threading.Lock(), [0], [0]

    def hold(pixels: int) -> None:
        with budget.share(pixels):
            with lock:
                held[0] += min(pixels, 100)
                most[0] = max(most[0], held[0])
            time.sleep(0.002)
            with lock:
                held[0] -= min(pixels, 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [30, 60, 100, 500, 10, 40] * 6))
    assert 60 <= most[0] <= 100
    assert held[0] == 0


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_with_transparent_entries(tmp_path: Path, bits: int):
    """Each index has the alpha of its entry; entries that the chunk leaves out are opaque."""
    indices = np.resize(np.arange(2**bits), (16, 32)).astype(np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette([value for n in range(2**bits) for value in (n, 255 - n, 7)])
    picture.save(tmp_path / "p.png", bits=bits, transparency=bytes([0, 77][: 2**bits]))
    rgba = images.read_cutout(tmp_path / "p.png")
    assert (rgba[..., 3] == np.array([0, 77] + [255] * 254)[indices]).all()
    assert (rgba[..., 0] == indices).all()
    assert (images.read_picture(tmp_path / "p.png") == rgba[..., :3]).all()
