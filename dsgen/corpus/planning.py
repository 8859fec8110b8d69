"""The plan of a corpus, from what its manifest records, its sources and its rooms; made by `composite`, and by `verify`
to compare.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dsgen.corpus.looks import BLENDS
from dsgen.corpus.manifest import parse_range
from dsgen.corpus.placement import FLOOR, Rules, Silhouette, place_people
from dsgen.corpus.plan import SPLITS, make_plan
from dsgen.errors import DsgenError

if TYPE_CHECKING:
    from dsgen.corpus.manifest import PictureRecord
    from dsgen.corpus.rooms import Rooms

LEAVE_OUT = "leave-out"
_SHOWN = 5  # names in a message
log = logging.getLogger("dsgen")


def plan_rows(
    parameters: Mapping[str, Any],
    backgrounds: "Sequence[PictureRecord]",
    foregrounds: "Sequence[PictureRecord]",
    shapes: np.ndarray,
    figures: Iterator[np.ndarray] | None = None,
    rooms: "Rooms | None" = None,
    *,
    quiet: bool = False,
) -> np.ndarray:
    """Return the plan for parameters by name, and records of the pictures as `corpus.json` has them.

    `shapes` (f,2) are the foregrounds' heights and widths at the stored size. `figures` yields all cut-outs,
    (h,w,4) u1, if people have places of their own; `rooms` is needed where they stand on floors. Unless `quiet`,
    warnings tell which backgrounds have no floor, and how many rows show too little of their foreground.

    Raises `DsgenError` if no background has a floor and those without are left out.
    """
    names = [record["name"] for record in backgrounds], [record["name"] for record in foregrounds]
    plan = make_plan(
        *names,
        shapes,
        size=parameters["size"],
        positions=parameters["positions"],
        flip=parameters["flip"],
        seed=parameters["seed"],
        validation_share=parameters["validation_share"],
        test_share=parameters["test_share"],
        split_by=parameters["split_by"],
        skip_unused=parameters["skip_unused"],
    )
    if figures is None:
        return plan
    least, most = parse_range(parameters["people"])
    heights = parse_range(parameters["fg_height"])
    rules = Rules(
        place=parameters["place"],
        least_people=least,
        most_people=most,
        spread=parameters["spread"],
        min_visible=parameters["min_visible"],
        truncate=parameters["truncate"],
        least_height=heights[0],
        most_height=heights[1],
        tilt_deg=parameters["tilt"],
        height_jitter=parameters["height_jitter"],
        blends=tuple(BLENDS.index(name) for name in parameters["blend"].split(",")),
    )
    if rooms is not None and rules.place == FLOOR:
        plan = _without_floorless(plan, rooms, parameters["without_floor"], quiet)
    groups = np.array([SPLITS.index(record["split"]) for record in foregrounds])
    if parameters["split_by"] == "background":  # then foregrounds are shared by all splits
        groups[:] = 0
    placed = place_people(
        plan,
        *names,
        [Silhouette.of(figure) for figure in figures],
        [record["height_m"] for record in foregrounds],
        groups,
        rooms,
        rules,
        parameters["size"],
        parameters["seed"],
    )
    if placed.little_visible and not quiet:
        log.warning(
            "%s of %s rows show less of their foreground than --min-visible %g: no better place was found; use a "
            "smaller share, other backgrounds, or --truncate",
            f"{placed.little_visible:,}",
            f"{len(plan):,}",
            rules.min_visible,
        )
    if placed.too_few and not quiet:
        log.warning(
            "%s of %s rows have fewer people than --people %s: their split has too few foregrounds, or there was no "
            "room; use more foregrounds, or --split-by background",
            f"{placed.too_few:,}",
            f"{len(plan):,}",
            parameters["people"],
        )
    return placed.plan


def _without_floorless(plan: np.ndarray, rooms: "Rooms", without_floor: str, quiet: bool) -> np.ndarray:
    """Return the plan without the rows of backgrounds that have no floor, if these are left out; say which they are."""
    lacking = rooms.without_floor()
    if not lacking:
        return plan
    shown = ", ".join(lacking[:_SHOWN]) + (", ..." if len(lacking) > _SHOWN else "")
    left_out = without_floor == LEAVE_OUT
    if not quiet:
        log.warning(
            "no floor found in %s of %s backgrounds (%s): %s",
            f"{len(lacking):,}",
            f"{len(rooms.records):,}",
            shown,
            "they are left out" if left_out else "people are put at random places there (--without-floor)",
        )
    if not left_out:
        return plan
    if len(lacking) == len(rooms.records):
        raise DsgenError(
            "--without-floor leave-out",
            "no background has a floor",
            "use others, or give their depth and field of view",
        )
    has_floor = np.array(["floor" in record for record in rooms.records])
    return plan[has_floor[plan["background"]]]
