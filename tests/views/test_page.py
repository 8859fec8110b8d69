"""The page in a real browser: what is drawn is what the store has, to the pixel; and what it says when it cannot be."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs import make_run
from support.web import BROWSER_OPTIONS, CHROMIUM, PlainHandler, served, serving_files

from dsgen.corpus.corpus import Corpus
from dsgen.store.packing import pack
from dsgen.store.reader import Store
from dsgen.views.static import export_page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
Open = Callable[[str], Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(BROWSER_OPTIONS))
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Open an address in a new page; nothing may be written to the console as an error by the end of the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 760})
    context.set_default_timeout(20_000)
    errors: list[str] = []

    def open_page(address: str) -> Any:
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    context.close()
    assert errors == []


def pixels(canvas: Any) -> np.ndarray:
    """What is on a canvas, (H,W,3) u1."""
    width, height, values = canvas.evaluate(
        "c => [c.width, c.height, Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]"
    )
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def tile(page: Any, row: int) -> Any:
    """The canvas of a row in the grid, once it is drawn."""
    return page.wait_for_selector(f".tile.drawn[data-row='{row}'] canvas")


def point(page: Any, canvas: Any, x: int, y: int, size: int = 48) -> str:
    """What is said of a pixel of the picture under the pointer."""
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + (x + 0.5) / size * box["width"], box["y"] + (y + 0.5) / size * box["height"])
    selector = "dialog .readout" if canvas.evaluate("c => c.className") == "large" else "footer .readout"
    page.locator(selector).filter(has_text=f"x {x}, y {y}").wait_for()
    return page.locator(selector).inner_text()


def test_a_store_in_the_grid(store: Path, opened: Open):
    """Images to the pixel; metres under the pointer; masks over them."""
    opening = Store(store)
    expected = opening.read(0, opening.rows)
    with served(store) as address:
        page = opened(address)
        assert page.title().startswith("shards")
        for row in (0, 5):
            assert np.array_equal(pixels(tile(page, row)), expected["image"][row])
        depth = expected["depth"][5]
        for x, y in ((3, 7), (47, 0), (20, 40)):
            assert f"{depth[y, x] / 1000:.3f} m" in point(page, tile(page, 5), x, y)
        page.get_by_role("button", name="Mask", exact=True).click()
        assert np.array_equal(
            wait_for(page, 5, lambda shown: set(np.unique(shown)) <= {0, 255})[..., 0], expected["mask"][5]
        )
        page.get_by_role("button", name="Image", exact=True).click()
        page.get_by_label("Mask over it").check()
        covered = wait_for(page, 5, lambda shown: (shown != expected["image"][5]).any())
        changed = (covered != expected["image"][5]).any(axis=2)
        assert np.array_equal(changed, expected["mask"][5] > 0)
        page.get_by_role("button", name="Depth", exact=True).click()
        page.get_by_label("Mask over it").uncheck()
        colours = wait_for(page, 5, lambda shown: len(np.unique(shown.reshape(-1, 3), axis=0)) > 20)
        near, far = (np.unravel_index(find(depth), depth.shape) for find in (np.argmin, np.argmax))
        assert colours[near][0] > colours[near][2]  # red is near
        assert colours[far][0] < colours[far][2] or depth.max() < 5000


def wait_for(page: Any, row: int, right: Callable[[np.ndarray], bool]) -> np.ndarray:
    """Wait until the picture of a row in the grid is as it should be."""
    for _ in range(100):
        shown = pixels(tile(page, row))
        if right(shown):
            return shown
        page.wait_for_timeout(50)
    raise AssertionError(f"row {row} is not drawn as expected")


@pytest.mark.slow
def test_filters_and_order(store: Path, opened: Open):
    """By split, background and foreground; shuffled by a seed; a jump to a row; all of it in the address."""
    plan = Store(store).plan
    with served(store) as address:
        page = opened(address)
        tile(page, 0)
        page.get_by_label("Split").select_option("validation")
        count = int((plan["split"] == 1).sum())
        page.locator(".found").filter(has_text=f"{count} rows of 72").wait_for()
        shown = [int(row) for row in page.locator(".tile").evaluate_all("tiles => tiles.map(t => t.dataset.row)")]
        assert sorted(shown) == np.flatnonzero(plan["split"] == 1)[: len(shown)].tolist()
        page.get_by_label("Split").select_option("")
        page.get_by_label("Background").fill("room1")
        page.get_by_label("Background").press("Enter")
        page.get_by_label("Foreground").fill("PERSON2")
        page.get_by_label("Foreground").press("Enter")
        rows = np.flatnonzero((plan["background"] == 1) & (plan["foreground"] == 2))
        page.locator(".found").filter(has_text=f"{len(rows)} rows of 72").wait_for()
        page.get_by_label("Order").select_option("shuffled")
        page.wait_for_timeout(300)
        first = page.locator(".tile").evaluate_all("tiles => tiles.map(t => Number(t.dataset.row))")
        assert sorted(first) == rows.tolist()
        assert first != rows.tolist()
        kept = page.url
        assert "background=room1" in kept
        assert "order=shuffled" in kept
        again = opened(kept)
        again.locator(".found").filter(has_text=f"{len(rows)} rows of 72").wait_for()
        again.wait_for_timeout(300)
        assert again.locator(".tile").evaluate_all("tiles => tiles.map(t => Number(t.dataset.row))") == first
        again.get_by_label("Foreground").fill("nobody")
        again.get_by_label("Foreground").press("Enter")
        again.locator(".found").filter(has_text="no row is like that").wait_for()
        jump = opened(address)
        tile(jump, 0)
        jump.get_by_label("Go to row").fill("71")
        jump.get_by_label("Go to row").press("Enter")
        assert np.array_equal(pixels(tile(jump, 71)), Store(store).read(71, 72)["image"][0])


@pytest.mark.parametrize(
    "kind", ["recipe", pytest.param("corpus", marks=pytest.mark.slow), pytest.param("floor", marks=pytest.mark.slow)]
)
def test_one_row_large(kind: str, recipe: Path, corpus: Path, floor_corpus: Path, opened: Open):
    """All fields of a row that dsgen draws, beside its columns; arrow keys go on."""
    path = {"recipe": recipe, "corpus": corpus, "floor": floor_corpus}[kind]
    if kind == "recipe":
        expected: dict[str, np.ndarray] = Store(path).read(7, 9)
    else:
        opening = Corpus(path)
        expected = dict(zip(("image", "mask"), opening.render(opening.plan[7:9]), strict=True))
    with served(path) as address:
        page = opened(address)
        tile(page, 7).click()
        page.locator("dialog .facts table").first.wait_for()
        canvas = page.wait_for_selector("dialog canvas.large[data-row='7']")
        assert np.array_equal(pixels(canvas), expected["image"][0])
        page.locator("dialog .thumbs button", has_text="mask").click()
        assert np.array_equal(pixels(canvas)[..., 0], expected["mask"][0])
        if "depth" in expected:
            assert f"{expected['depth'][0][9, 30] / 1000:.3f} m" in point(page, canvas, 30, 9)
            people = Store(path).plan["people"][7]
            distance = people["distance"][people["height"] > 0][0]
            assert (f"{distance / 1000:.3f} m" if distance else "not known") in page.locator(
                "dialog .facts"
            ).inner_text()
        page.keyboard.press("ArrowRight")
        following = page.wait_for_selector("dialog canvas.large[data-row='8']")
        assert np.array_equal(pixels(following)[..., 0], expected["mask"][1])
        assert "open=8" in page.url
        page.keyboard.press("Escape")
        page.wait_for_timeout(100)
        assert "open" not in page.url


@pytest.mark.slow
def test_a_run(store: Path, tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch):
    """Curves, predictions by epoch, scores, and the worst rows, which open."""
    from PIL import Image

    from dsgen.evaluation.evaluate import evaluate

    run = make_run(tmp_path / "run")
    (run / "metrics.csv").write_text(
        "epoch,size,train_loss,validation_loss,iou,zero_iou\n1,48,2,3,0.2,0\n2,48,1,2,0.5,0\n"
    )
    (run / "predictions").mkdir()
    for epoch in (1, 2):
        Image.new("RGB", (60, 20), (40 * epoch, 0, 0)).save(run / f"predictions/epoch-00{epoch}.png")
    evaluate(run, store, split="all", size=48, device="cpu")
    scores = json.loads((run / "evaluation-all-48/scores.json").read_text())
    with served(run) as address:
        page = opened(address)
        page.locator(".scores tr.network").first.wait_for()
        assert page.locator(".panel").count() == 2
        assert page.locator(".panel polyline").count() == 4
        page.get_by_role("slider", name="Epoch").fill("0")
        assert page.locator("img.sheet").first.get_attribute("src").endswith("predictions/epoch-001.png")
        assert f"{scores['scores']['network']['iou']:.4g}" in page.locator(".scores tr.network").inner_text()
        first = page.locator(".scores tbody button").first
        ious = page.locator(".scores").last.locator("tbody tr td:nth-child(3)").all_inner_texts()
        numbers = [float(text) for text in ious]
        assert numbers == sorted(numbers)
        row = int(first.inner_text())
        first.click()
        canvas = page.wait_for_selector(f"dialog canvas.large[data-row='{row}']")
        assert np.array_equal(pixels(canvas), Store(store).read(row, row + 1)["image"][0])


@pytest.mark.parametrize("zipped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_static_page(zipped: bool, labelled_corpus: Path, tmp_path: Path, opened: Open):
    """From any server of files that knows ranges, in a folder of its own; zip files are read in place."""
    pack(labelled_corpus, tmp_path / "s", shards=2, zipped=zipped, jobs=1)
    export_page(tmp_path / "s", tmp_path / "site/below")
    with serving_files(tmp_path / "site") as address:
        page = opened(f"{address}below/")
        expected = Store(tmp_path / "s").read(40, 41)
        page.get_by_label("Go to row").fill("40")
        page.get_by_label("Go to row").press("Enter")
        canvas = tile(page, 40)
        assert np.array_equal(pixels(canvas), expected["image"][0])
        assert f"{expected['depth'][0][5, 6] / 1000:.3f} m" in point(page, canvas, 6, 5)


def test_a_server_without_ranges(store: Path, tmp_path: Path, browser: Any):
    """The page says so and shows no picture, rather than wrong depth."""
    export_page(store, tmp_path / "site")
    with serving_files(tmp_path / "site", PlainHandler) as address:
        page = browser.new_page()
        page.goto(f"{address}#show=depth")
        banner = page.locator("#problem")
        banner.wait_for()
        said = banner.inner_text()
        assert "this web server ignores Range requests" in said
        assert "python -m http.server does not" in said
        page.locator(".tile.failed").first.wait_for()
        assert page.locator(".tile.drawn").count() == 0
        page.close()


@pytest.mark.slow
def test_damage_is_said(store: Path, tmp_path: Path, browser: Any):
    """Which chunk, why, and what to do; other rows are shown."""
    shutil.copytree(store, tmp_path / "s")
    for path in (tmp_path / "s").glob("shard-00000*/depth/c/0/0/0"):
        content = bytearray(path.read_bytes())
        content[50] ^= 1
        path.write_bytes(content)
    with served(tmp_path / "s") as address:
        page = browser.new_page()
        page.goto(f"{address}#show=depth")
        page.locator("#problem").wait_for()
        assert re.search(
            r"depth, chunk 0: cannot be read \(checksum wrong\).*dsgen repair", page.locator("#problem").inner_text()
        )
        page.get_by_role("button", name="Image", exact=True).click()
        tile(page, 0)
        page.close()


@pytest.mark.slow
def test_many_rows_are_scrolled(tmp_path: Path, pictures: Path, opened: Open):
    """Only what is on screen exists, to the last of rows that are taller than browsers draw."""
    from dsgen.corpus.build import Parameters, composite

    parameters = Parameters(positions=3000, size=64, label_size=64, fg_height=8, validation_share=0.34, test_share=0)
    composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", parameters, jobs=1, pictures=False)
    opening = Corpus(tmp_path / "c")
    last = len(opening) - 1
    with served(tmp_path / "c") as address:
        page = opened(f"{address}#tile=400")
        tile(page, 0)
        assert page.locator(".grid").evaluate("grid => grid.scrollHeight") == 8_000_000
        page.locator(".grid").evaluate("grid => { grid.scrollTop = grid.scrollHeight; }")
        assert np.array_equal(pixels(tile(page, last)), opening.render(opening.plan[last:])[0][0])
        assert page.locator(".tile").count() < 40
        page.locator(".grid").focus()
        page.keyboard.press("Home")
        tile(page, 0)
        page.keyboard.press("End")
        tile(page, last)
        page.get_by_label("Go to row").fill(str(last // 2))
        page.get_by_label("Go to row").press("Enter")
        tile(page, last // 2)
