"""Which arithmetic is faster for a network on this machine's CPU: measured once, then remembered.

The answer does not follow from the processor: with AVX-512 BF16 one network is twice as fast in bfloat16, and another
five times slower. What was measured is kept in the user's cache folder:

    arithmetic/HASH.json        {"measured": what the hash is of, "seconds": {"float32": of a picture, "bf16": ...}}
"""

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt
from typing_extensions import TypedDict

from dsgen.errors import DsgenError
from dsgen.io.atomic import write_json
from dsgen.io.json_files import read_as
from dsgen.io.user_cache import user_cache

FLOAT32, BF16 = "float32", "bf16"
CLEARLY_FASTER = 1.1  # times as fast as float32 bfloat16 must be to be chosen: it is less exact
_HOPELESS = 3.0  # times as long as float32; no more is measured then
_BATCH_S = 0.1  # a batch has as many pictures as float32 does in this time, at most `_BATCH` and at least one
_BATCH, _ROUNDS, _BUDGET_S = 16, 3, 1.0

# runs the network on so many pictures in a precision
Run = Callable[[str, int], object]

log = logging.getLogger("dsgen")


class _Seconds(TypedDict):
    float32: Annotated[float, Gt(0)]
    bf16: Annotated[float, Gt(0)]


class _Measured(TypedDict):
    measured: dict[str, Any]
    seconds: _Seconds


def faster_precision(run: Run, network: str, fed: tuple[int, ...]) -> str:
    """Return "bf16" if the network is clearly faster in bfloat16 on this CPU, else "float32".

    `network` names the network and its weights, `fed` is the shape of a picture as it is fed. What was measured before,
    with the same processor, torch and number of threads, is not measured again. A network that fails in bfloat16 is for
    float32.
    """
    measured: dict[str, Any] = {
        "processor": processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "network": network,
        "fed": list(fed),
    }
    seconds = _recall(measured)
    if seconds is None:
        try:
            seconds = measure(run)
        except (RuntimeError, TypeError) as error:
            log.debug("--precision auto: float32, as bfloat16 fails (%s)", error)
            return FLOAT32
        _remember(measured, seconds)
    times = seconds["float32"] / seconds["bf16"]
    chosen = BF16 if times >= CLEARLY_FASTER else FLOAT32
    log.info("--precision auto: %s, bfloat16 is %.2f times as fast as float32 here", chosen, times)
    return chosen


def measure(run: Run) -> _Seconds:
    """Measure the seconds a picture takes in both precisions, the best of a few rounds; about a second in all."""
    started = time.perf_counter()
    first: dict[str, float] = {}
    for precision in (FLOAT32, BF16):
        run(precision, 1)  # prepares kernels and memory
        first[precision] = _time(run, precision, 1)
    best = first
    count = max(1, min(_BATCH, int(_BATCH_S / first[FLOAT32])))
    for _ in range(_ROUNDS if first[BF16] < _HOPELESS * first[FLOAT32] else 0):
        if time.perf_counter() - started > _BUDGET_S:
            break
        best = {precision: min(seconds, _time(run, precision, count)) for precision, seconds in best.items()}
    return {"float32": best[FLOAT32], "bf16": best[BF16]}


def _time(run: Run, precision: str, count: int) -> float:
    started = time.perf_counter()
    run(precision, count)
    return max(time.perf_counter() - started, 1e-9) / count


@cache
def processor() -> str:
    """Name the processor, with what it can do."""
    lines: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            lines.setdefault(name.strip(), value.strip())
    except OSError:  # not Linux
        pass
    name = lines.get("model name") or platform.processor() or platform.machine()
    flags = lines.get("flags") or lines.get("Features") or ""
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {hashlib.sha256(flags.encode()).hexdigest()[:16]}"


def _path(measured: dict[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()
    return user_cache() / "arithmetic" / f"{name}.json"


def _recall(measured: dict[str, Any]) -> _Seconds | None:
    """Return what was measured before, or None; a damaged file is as good as none."""
    try:
        found = read_as(_Measured, _path(measured))
    except (OSError, RuntimeError, ValueError, DsgenError):
        return None
    return found["seconds"] if found["measured"] == measured else None


def _remember(measured: dict[str, Any], seconds: _Seconds) -> None:
    """Keep what was measured, wherever that can be done."""
    try:
        path = _path(measured)
        os.makedirs(path.parent, exist_ok=True)
        write_json(path, {"measured": measured, "seconds": seconds})
    except (OSError, RuntimeError) as error:
        log.debug("what was measured is not kept (%s)", error)
