"""Numbers as a page writes them: a true minus sign, powers of ten, digits of one width."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

from analysis.claims.report import DIGITS, number, p_text

_POWER = re.compile(r"e([+-]?)0*(\d+)$")


def number_html(value: float | None, digits: int = DIGITS) -> Markup:
    """A number to this many significant digits."""
    return _html(number(value, digits))


def interval_html(ends: Sequence[float | None], digits: int = DIGITS) -> Markup:
    """Both ends of an interval."""
    low, high = (number_html(end, digits) for end in ends)
    return Markup('<span class="n">[{},</span> <span class="n">{}]</span>').format(low, high)


def p_html(p: float) -> Markup:
    """A p-value, or the bound below which it lies."""
    text = p_text(p)
    if not text.startswith("<"):
        return _html(text)
    return Markup('<span class="n">&lt;&thinsp;{}</span>').format(_html(text[1:]))


def spoken(value: float | None, digits: int = DIGITS) -> str:
    """A number in plain characters, for a text alternative."""
    return number(value, digits).replace("-", "−")


def _html(text: str) -> Markup:
    power = _POWER.search(text)
    if not power:
        return escape(text.replace("-", "−"))
    mantissa = text[: power.start()].replace("-", "−")
    sign = "−" if power[1] == "-" else ""
    factor = "" if mantissa == "1" else f"{mantissa}&thinsp;×&thinsp;"
    return Markup(f'<span class="n">{factor}10<sup>{sign}{power[2]}</sup></span>')
