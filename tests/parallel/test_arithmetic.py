"""Which arithmetic is faster here: measured by turns, remembered, and never in the way."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dsgen.parallel import arithmetic
from dsgen.parallel.arithmetic import faster_precision, measure

FED = (3, 64, 64)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dsgen" / "arithmetic"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only `network` advances."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def network(clock: list[float], calls: list[str], **seconds: float) -> Callable[[str, int], None]:
    """Return a network that takes so many seconds a picture, and twice as many the first time."""

    def run(precision: str, count: int) -> None:
        clock[0] += seconds[precision] * count * (1 if precision in calls else 2)
        calls.append(precision)

    return run


@pytest.mark.parametrize(("bf16", "chosen"), [(0.005, "bf16"), (0.0092, "float32"), (0.01, "float32"), (9, "float32")])
def test_bfloat16_must_be_clearly_faster(clock: list[float], bf16: float, chosen: str):
    """A tenth at least; warming up does not count."""
    assert faster_precision(network(clock, [], float32=0.01, bf16=bf16), "n", FED) == chosen


def test_measuring_takes_about_a_second(clock: list[float]):
    """Several rounds of a fast network, one picture each of a slow one, and no more of what is hopeless."""
    calls: list[str] = []
    found = measure(network(clock, calls, float32=0.01, bf16=0.02))
    assert (found["float32"], found["bf16"]) == pytest.approx((0.01, 0.02))
    assert (len(calls), clock[0]) == (10, pytest.approx(0.03 + 0.06 + 3 * 0.3))
    for bf16 in (2.0, 40.0):
        calls.clear()
        measure(network(clock, calls, float32=2.0, bf16=bf16))
        assert calls == ["float32", "float32", "bf16", "bf16"]


def test_what_was_measured_is_remembered(clock: list[float], cache: Path, monkeypatch: pytest.MonkeyPatch):
    """For this network, size, number of threads, torch and processor; a damaged file is measured again."""
    calls: list[str] = []
    run = network(clock, calls, float32=0.01, bf16=0.005)

    def measured(name: str = "n", fed: tuple[int, ...] = FED) -> bool:
        calls.clear()
        assert faster_precision(run, name, fed) == "bf16"
        return bool(calls)

    assert measured()
    assert not measured()
    (file,) = cache.iterdir()
    for content in (b"", b"{}", b'{"measured": {}, "seconds": {"float32": 1.0, "bf16": 2.0}}', b"[[[["):
        file.write_bytes(content)
        assert measured()
        assert not measured()
    assert measured("other")
    assert measured(fed=(3, 96, 64))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert measured()
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert measured()
    monkeypatch.setattr(arithmetic, "processor", lambda: "another")
    assert measured()


def test_a_cache_that_cannot_be_written_is_no_matter(
    clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Neither a file in its place nor a user without a home stops the work."""
    run = network(clock, [], float32=0.01, bf16=0.005)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert faster_precision(run, "n", FED) == "bf16"
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert faster_precision(run, "n", FED) == "bf16"


def test_a_network_that_bfloat16_breaks_is_for_float32(cache: Path):
    """That is not remembered: it costs nothing to find out."""

    def run(precision: str, _: int) -> None:
        if precision == "bf16":
            raise RuntimeError('"upsample" not implemented for BFloat16')

    assert faster_precision(run, "n", FED) == "float32"
    assert not cache.exists()


def test_the_processor_has_a_name():
    """It tells apart processors of one name that can do different things."""
    assert torch.backends.cpu.get_cpu_capability() in arithmetic.processor()
