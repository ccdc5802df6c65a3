"""The decorator of derivations: states the left sides in LaTeX and caches the result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

MARK = "left_sides"
"""Attribute that a marked function carries."""


def derivation(*left_sides: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function as a derivation and cache its results.

    Args:
        left_sides: LaTeX of the derived quantities: one for an expression, one per field for a
            dataclass.

    Returns:
        A decorator; arguments of the decorated function must be hashable.

    Reference:
        Our derivation.
    """

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        remembered = functools.cache(function)
        vars(remembered)[MARK] = left_sides
        # the wrapper of `cache` loses the signature, which readers and mypy need
        return functools.update_wrapper(remembered, function)  # type: ignore[return-value]

    return mark
