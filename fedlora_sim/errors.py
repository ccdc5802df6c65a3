"""Argument checks: every refusal names the argument, its value and what was expected."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


def expected(argument: str, value: object, expectation: str) -> ValueError:
    """The one form of error message: argument, value, expectation.

    Args:
        argument: name of the argument as the caller wrote it.
        value: the value that was given.
        expectation: what would have been accepted, as the end of "expected ...".

    Returns:
        A `ValueError` to raise.
    """
    return ValueError(f"{argument}={value!r}: expected {expectation}")


def check_choice(argument: str, value: object, choices: Iterable[str]) -> str:
    """Return `value` lower-cased if it is one of `choices`; else say which is closest."""
    options = sorted(choices)
    name = str(value).strip().lower()
    if isinstance(value, str) and name in options:
        return name
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise expected(argument, value, f"one of {', '.join(options)}{hint}")


def check_positive_int(argument: str, value: object) -> int:
    """Return `value` as an int if it is a whole number of at least 1."""
    if isinstance(value, bool) or not _is_whole(value) or int(value) < 1:  # type: ignore[call-overload]
        raise expected(argument, value, "a whole number of at least 1")
    return int(value)  # type: ignore[call-overload]


def check_finite(argument: str, value: object, *, minimum: float | None = None) -> float:
    """Return `value` as a float if it is finite and at least `minimum`."""
    bound = "" if minimum is None else f" of at least {minimum:g}"
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise expected(argument, value, f"a finite number{bound}") from None
    if not math.isfinite(number) or (minimum is not None and number < minimum):
        raise expected(argument, value, f"a finite number{bound}")
    return number


def _is_whole(value: object) -> bool:
    try:
        return float(value) == int(value)  # type: ignore[arg-type, call-overload]
    except (TypeError, ValueError, OverflowError):
        return False
