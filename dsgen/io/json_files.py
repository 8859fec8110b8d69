"""JSON as all of a corpus and a store is written: indented, keys in the order given."""

import json
from pathlib import Path
from typing import Any

from dsgen.errors import DamagedError


def encode_json(value: Any) -> bytes:
    """Encode JSON as all of a corpus and a store is: indented, keys in the order given."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read JSON; a file that does not parse is a `DsgenError`."""
    return parse_json(path.read_bytes(), path)


def parse_json(content: bytes, name: Path | str) -> Any:
    """Parse JSON; what does not parse is a `DsgenError` that names it."""
    try:
        return json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise DamagedError(name, f"damaged, expected JSON ({error})", "restore it or make it again") from error
