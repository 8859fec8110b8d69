"""Damaged metadata: whatever a file holds, its readers end well or with a `DsgenError`, soon, in bounded memory."""

import sys
import warnings
from pathlib import Path

import pytest
from support.fuzz import MEMORY, Target, run_cases
from support.fuzz_targets import corpus_targets, make_targets

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux")
SAMPLE, FULL = range(1, 2), range(1000)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> list[Target]:
    """Every metadata file of a store, of what is made from one, and of weights, runs and settings."""
    return make_targets(tmp_path_factory.mktemp("targets"), labelled_corpus)


def _failures(targets: list[Target], numbers: range, scratch: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [case for target in targets for case in run_cases(target, numbers, scratch)]
    assert len(cases) == len(numbers) * len(targets)
    assert max(case.peak_bytes for case in cases) < MEMORY
    return [
        f"{case.target} {case.number}: {case.outcome}\n{case.detail}"
        for case in cases
        if case.outcome not in ("read", "refused")
    ]


def test_a_sample_of_damage_is_refused_or_read(targets, tmp_path):
    """One kind of damage to every file."""
    assert _failures(targets, SAMPLE, tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_damage_is_refused_or_read(targets, tmp_path):
    """A thousand kinds of damage to every file."""
    assert _failures(targets, FULL, tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_damage_to_a_corpus_is_refused_or_read(tmp_path, pictures, labelled_corpus):
    """The files of a corpus and of its labels."""
    targets = corpus_targets(tmp_path / "targets", pictures, labelled_corpus)
    assert _failures(targets, FULL, tmp_path) == []
