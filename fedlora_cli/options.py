"""Options that several commands read: seeds, and values of scenario fields."""

from __future__ import annotations

import tomllib
from pathlib import Path

from fedlora_sim.errors import expected


def parse_assignment(text: str) -> tuple[str, object]:
    """A scenario field and its value, from `field=value`; the value as TOML, else as plain text.

    Raises:
        ValueError: if there is no `=`.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise expected("--set", text, "field=value, e.g. gain_std=0.1")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def check_folder(argument: str, value: Path, folder: Path) -> None:
    """Refuse a folder that cannot be made because a file stands in its way.

    Raises:
        ValueError: naming the argument and the value that was given for it.
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise expected(argument, str(value), f"a place to write to ({path} is a file)")
