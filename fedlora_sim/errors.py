"""Argument checks: every error message names the argument, its value and what was expected.

A message is one printable line of bounded length for every value, so that an untrusted file can
neither flood a terminal nor move its cursor.
"""

from __future__ import annotations

import difflib
import errno
import math
import reprlib
from collections.abc import Iterable, Mapping, Set
from itertools import islice
from numbers import Integral
from typing import Any

LINE = 2_000
"""Maximum number of characters of a message."""
ARGUMENT, VALUE = 500, 600  # the remainder is for the expectation
SHOWN_ITEMS = 64
"""Number of items of a collection in a message; the rest are dots."""
LONGEST_NUMBER = 100
"""Number of digits of a whole number in a message."""
MOST_ITEMS = 1_000_000
"""Maximum length of a list: clients, seeds, ranks.

Longer ones are refused before they are created.
"""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""System errors that mean no space (a full disk, a quota, `ulimit -f`)."""

MOST_ROUNDS = 1_000_000
"""Maximum number of rounds of a prediction, each of which is a row of numbers."""


class InputError(ValueError):
    """Invalid input: the message names the argument, its value and what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def expected(argument: str, value: object, expectation: str) -> InputError:
    """Return the error for an invalid argument, with a message of the project's common form.

    Args:
        argument: name of the argument as the caller wrote it.
        value: the given value; long values are shortened.
        expectation: what would have been accepted, as the end of "expected ...".

    Returns:
        The error to raise, a `ValueError` of one line of at most `LINE` characters.
    """
    front = f"{one_line(argument, ARGUMENT)}={shown(value)}: expected "
    return InputError(front + one_line(expectation, LINE - len(front)))


def shown(value: object) -> str:
    """Return the text of a value for messages: one line, shortened, even if its `repr` fails."""
    return one_line(_SHORT.repr(value), VALUE)


def one_line(text: str, limit: int = LINE) -> str:
    r"""Return a text as one printable line for terminals and messages.

    Args:
        text: any text, including untrusted text.
        limit: maximum number of characters; the middle of a longer text is left out.

    Returns:
        The text, with control characters (escape sequences, line ends, bidirectional marks) written
        as Python escapes, such as `\x1b`.
    """
    if len(text) > limit:
        text = _shortened(text, limit)
    if text.isprintable():
        return text
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _shortened(escaped, limit) if len(escaped) > limit else escaped


def _shortened(text: str, limit: int) -> str:
    """Return the start and the end of a text and the number of characters left out between them."""
    gap = f" ... [{len(text):,} characters] ... "
    kept = limit - len(gap)
    return text[: kept - kept // 3] + gap + text[len(text) - kept // 3 :]


class _Short(reprlib.Repr):
    """`repr` in bounded time and length for values of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = SHOWN_ITEMS
        self.maxarray = self.maxdeque = self.maxdict = SHOWN_ITEMS
        self.maxstring = self.maxother = VALUE

    def repr(self, x: object) -> str:
        """Return the text of a value, or its type where `__repr__` fails."""
        try:
            return super().repr(x)
        except Exception:  # __repr__ may raise anything
            return f"<{type(x).__name__}>"

    def repr_int(self, x: int, level: int) -> str:
        """Return a number in full, or its size where Python refuses to print its digits."""
        digits = math.floor(x.bit_length() * math.log10(2)) + 1
        if digits <= LONGEST_NUMBER:
            return repr(x)
        return f"<{'negative ' if x < 0 else ''}whole number of about {digits:,} digits>"

    def repr_bytes(self, x: bytes, level: int) -> str:
        """Return the start of the bytes."""
        return repr(x[:VALUE])

    def repr_dict(self, x: dict[object, object], level: int) -> str:
        """Return the items in their order."""
        first = list(islice(x, SHOWN_ITEMS))
        pairs = [f"{self.repr1(k, level - 1)}: {self.repr1(x[k], level - 1)}" for k in first]
        return "{" + ", ".join(pairs + ["..."] * (len(x) > len(first))) + "}"


_SHORT = _Short()


def check_choice(argument: str, value: object, choices: Iterable[str]) -> str:
    """Return `value` in lower case if it is one of `choices`; the error names the closest one."""
    options = sorted(choices)
    name = value.strip().lower() if isinstance(value, str) else ""
    if name in options:
        return name
    close = difflib.get_close_matches(name[:ARGUMENT], options, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise expected(argument, value, f"one of {', '.join(options)}{hint}")


def check_positive_int(argument: str, value: object) -> int:
    """Return `value` as an int if it is a whole number from 1 to 2**63 - 1."""
    number = _whole(value)
    if number is None or number < 1:
        raise expected(argument, value, "a whole number of at least 1")
    if number >= 2**63:
        raise expected(argument, value, "a whole number of at least 1 and below 2**63")
    return number


def check_count(argument: str, value: object, most: int = MOST_ITEMS) -> int:
    """Return `value` as an int if it is a whole number of at least 1 and at most `most`.

    For numbers of objects: the check runs before any object is created.
    """
    number = check_positive_int(argument, value)
    if number > most:
        raise expected(argument, value, f"at most {most:,}")
    return number


def check_finite(argument: str, value: object, *, minimum: float | None = None) -> float:
    """Return `value` as a float if it is finite and at least `minimum`."""
    bound = "" if minimum is None else f" of at least {minimum:g}"
    try:
        number = float(value)  # type: ignore[arg-type]
    except Exception:  # __float__ may raise anything
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


def check_confidence(argument: str, value: object) -> float:
    """Return `value` as a float if it is in (0, 1): an interval of confidence 1 has no ends."""
    number = check_finite(argument, value)
    if not 0 < number < 1:
        raise expected(argument, value, "a number in (0, 1)")
    return number


def check_seed(argument: str, value: object) -> int:
    """Return `value` as an int if it is a whole number from 0 to 2**63 - 1."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else -1
    if not 0 <= number < 2**63:
        raise expected(argument, value, "a whole number of at least 0 and below 2**63")
    return number


def check_sequence(
    argument: str,
    value: object,
    expectation: str = "a sequence with one value per client",
    *,
    ordered: bool = True,
) -> list[object]:
    """Return the items of a list, tuple, range, one-dimensional array or other iterable.

    Args:
        argument: name of the argument.
        value: at most `MOST_ITEMS` items. Text and mappings are refused.
        expectation: what would have been accepted.
        ordered: whether the order matters; if so, sets are refused.
    """
    unfit = str | bytes | bytearray | Mapping
    if isinstance(value, unfit) or (ordered and isinstance(value, Set)):
        raise expected(argument, value, expectation)
    try:
        items = list(islice(value, MOST_ITEMS + 1))  # type: ignore[call-overload]
    except Exception:  # not iterable, or fails when it is iterated
        raise expected(argument, value, expectation) from None
    if len(items) > MOST_ITEMS:
        raise expected(argument, f"<{type(value).__name__}>", f"at most {MOST_ITEMS:,} items")
    return items


def check_numbers(argument: str, value: object, expectation: str) -> Any:
    """Return an array, a list, a tuple or a number as a float64 array.

    Other iterables are refused, because NumPy would expand a range of any length.
    """
    import numpy as np  # imported late: help texts do not need it

    try:
        if isinstance(value, list | tuple | int | float) or hasattr(value, "__array__"):
            return np.asarray(value, dtype=np.float64)
    except Exception:  # __array__ may raise anything
        pass
    raise expected(argument, value, expectation)


def _whole(value: object) -> int | None:
    """Return the whole number that equals a value, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    try:
        number = int(value)  # type: ignore[call-overload]
        return number if float(value) == number else None  # type: ignore[arg-type]
    except Exception:  # __int__ may raise anything
        return None
