"""Text forms of numbers, intervals, tables and rule names, in reports, pages and figures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence

from fedlora_sim.errors import InputError

DIGITS = 4
NONE = "–"
"""Cell of a table without a value."""


def rule_name(rule: str) -> str:
    """Return the display name of a rule; a rule that is not registered keeps its own."""
    from fedlora_sim.rules import get_rule  # imported late: torch takes seconds

    try:
        return get_rule(rule).display_name
    except InputError:
        return rule


def number(value: float | None, digits: int = DIGITS, absent: str = "not finite") -> str:
    """Return a number with this many significant digits; zero is plain, None is `absent`."""
    if value is None:
        return absent
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return "0" if value == 0 else f"{value:.{digits}g}"


def interval(
    ends: Sequence[float | None],
    digits: int = DIGITS,
    text: Callable[[float | None, int], str] = number,
) -> str:
    """Return an interval as text: `[0.1, 0.2]`; `text` is the form of its ends."""
    return f"[{text(ends[0], digits)}, {text(ends[1], digits)}]"


def percent(share: float | None, digits: int = 6, decimals: int | None = None) -> str:
    """Return a share as a percentage.

    Args:
        share: the share; 1 is 100%.
        digits: significant digits. The default distinguishes all shares in use from 100%.
        decimals: maximum number of decimals of the percentage, so that rounding errors are 0%.
    """
    if share is None or not math.isfinite(share):
        return number(share)
    rounded = 100 * float(share) if decimals is None else round(100 * float(share), decimals)
    return f"{number(rounded, digits)}%"


def times(factor: float | None, digits: int = DIGITS) -> str:
    """Return a factor as text: `×3`."""
    return f"×{number(factor, digits)}"


FORMULA = re.compile(r"\$([^$]+)\$")
"""A formula in a text: LaTeX between dollar signs, as GitHub shows it."""

_SIGNS = {"gt": ">", "lt": "<", "le": "<=", "mid": "|", "lvert": "|", "rvert": "|", "ast": "*"}


def plain(text: str) -> str:
    r"""Return a text without LaTeX: `$\delta^2 / (1 - q')$` as `delta^2 / (1 - q')`.

    Signs are written in ASCII, other commands by their names, and groups in parentheses.
    """
    return FORMULA.sub(_plain_formula, text)


def _plain_formula(formula: re.Match[str]) -> str:
    text = re.sub(r"\\(?:mathrm|text)\{([^{}]*)\}", r"\1", formula[1])
    text = re.sub(r"\\(\w+)", lambda command: _SIGNS.get(command[1], command[1]), text)
    text = re.sub(r"(?<=[_^])\{([-\w]+)\}", r"\1", text)  # a single word needs no parentheses
    return text.replace("{", "(").replace("}", ")")


Lines = list[Sequence[str]]
"""Rows of a table."""


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. A bar within a cell, as in E[W | W > 0], is escaped."""
    return "\n".join([_row(head), "|" + "---|" * len(head), *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in escaped)}|"
