"""Argument checks: every refusal names the argument, its value and what was expected."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral


class InputError(ValueError):
    """Bad input: the message names the argument, its value and what was expected."""


def expected(argument: str, value: object, expectation: str) -> InputError:
    """The one form of error message: argument, value, expectation.

    Args:
        argument: name of the argument as the caller wrote it.
        value: the value that was given.
        expectation: what would have been accepted, as the end of "expected ...".

    Returns:
        The error to raise, a `ValueError`.
    """
    return InputError(f"{argument}={value!r}: expected {expectation}")


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


def check_positive(argument: str, value: object, otherwise: str = "") -> float:
    """Return `value` as a float if it is finite and above 0; `otherwise` ends the expectation."""
    number = check_finite(argument, value)
    if not number > 0:
        raise expected(argument, value, f"a positive number{otherwise}")
    return number


def check_share(argument: str, value: object) -> float:
    """Return `value` as a float if it is in (0, 1]."""
    number = check_finite(argument, value)
    if not 0 < number <= 1:
        raise expected(argument, value, "a number in (0, 1]")
    return number


def check_seed(argument: str, value: object) -> int:
    """Return `value` as an int if it is a whole number from 0 to 2**63 - 1."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else -1
    if not 0 <= number < 2**63:
        raise expected(argument, value, "a whole number of at least 0 and below 2**63")
    return number


def check_sequence(
    argument: str, value: object, expectation: str = "a sequence with one value per client"
) -> list[object]:
    """Return the items of a list, tuple, range, set or one-dimensional array."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise expected(argument, value, expectation)
    return list(value)


def _is_whole(value: object) -> bool:
    try:
        return float(value) == int(value)  # type: ignore[arg-type, call-overload]
    except (TypeError, ValueError, OverflowError):
        return False
