"""Measure dsgen on this machine: `make bench`, or `python tests/benchmarks/bench.py store unet` for some of it.

    composite  picture files, against the ordinary script (Pillow, one picture at a time) in as many processes
    depth      labelling a corpus end to end, against the bare network
    store      bytes a sample against JPEG, packing, loading
    unet       the U-Net as dsgen trains it against plain float32; a training step against one on a batch in memory

Both sides of a ratio run alternately in one run. The ratio is that of their medians; for `unet` it is the median of the
rounds' ratios. `--write` puts the results into the README beside this file, with date, machine and versions.
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
from record import circumstances, replace_section

from dsgen.corpus import layout
from dsgen.corpus.build import Parameters, composite
from dsgen.corpus.composed import person_depths
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.pictures import draw_composites
from dsgen.corpus.plan import make_plan
from dsgen.corpus.scene import DRAWN
from dsgen.io import images
from dsgen.io.assets import asset
from dsgen.parallel.pool import available_cores
from dsgen.store.packing import pack

REPORTED: list[tuple[str, str]] = []
PACKAGES = ("numpy", "opencv-python", "pillow", "timm", "torch", "zarr")


def ordinary_script(corpus: str, out: str, background: int) -> int:
    """What people write: open, resize, paste with the alpha as mask, save. Sources are opened once, not per picture."""
    opened = Corpus(corpus)
    plan = opened.plan[opened.plan["background"] == background]
    size, height = opened.size, opened.manifest["parameters"]["fg_height"]
    backgrounds, foregrounds = asset("backgrounds"), asset("foregrounds")
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
    draw_composites(path, background)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bench_composite(folder: Path, backgrounds: int, processes: int, rounds: int) -> None:
    """Picture files against the ordinary script, `render`, the plan, a worker's memory."""
    corpus = folder / "corpus"
    composite(corpus, parameters=Parameters(), max_backgrounds=backgrounds, pictures=False)
    ours, theirs = [], []
    for number in range(rounds):
        # nothing is removed before the end: for minutes after, ext4 steps over every inode freed when it makes a file
        calls = [(str(corpus), str(folder / f"ordinary{number}"), b) for b in range(backgrounds)]
        theirs.append(timed(ordinary_script, calls, processes))
        ours.append(timed(draw_composites, [(c[0], c[2]) for c in calls], processes))
        for name in layout.COMPOSITE_FOLDERS:
            (corpus / name).rename(folder / f"{name}{number}")
    a, b = statistics.median(ours), statistics.median(theirs)
    report("composite, with picture files", f"{a:,.0f} rows/s with {processes} processes")
    report("the ordinary Pillow script", f"{b:,.0f} rows/s with {processes} processes")
    report("ratio", f"{a / b:.2f}, rounds {', '.join(f'{x / y:.2f}' for x, y in zip(ours, theirs, strict=True))}")

    opened = Corpus(corpus)
    blocks = [opened.plan[i : i + 20] for i in range(0, len(opened), 20)]
    opened.render(opened.plan[:: opened.positions][:400])  # reads the sources
    started = time.perf_counter()
    for block in blocks:
        opened.render(block)
    report("render, image and mask", f"{len(opened) / (time.perf_counter() - started):,.0f} rows/s a core")

    names = [f"b{i}" for i in range(100)], [f"f{i}" for i in range(100)]
    started = time.perf_counter()
    plan = make_plan(*names, np.full((100, 2), (110, 50)))
    report(f"plan of {len(plan):,} rows", f"{time.perf_counter() - started:.2f} s")
    with ProcessPoolExecutor(1) as pool:
        report("peak memory of a worker", f"{pool.submit(worker_memory, str(corpus), 0).result():,.0f} MB")


def bench_scenes(folder: Path, backgrounds: int, rounds: int) -> None:
    """People on floors beside `render`, in turns: pixels, composed depth, and the plan."""
    plain, floor = folder / "plain", folder / "floor"
    composite(plain, parameters=Parameters(), max_backgrounds=backgrounds, pictures=False)
    started = time.perf_counter()
    composite(floor, parameters=Parameters(place="floor"), max_backgrounds=backgrounds, pictures=False)
    report(
        f"composite --place floor --no-pictures, {backgrounds} backgrounds", f"{time.perf_counter() - started:.1f} s"
    )
    random, scenes = Corpus(plain), Corpus(floor)
    memory = {name: np.empty((20, 224, 224, 3)[: 4 if name == "image" else 3], dtype) for name, dtype in DRAWN.items()}

    def rate(corpus: Corpus, draw: Callable[[np.ndarray], object]) -> float:
        blocks = [corpus.plan[i : i + 20] for i in range(0, min(len(corpus), 8000), 20)]
        started = time.perf_counter()
        for block in blocks:
            draw(block)
        return 20 * len(blocks) / (time.perf_counter() - started)

    def draw_with_depth(rows: np.ndarray) -> None:
        fields = ("image", "mask", "depth")
        scenes.draw(rows, fields, depths=person_depths(scenes, rows), out=memory)

    measured: list[tuple[float, ...]] = []
    for number in range(rounds + 1):
        both = rate(random, random.render), rate(scenes, lambda rows: scenes.draw(rows, out=memory))
        if number:  # the first reads the sources
            measured.append((*both, rate(scenes, draw_with_depth)))
    names = ("render, image and mask", "people on floors, image and mask", "the same with composed depth")
    for name, rates in zip(names, zip(*measured, strict=True), strict=True):
        report(name, f"{statistics.median(rates):,.0f} rows/s a core, rounds {', '.join(f'{r:,.0f}' for r in rates)}")
    started = time.perf_counter()
    result = pack(floor, folder / "recipe", recipe=True)
    seconds = time.perf_counter() - started
    report(
        "pack --recipe with composed depth",
        f"{result.rows / seconds:,.0f} rows/s, {(result.bytes or 0) / result.rows:,.0f} bytes a row",
    )


def bench_depth(folder: Path, rounds: int) -> None:
    """Labelling a corpus end to end against the bare network on the same batches, and where the rest goes."""
    import torch

    from dsgen.depth.label_corpus import drawn_size, label_corpus
    from dsgen.depth.labellers import DenseDepthLabeller, default_batch_size
    from dsgen.depth.networks import fold_batch_norms
    from dsgen.depth.weights import load_depth_model
    from dsgen.parallel.devices import pick_device

    corpus = folder / "depth"
    parameters = Parameters(positions=5)
    composite(corpus, parameters=parameters, max_backgrounds=4, max_foregrounds=40, pictures=False)
    device = pick_device("auto")
    model = load_depth_model()
    labeller = DenseDepthLabeller(model, device)
    opened = Corpus(corpus)
    size = default_batch_size(device)
    drawn = drawn_size(opened, labeller)
    labeller.precision = labeller.pick_precision(drawn, drawn)  # that of the labels
    image = labeller.prepare(opened.render(opened.plan[:size], drawn)[0])
    batch = image.to(device).float().div_(255)
    plain = model.network.to(device).to(memory_format=torch.channels_last)

    def rate(work: Callable[[], object], steps: int) -> float:
        started = time.perf_counter()
        with torch.inference_mode(), labeller._autocast():
            for _ in range(steps):
                work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return steps * size / (time.perf_counter() - started)

    folded = fold_batch_norms(model.network).to(device).to(memory_format=torch.channels_last)
    rate(lambda: folded(batch), 2)
    starts = range(0, len(opened), size)
    fed = [labeller.prepare(opened.render(opened.plan[first : first + size], drawn)[0]) for first in starts]

    def bare_rate() -> float:
        """Rows a second of the bare network on all batches of the corpus, each once."""
        left = iter(fed)
        return rate(lambda: folded(next(left).to(device).float().div_(255)), len(opened) // size)

    bare, unfolded, whole = [], [], []
    for _ in range(rounds):
        bare.append(bare_rate())
        unfolded.append(rate(lambda: plain(batch), 25))
        shutil.rmtree(corpus / layout.DEPTH, ignore_errors=True)
        whole.append(label_corpus(corpus).pictures_per_second)
    a, b = statistics.median(whole), statistics.median(bare)
    report("depth, end to end", f"{a:,.1f} pictures/s on {device}, drawn at {drawn}, fed at {image.shape[2]} pixels")
    report("the bare network, the same batches", f"{b:,.1f} pictures/s in {labeller.precision}")
    report("ratio", f"{a / b:.2f}, rounds {', '.join(f'{x / y:.2f}' for x, y in zip(whole, bare, strict=True))}")
    report("batch norms folded against not", f"{b / statistics.median(unfolded):.2f}")
    drawing = rate(lambda: labeller.prepare(opened.render(opened.plan[:size], drawn)[0]), 10)
    depth, _ = labeller(image, (drawn, drawn), (opened.size, opened.size))
    answering = rate(lambda: labeller(image, (drawn, drawn), (opened.size, opened.size)), 10)
    names = {"drawing": drawing, "network and enlarging": answering, "compression": compression_rate(depth)}
    report("each part alone", ", ".join(f"{name} {value:,.0f}/s" for name, value in names.items()))
    report("the bottleneck", min(names, key=names.__getitem__))


def compression_rate(depth_m: np.ndarray) -> float:
    """How many depth maps a second one core rounds and compresses as the labels are."""
    from numcodecs import Blosc

    from dsgen.units import to_millimetres

    codec = Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)
    started = time.perf_counter()
    for _ in range(10):
        codec.encode(to_millimetres(depth_m))
    return 10 * len(depth_m) / (time.perf_counter() - started)


def bench_store(folder: Path, processes: int) -> None:
    """Bytes a sample against JPEG, packing rate, and the loader's rate."""
    from dsgen.store.dataset import StoreDataset
    from dsgen.store.loader import Loader
    from dsgen.store.packing import pack

    corpus = folder / "store"
    composite(corpus, parameters=Parameters(), max_backgrounds=10, max_foregrounds=25, pictures=False)
    started = time.perf_counter()
    made = pack(corpus, folder / "shards", shards=6, jobs=processes)
    seconds = time.perf_counter() - started
    opened = Corpus(corpus)
    some = opened.plan[:: max(1, len(opened) // 500)]
    jpeg = statistics.mean(len(images.encode_jpeg(picture)) for picture in opened.render(some)[0])
    report("store, image bytes a sample", f"{made.image_bytes_per_row:,} (lossless)")
    report("the same as quality-95 JPEG", f"{jpeg:,.0f}")
    report("ratio", f"{made.image_bytes_per_row / jpeg:.2f}")
    report("pack", f"{made.rows / seconds:,.0f} rows/s with {processes} processes")
    for workers in (0, 2):
        loader = Loader(folder / "shards", split=None, batch_size=32, workers=workers)
        for label in ("first pass", "second pass"):
            started = time.perf_counter()
            rows = sum(len(batch["row"]) for batch in loader)
            rate = rows / (time.perf_counter() - started)
            report(f"loader, {workers} workers, {label}", f"{rate:,.0f} samples/s in shuffled batches of 32")
    dataset = StoreDataset(folder / "shards", split=None)
    shuffled = np.random.default_rng(0).permutation(len(dataset))[:1000].tolist()
    for label, order in (("in order", list(range(3000))), ("shuffled", shuffled)):
        started = time.perf_counter()
        for row in order:
            dataset[row]
        report(f"StoreDataset, {label}", f"{len(order) / (time.perf_counter() - started):,.0f} samples/s")


def bench_compact(folder: Path, processes: int, rounds: int) -> None:
    """Compact stores beside others, in turns: bytes, packing, and decoding rows on one core."""
    from dsgen.depth.label_corpus import label_corpus
    from dsgen.store.packing import pack
    from dsgen.store.reader import Store

    corpus = folder / "labelled"
    composite(corpus, parameters=Parameters(label_size=224), max_backgrounds=10, max_foregrounds=5, pictures=False)
    label_corpus(corpus)
    kinds, fields = {"plain": False, "compact": True}, ("image", "mask", "depth")
    packed: dict[str, list[float]] = {kind: [] for kind in kinds}
    decoded: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(rounds + 1):
        for kind, compact in kinds.items():
            shutil.rmtree(folder / kind, ignore_errors=True)
            started = time.perf_counter()
            pack(corpus, folder / kind, jobs=processes, compact=compact)
            packed[kind].append(time.perf_counter() - started)
        stores = {kind: Store(folder / kind) for kind in kinds}
        for kind, store in stores.items():
            memory = {name: np.empty((20, 224, 224, 3)[: 4 if name == "image" else 3], DRAWN[name]) for name in fields}
            started = time.perf_counter()
            for shard in store.shards:
                for start in range(0, shard.rows, shard.chunk):
                    shard.samples(start, min(start + shard.chunk, shard.rows), fields, memory)
            decoded[kind].append(time.perf_counter() - started)
        if not number:  # reads what later rounds find in memory
            packed, decoded = ({kind: [] for kind in kinds} for _ in range(2))
    rows = store.rows
    for kind in kinds:
        sizes = {path: path.stat().st_size for path in (folder / kind).rglob("*") if path.is_file()}
        depth, whole = sum(size for path, size in sizes.items() if "depth" in path.parts), sum(sizes.values())
        report(f"{kind} store, depth of a row, all of a row", f"{depth / rows:,.0f}, {whole / rows:,.0f} bytes")
        report(f"{kind} store, rows packed", f"{rows / statistics.median(packed[kind]):,.0f} rows/s")
        report(f"{kind} store, rows decoded on one core", f"{rows / statistics.median(decoded[kind]):,.0f} rows/s")
    for what, times in (("packed", packed), ("decoded", decoded)):
        ratios = [plain / compact for plain, compact in zip(times["plain"], times["compact"], strict=True)]
        told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        report(f"compact against plain, rows {what}", f"{statistics.median(ratios):.2f} times (rounds {told})")


def report(what: str, value: str) -> None:
    """Print a line of the result and keep it."""
    REPORTED.append((what, value))
    print(f"{what:<50}{value}", flush=True)


def main() -> None:
    """Run the measurements chosen, in a temporary folder below `--folder`, which git ignores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "chosen", nargs="*", default=["composite", "scenes", "depth", "store", "compact", "unet"], metavar="what"
    )
    parser.add_argument("--backgrounds", type=int, default=8, help="number of backgrounds, for composite")
    parser.add_argument("--processes", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="for each side and round, for unet")
    parser.add_argument("--folder", default="bench", help="where to write; created if missing")
    parser.add_argument("--write", action="store_true", help="put the results into the README beside this file")
    arguments = parser.parse_args()
    Path(arguments.folder).mkdir(exist_ok=True)
    if "composite" in arguments.chosen:
        memory = ["/dev/shm"] if Path("/dev/shm").is_dir() else []
        for parent in [*memory, arguments.folder]:
            with tempfile.TemporaryDirectory(dir=parent) as temporary:
                report("picture files", "in memory" if parent in memory else "on disk")
                bench_composite(Path(temporary), arguments.backgrounds, arguments.processes, arguments.rounds)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        if "scenes" in arguments.chosen:
            bench_scenes(folder, arguments.backgrounds, arguments.rounds)
        if "depth" in arguments.chosen:
            bench_depth(folder, arguments.rounds)
        if "store" in arguments.chosen:
            bench_store(folder, arguments.processes)
        if "compact" in arguments.chosen:
            bench_compact(folder, arguments.processes, arguments.rounds)
        if "unet" in arguments.chosen:
            from bench_unet import bench_unet

            for what, value in bench_unet(folder, arguments.rounds, arguments.seconds):
                report(what, value)
    if arguments.write:
        rows = [f"| {what} | {value} |" for what, value in REPORTED]
        replace_section("bench", [f"{circumstances(PACKAGES)}:", "", "| what | measured |", "|---|---|", *rows])


if __name__ == "__main__":
    main()
