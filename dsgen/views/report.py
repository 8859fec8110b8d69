"""Report on a store: a data sheet in one HTML file, which loads nothing else.

It opens in any browser, from a mail attachment too. Names are escaped, pictures are part of the file, and there is no
script in it. The same store at the same place gives the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsgen import __version__
from dsgen.corpus.placement import FLOOR
from dsgen.corpus.plan import SPLITS
from dsgen.errors import InvalidValueError, NotFoundError, printable
from dsgen.io import images
from dsgen.io.atomic import write_bytes
from dsgen.io.filesystem import is_url
from dsgen.secrets import hide_secrets
from dsgen.store.reader import Store
from dsgen.units import MIN_DEPTH_M
from dsgen.views import charts
from dsgen.views.answers import answer_all
from dsgen.views.info import StoreInfo, describe_opened_store
from dsgen.views.provenance import Provenance, find_provenance
from dsgen.views.survey import DISTANCE_STEP_MM, Depths, Masks, People, Survey, Use, read_plan, read_row, survey

_SUFFIXES = (".html", ".htm")
_BARS = 40
_STEPS_M = (0.05, 0.1, 0.2, 0.25, 0.5, 1.0)
_MAP_SIDE = 56
_DRAWN_USE = 1000  # pictures beyond which no chart of their use is drawn
_LISTED = 1000  # names in a list
_PARAMETERS = {  # of a corpus, in words
    "place": "placement",
    "people": "people in a picture",
    "positions": "positions of each pair",
    "flip": "mirror images too",
    "fg_height": "height of foregrounds, pixels",
    "spread": "spread over the floor",
    "min_visible": "least share of a person in view",
    "truncate": "people may stick out of the picture",
    "without_floor": "backgrounds without a floor",
    "height_jitter": "heights vary by",
    "tilt": "tilt, degrees to either side",
    "shadow": "shadows on the floor",
    "match_colours": "colours matched",
    "feather": "edges softened, pixels",
    "blend": "blended by",
    "split_by": "split by",
    "validation_share": "share of pictures for validation",
    "test_share": "share of pictures for testing",
    "skip_unused": "unused rows left out",
    "label_size": "side at which depth is labelled, pixels",
    "seed": "seed",
}
_VALUES = {  # of parameters, in words
    "place": {"random": "at random places", "floor": "on the floor"},
    "spread": {"area": "evenly over its square metres", "pixels": "evenly over its pixels"},
    "without_floor": {"random": "people at random places", "leave-out": "left out"},
    "split_by": {"both": "both pictures", "background": "the background", "foreground": "the foreground"},
    **{key: {"0": "none"} for key in ("height_jitter", "tilt", "shadow", "match_colours", "feather")},
    **{key: {"True": "yes", "False": "no"} for key in ("flip", "truncate", "skip_unused")},
}
_ON_FLOORS = ("spread", "min_visible", "truncate", "without_floor", "height_jitter", "shadow")


@dataclass(frozen=True)
class ReportResult:
    """What `report` wrote: the file and its bytes, and of how many of the store's rows pixels were counted."""

    out: Path
    bytes: int
    store: str
    rows: int
    sampled_rows: int


@dataclass(frozen=True)
class Chart:
    """A picture for the page: its address, which holds it, and what it shows in words."""

    address: str
    alt: str


@dataclass(frozen=True)
class ShownRow:
    """A row on the page."""

    row: int
    picture: Chart
    caption: str


def report(store: Path | str, out: Path = Path("report.html")) -> ReportResult:
    """Write a data sheet for a store, in a folder or at a URL, as one HTML file; an existing file is replaced.

    Raises `InvalidValueError` for a name that does not end in .html, `NotFoundError` where there is no store or no
    folder for the file, and `DamagedError` for rows that cannot be read.

    >>> report("shards", Path("report.html")).sampled_rows  # doctest: +SKIP
    1000
    """
    if out.suffix.lower() not in _SUFFIXES:
        raise InvalidValueError("OUT", f"got {out}, expected a name ending in .html")
    if out.is_dir():
        raise InvalidValueError("OUT", f"{out} is a folder, expected a file", "choose another name")
    if not out.absolute().parent.is_dir():
        raise NotFoundError(out.parent, f"no such folder, expected the one for {out.name}", "make it, or change OUT")
    opened = Store(store)
    found = survey(opened)
    content = render_page(opened, found).encode()
    write_bytes(out, content)
    return ReportResult(out, len(content), str(store), opened.rows, len(found.sampled))


def render_page(store: Store, found: Survey) -> str:
    """Return the page about a store, as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dsgen.views", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"printable": printable, "number": lambda value: f"{value:,}"}
    return environment.get_template("report.html").render(**_gather(store, found))


def _gather(store: Store, found: Survey) -> dict[str, Any]:
    """Return what the page shows, by the names in its template."""
    info = describe_opened_store(store)
    provenance = find_provenance(store, found.foregrounds)
    plan = read_plan(store, (row for rows in found.shown.values() for row in rows))
    far_m = None
    if found.depths is not None:
        far_m = max(MIN_DEPTH_M, found.depths.percentile_m(99.5) or 0.0)
    return {
        "title": _name(store.path),
        "version": __version__,
        "info": info,
        "sha256": store.sha256,
        "sampled": len(found.sampled),
        "facts": _list_facts(store, info),
        "parameters": _list_parameters(store),
        "splits": _describe_splits(store, found),
        "sheets": {
            name: [_show_row(store, row, plan[row], far_m) for row in rows] for name, rows in found.shown.items()
        },
        "tiles": _name_tiles(store),
        "scale": None
        if far_m is None
        else Chart(charts.draw_depth_scale(far_m), f"Colours of depth, 0 to {far_m:.1f} m"),
        "masks": found.masks and _describe_masks(found.masks, store),
        "depths": found.depths and _describe_depths(found.depths),
        "people": found.people and _describe_people(found.people),
        "use": {
            kind: _describe_use(use, kind)
            for kind, use in (("backgrounds", found.backgrounds), ("foregrounds", found.foregrounds))
            if use is not None
        },
        "split_names": SPLITS,
        "statistics": _list_statistics(info),
        "answers": answer_all(store, found, provenance),
        "provenance": provenance,
        "names": _list_names(provenance),
        "listed": _LISTED,
    }


def _name(path: Path | str) -> str:
    """Return the last part of the path or URL of a store, its name for people."""
    if is_url(path):
        return hide_secrets(str(path)).rstrip("/").rpartition("/")[2]
    return Path(path).absolute().name or "store"


def _list_facts(store: Store, info: StoreInfo) -> dict[str, str]:
    """Return what there is to say of a store at a glance, by name."""
    kinds = {
        "pixels": "composites, stored as pixels",
        "recipe": "composites, stored as a recipe and drawn when they are read",
        "pictures": "pictures packed from files",
    }
    facts = {
        "content": kinds[info.content] + (", in zip files" if info.zipped else ""),
        "rows": f"{info.rows:,}",
        "size": f"{info.size} x {info.size} pixels",
        "fields": ", ".join(info.fields),
        "shards": f"{info.shards:,}",
        "bytes": f"{info.bytes:,}, {info.bytes / info.rows / 1000:,.1f} kB a row",
        "depth by": info.depth_from or ("files" if "depth" in info.fields else "no depth"),
        "made by": f"dsgen {store.index['dsgen']}",
        "SHA-256 of index.json": store.sha256,
    }
    corpus = store.index["made_from"].get("corpus_sha256")
    return facts | ({"SHA-256 of the corpus": str(corpus)} if corpus else {})


def _list_parameters(store: Store) -> dict[str, str]:
    """Return the parameters that the rows were made with, in words; those of the mode alone."""
    made_from = store.index["made_from"]
    parameters = made_from.get("parameters")
    if parameters is None:
        names = ("seed", "validation_share", "test_share")
        return {_PARAMETERS[name]: _in_words(name, made_from[name]) for name in names if name in made_from}
    on_floor = parameters.get("place") == FLOOR
    values = {"place": "random"} | parameters
    hidden = ("fg_height",) if on_floor else _ON_FLOORS
    return {
        words: _in_words(name, values[name])
        for name, words in _PARAMETERS.items()
        if name in values and name not in hidden
    }


def _in_words(name: str, value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return _VALUES.get(name, {}).get(text, text)


def _describe_splits(store: Store, found: Survey) -> list[dict[str, Any]]:
    """Return for every split its rows, their share, and how many backgrounds and foregrounds they show."""
    return [
        {
            "name": name,
            "rows": store.splits[name],
            "share": store.splits[name] / store.rows,
            "backgrounds": found.backgrounds and found.backgrounds.pictures_of(name),
            "foregrounds": found.foregrounds and found.foregrounds.pictures_of(name),
        }
        for name in SPLITS
        if store.splits.get(name)
    ]


def _name_tiles(store: Store) -> list[str]:
    """Name what a row of the sheets shows, from left to right."""
    words = {"image": "picture", "mask": "mask in colour", "depth": "depth, grey where there is none"}
    return [text for name, text in words.items() if name in store.fields]


def _show_row(store: Store, row: int, planned: np.void, far_m: float | None) -> ShownRow:
    fields = tuple(name for name in ("image", "mask", "instance", "depth") if name in store.fields)
    sample = read_row(store, row, fields)
    caption = f"row {row:,}: {_name_pictures(store, row, planned)}"
    told = [f"Row {row}", *_name_tiles(store)]
    if "mask" in sample:
        told.append(f"mask {np.count_nonzero(sample['mask']) / sample['mask'].size:.1%} of the picture")
    if "depth" in sample and sample["depth"].any():
        known = sample["depth"][sample["depth"] > 0] / 1000
        told.append(f"depth {known.min():.1f} to {known.max():.1f} m")
    return ShownRow(row, Chart(charts.draw_row(sample, far_m), ", ".join(told)), caption)


def _name_pictures(store: Store, row: int, planned: np.void) -> str:
    """Name what a row was made from."""
    attributes = store.shards[0].attributes
    if attributes.get("pictures"):
        return str(attributes["pictures"][row])
    people = planned["people"] if "people" in (planned.dtype.names or ()) else [planned]
    names = [
        _name_person(attributes["foregrounds"], person)
        for person in people
        if "height" not in (person.dtype.names or ()) or person["height"]
    ]
    return " + ".join([str(attributes["backgrounds"][int(planned["background"])]["name"]), *names])


def _name_person(foregrounds: list[dict[str, Any]], person: Any) -> str:
    name = str(foregrounds[int(person["foreground"])]["name"])
    known = "distance" in (person.dtype.names or ()) and person["distance"]
    return f"{name} at {person['distance'] / 1000:.2f} m" if known else name


def _describe_masks(masks: Masks, store: Store) -> dict[str, Any]:
    shares = masks.shares
    top = max(float(shares.max()), 1e-3)
    edges = np.linspace(0, top, _BARS + 1)
    counts = np.histogram(shares[shares > 0], edges)[0]
    side = min(_MAP_SIDE, store.size)
    where = images.resize((masks.where / len(shares)).astype(np.float32), side, side)
    low, middle, high = np.percentile(shares, (5, 50, 95))
    return {
        "mean": float(shares.mean()),
        "low": low,
        "middle": middle,
        "high": high,
        "empty": masks.empty,
        "rows": len(shares),
        "sizes": Chart(
            charts.draw_bars(edges, counts, "share of the picture that the mask covers", "rows", percent=True),
            f"Histogram of mask sizes: 5th, 50th, 95th percentile {low:.1%}, {middle:.1%}, {high:.1%} of the picture",
        ),
        "where": Chart(
            charts.draw_map(where, "share of rows with a mask here", percent=True),
            f"Map of the picture: a mask covers a place in at most {where.max():.1%} of the rows",
        ),
    }


def _describe_depths(depths: Depths) -> dict[str, Any]:
    low, middle, high = (depths.percentile_m(percent) for percent in (1, 50, 99))
    described = {"without": depths.share_without, "low": low, "middle": middle, "high": high, "chart": None}
    if low is None or middle is None or high is None:
        return described
    last_m = (np.flatnonzero(depths.pixels)[-1] + 1) / 1000
    step_m = next((step for step in _STEPS_M if last_m / step <= _BARS * 2), _STEPS_M[-1])
    step_mm = round(step_m * 1000)
    known = depths.pixels.copy()
    known[0] = 0
    counts = np.add.reduceat(known, np.arange(0, len(known), step_mm))[: int(np.ceil(last_m / step_m))]
    edges = np.arange(len(counts) + 1) * step_m
    alt = f"Histogram of depth: 1st, 50th and 99th percentile {low:.2f}, {middle:.2f} and {high:.2f} m"
    return described | {"chart": Chart(charts.draw_bars(edges, counts, "depth, m", "pixels"), alt)}


def _describe_people(people: People) -> dict[str, Any]:
    per_row = np.array(people.per_row)
    described: dict[str, Any] = {
        "per_row": {number: count for number, count in enumerate(people.per_row) if count},
        "placed": int(per_row @ np.arange(len(per_row))),
        "rows_without": people.rows_without,
        "unknown": people.unknown,
        "median_m": people.median_m,
        "distances": None,
        "feet": None,
        "feet_below": people.feet_below,
    }
    if people.distances.any():
        first, last = np.flatnonzero(people.distances)[[0, -1]].tolist()
        edges = np.arange(first, last + 2) * DISTANCE_STEP_MM / 1000
        described["distances"] = Chart(
            charts.draw_bars(edges, people.distances[first : last + 1], "distance, m", "people"),
            f"Histogram of distances: from {edges[0]:g} to {edges[-1]:g} m, median {people.median_m:.2f} m",
        )
    if people.feet is not None and people.feet.any():
        described["feet"] = Chart(
            charts.draw_map(people.feet, "people whose feet are here"),
            f"Map of the picture: feet of {int(people.feet.sum()):,} people",
        )
    return described


def _describe_use(use: Use, kind: str) -> dict[str, Any]:
    total = use.total
    least, most = int(total.min()), int(total.max())
    chart = None
    if 1 < len(use.names) <= _DRAWN_USE:
        chart = Chart(
            charts.draw_use(use.rows, SPLITS, f"number of the {kind[:-1]}"),
            f"Chart of how often each of {len(use.names)} {kind} is used, by split: {least:,} to {most:,} times",
        )
    rows = zip(use.names[:_LISTED], use.rows[:_LISTED].tolist(), total[:_LISTED].tolist(), strict=True)
    return {
        "count": len(use.names),
        "least": least,
        "most": most,
        "never": int(np.count_nonzero(total == 0)),
        "shared": use.shared,
        "chart": chart,
        "table": list(rows),
    }


def _list_statistics(info: StoreInfo) -> list[tuple[str, str, str]]:
    """Return field, mean and deviation, in the order of the channels; nothing for a field without values."""
    units: Mapping[str, str] = {"depth": " m"}

    def write(field: str, values: list[float] | None) -> str:
        return "none" if values is None else " ".join(f"{value:.4f}" for value in values) + units.get(field, "")

    return [(field, write(field, each["mean"]), write(field, each["std"])) for field, each in info.statistics.items()]


def _list_names(provenance: Provenance) -> dict[str, list[tuple[str, str, str]]]:
    """Return name, source and hash of every picture, by kind; of very many the first."""
    names = {
        kind: [
            (picture.name, "bundled" if picture.bundled else picture.file or "own", picture.sha256)
            for picture in pictures[:_LISTED]
        ]
        for kind, pictures in (("backgrounds", provenance.backgrounds), ("foregrounds", provenance.foregrounds))
    }
    names["pictures"] = [(name, "own", "") for name in provenance.pictures[:_LISTED]]
    return {kind: listed for kind, listed in names.items() if listed}
