"""The table of tolerances: wide enough for rounding, at most a few thousand roundings."""

from __future__ import annotations

import pytest

from fedlora_sim.tolerances import EPS, RELATIVE, ROUNDING_UNITS

MOST_ROUNDINGS = {"exact": 0, "reduction": 500, "factorization": 5_000, "iteration": 5e6}
"""Maximum number of roundings between results of a kind, over both dtypes."""


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", MOST_ROUNDINGS)
def test_tolerances_are_a_few_roundings_wide(kind: str, dtype: str) -> None:
    assert RELATIVE[kind][dtype] <= MOST_ROUNDINGS[kind] * EPS[dtype]


def test_narrow_types_are_a_few_roundings_away() -> None:
    assert ROUNDING_UNITS <= 10
