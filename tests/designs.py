"""Choose the cases of a test with several parameters; `make test-deep` runs all of them.

Most faults show with one value or with two values together. A covering design has every value
(`each_value`) or every pair of values (`pairwise`) in some case, in far fewer cases than the full
product, which the profile `deep` runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

import hypothesis_profiles
import pytest

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def covering(
    axes: dict[str, Sequence[Any]], strength: int, only: Callable[..., bool] | None = None
) -> list[tuple[Any, ...]]:
    """Return cases in which every possible combination of `strength` values occurs.

    Greedy and deterministic: the next case is the one with most combinations that are still
    missing; among equals the one with the least used values, then the first of the product.

    Args:
        axes: values of each parameter.
        strength: number of parameters whose values are combined.
        only: called with the parameters by name; False excludes a case.
    """
    possible = [
        case
        for case in product(*(range(len(values)) for values in axes.values()))
        if only is None or only(**_named(axes, case))
    ]
    covered_by = {case: set(combinations(enumerate(case), strength)) for case in possible}
    missing: set[Any] = set().union(*covered_by.values())
    used: Counter[tuple[int, int]] = Counter()
    chosen = []
    while missing:
        best = max(
            possible,
            key=lambda case: (
                len(covered_by[case] & missing),
                -sum(used[place] for place in enumerate(case)),
            ),
        )
        chosen.append(best)
        missing -= covered_by[best]
        used.update(enumerate(best))
    return [tuple(_named(axes, case).values()) for case in sorted(chosen)]


def pairwise(*, only: Callable[..., bool] | None = None, **axes: Sequence[Any]) -> Decorator:
    """Parametrize a test so that every pair of values of two parameters occurs in some case."""
    return _design(axes, min(2, len(axes)), only)


def each_value(*, only: Callable[..., bool] | None = None, **axes: Sequence[Any]) -> Decorator:
    """Parametrize a test so that every value of every parameter occurs in some case."""
    return _design(axes, 1, only)


def _design(
    axes: dict[str, Sequence[Any]], strength: int, only: Callable[..., bool] | None
) -> Decorator:
    whole = hypothesis_profiles.is_random()
    axes = {name: list(values) for name, values in axes.items()}
    cases = covering(axes, len(axes) if whole else strength, only)

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        return pytest.mark.design(pytest.mark.parametrize(tuple(axes), cases)(test))

    return decorate


def _named(axes: dict[str, Sequence[Any]], case: tuple[int, ...]) -> dict[str, Any]:
    return {name: values[at] for (name, values), at in zip(axes.items(), case, strict=True)}
