"""JSON files of corpora and stores: indented, with the keys in the order given."""

import json
from pathlib import Path
from typing import Any

from dsgen.errors import DamagedError


def encode_json(value: Any) -> bytes:
    """Encode JSON as in every file of a corpus or store: indented, UTF-8, with the keys in the order given."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read a JSON file; raise `DamagedError` if it does not parse."""
    return parse_json(path.read_bytes(), path)


def parse_json(content: bytes, name: Path | str) -> Any:
    """Parse JSON; raise `DamagedError` with the file's `name` if it does not parse."""
    try:
        return json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise DamagedError(name, f"damaged, expected JSON ({error})", "restore it or recreate it") from error
