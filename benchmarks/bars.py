"""Measurements compared with their targets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

Bar = tuple[str, Literal["<=", ">="], float, float]
"""Quantity, sign and bound of the target, and the measurement."""


def decided(found: Iterable[Bar]) -> list[dict[str, Any]]:
    """Return all targets as records: quantity, target, measurement, verdict."""
    return [
        {
            "what": what,
            "wanted": f"{sign} {bound:g}",
            "measured": value,
            "verdict": "met" if (value >= bound if sign == ">=" else value <= bound) else "missed",
        }
        for what, sign, bound, value in found
    ]
