"""Read untrusted JSON, with bounded size and depth and without duplicate names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MOST_BYTES = 16_000_000
DEEPEST = 32
"""Maximum nesting of objects and lists; a configuration of PEFT has three levels."""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: a file of at most `MOST_BYTES`.

    Raises:
        ValueError: says what is wrong, without the path.
        OSError: if it cannot be read.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"it has {size:,} bytes, more than {MOST_BYTES:,}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [item for parent in level for item in _items(parent)]
        if not level:
            return value
    raise ValueError(_TOO_DEEP)


_TOO_DEEP = f"more than {DEEPEST} objects or lists within each other"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # parsers differ in which duplicate they use
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} twice in one object")
    return found


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
