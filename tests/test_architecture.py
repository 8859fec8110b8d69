"""Which package may import which: the contracts in pyproject.toml, held to the source."""

from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

CHECKOUT = Path(__file__).parent.parent


def test_imports_keep_to_the_layers(capsys: pytest.CaptureFixture[str]) -> None:
    """The packages are layers, and no stage imports another: so any stage can be understood and replaced by itself."""
    status = lint_imports(str(CHECKOUT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out
