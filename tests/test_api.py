"""The public API: every name imports, lazily, and says what it takes and returns."""

import inspect
import subprocess
import sys

import pytest

import dsgen
from dsgen.errors import DsgenError

HEAVY = ("torch", "zarr", "cv2", "timm", "matplotlib", "numpy")


def test_importing_dsgen_loads_nothing_heavy() -> None:
    """Neither does looking at what there is."""
    code = f"import sys, dsgen; dir(dsgen); print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_all_is_complete_and_in_order() -> None:
    """`__all__` names what `__getattr__` knows, sorted."""
    assert sorted(dsgen._HOMES) == sorted(dsgen.__all__)
    assert set(dsgen.__all__) <= set(dir(dsgen))


@pytest.mark.parametrize("name", dsgen.__all__)
def test_every_public_name_imports_and_is_documented(name: str) -> None:
    """A docstring with an example, and what is raised where a `DsgenError` can be."""
    thing = getattr(dsgen, name)
    doc = inspect.getdoc(thing) or ""
    assert ">>> " in doc, f"dsgen.{name} has no example"
    if inspect.isfunction(thing):
        assert "Raises" in doc, f"dsgen.{name} does not say what it raises"


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As with any module."""
    with pytest.raises(AttributeError, match="has no attribute 'compsite'"):
        dsgen.compsite  # noqa: B018


def test_the_error_tree_hangs_from_the_public_error() -> None:
    """One `except dsgen.DsgenError` catches all that a user can put right."""
    assert dsgen.DsgenError is DsgenError
