"""The bundled pictures and weights."""

from pathlib import Path

from dsgen.errors import NotFoundError


def asset(name: str) -> Path:
    """Return the path of a bundled file or folder: in the package if installed from a wheel, else in the checkout.

    Raises `NotFoundError` if the installation lacks it.
    """
    package = Path(__file__).parent.parent
    for root in (package / "assets", package.parent / "assets"):
        if (root / name).exists():
            return root / name
    raise NotFoundError(
        f"bundled {name!r}", f"missing from this installation, expected it in {package / 'assets'}", "reinstall dsgen"
    )
