"""Options that several commands read: seeds, and values of scenario fields."""

from __future__ import annotations

import tomllib

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
