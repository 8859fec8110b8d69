"""The bundled pictures and weights."""

from pathlib import Path

from dsgen.errors import DsgenError


def asset(name: str) -> Path:
    """Return a bundled file or folder: inside the package when installed from a wheel, else in the checkout."""
    package = Path(__file__).parent.parent
    for root in (package / "assets", package.parent / "assets"):
        if (root / name).exists():
            return root / name
    raise DsgenError(
        f"bundled {name!r}", f"not part of this installation, expected it in {package / 'assets'}", "reinstall"
    )
