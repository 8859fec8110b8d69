"""Measure composite against the ordinary script: Pillow, one picture at a time, same pictures, same processes.

Both sides run alternating in one go; the ratio of their median times is the result. Also: `render` alone, the plan
of 400,000 rows, and a worker's memory.
"""

import argparse
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dsgen import layout
from dsgen.composite import Parameters, composite, draw_background
from dsgen.corpus import Corpus
from dsgen.plan import make_plan


def ordinary_script(corpus: str, out: str, background: int) -> int:
    """What people write: open, resize, paste with the alpha as mask, save. Sources are opened once, not per picture."""
    opened = Corpus(corpus)
    plan = opened.plan[opened.plan["background"] == background]
    size, height = opened.size, opened.manifest["parameters"]["fg_height"]
    backgrounds, foregrounds = layout.asset("backgrounds"), layout.asset("foregrounds")
    canvas = Image.open(backgrounds / opened.manifest["backgrounds"][background]["file"]).convert("RGB")
    canvas = canvas.resize((size, size))
    folder = Path(out) / layout.background_name(background)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    current, person = None, None
    for row in plan:
        pair = int(row["foreground"]), bool(row["flip"])
        if pair != current:
            current = pair
            person = Image.open(foregrounds / opened.manifest["foregrounds"][pair[0]]["file"])
            person = person.resize((round(person.width * height / person.height), height))
            if pair[1]:
                person = ImageOps.mirror(person)
            solid = person.getchannel("A").point(lambda a: 255 if a >= 128 else 0)
        at = int(row["left"]), int(row["top"])
        picture = canvas.copy()
        picture.paste(person, at, person)
        mask = Image.new("L", (size, size))
        mask.paste(solid, at)
        name = layout.composite_name(background, *pair, int(row["position"]))
        picture.save(folder / "images" / f"{name}.jpg", quality=95)
        mask.save(folder / "masks" / f"{name}.png")
    return len(plan)


def timed(work: Callable[..., int], calls: list[tuple], processes: int) -> float:
    """Rows a second of `work` over the calls, in warm processes."""
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(_warm, range(processes)))
        started = time.perf_counter()
        rows = sum(pool.map(work, *zip(*calls, strict=True)))
        return rows / (time.perf_counter() - started)


def _warm(_: int) -> None:
    time.sleep(0.2)


def worker_memory(path: str, background: int) -> float:
    """Peak resident MB of a process that draws a background."""
    draw_background(path, background)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backgrounds", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        corpus = Path(temporary) / "corpus"
        composite(corpus, parameters=Parameters(), max_backgrounds=arguments.backgrounds, pictures=False)
        ours, theirs = [], []
        for _ in range(arguments.rounds):
            calls = [(str(corpus), str(Path(temporary) / "ordinary"), b) for b in range(arguments.backgrounds)]
            theirs.append(timed(ordinary_script, calls, arguments.processes))
            ours.append(timed(draw_background, [(c[0], c[2]) for c in calls], arguments.processes))
            shutil.rmtree(Path(temporary) / "ordinary")
            for part in layout.PICTURE_PARTS:
                shutil.rmtree(corpus / part)
        a, b = statistics.median(ours), statistics.median(theirs)
        print(f"composite with picture files   {a:8,.0f} rows/s   ordinary script {b:8,.0f} rows/s   ratio {a / b:.2f}")

        opened = Corpus(corpus)
        opened.render(opened.plan)[0].nbytes if len(opened) < 2000 else opened.render(opened.plan[:4000])
        blocks = [opened.plan[i : i + 200] for i in range(0, len(opened) - 200, 200)]
        started = time.perf_counter()
        for block in blocks:
            opened.render(block)
        print(f"render, image and mask         {200 * len(blocks) / (time.perf_counter() - started):8,.0f} rows/s a core")

        shapes = np.full((100, 2), (110, 50))
        started = time.perf_counter()
        plan = make_plan([f"b{i}" for i in range(100)], [f"f{i}" for i in range(100)], shapes)
        print(f"plan of {len(plan):,} rows           {time.perf_counter() - started:8.2f} s")
        with ProcessPoolExecutor(1) as pool:
            print(f"memory of a worker             {pool.submit(worker_memory, str(corpus), 0).result():8,.0f} MB")


if __name__ == "__main__":
    main()
