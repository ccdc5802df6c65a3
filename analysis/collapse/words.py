"""Numbers with their intervals as text: losses, half-lives, shares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from analysis.closed_form import half_life
from analysis.collapse.outcome import Outcome
from analysis.collapse.scenarios import EXACT, Standard
from analysis.collapse.verdict import Collapse
from analysis.predict import directions_label
from analysis.stats.intervals import Array, Measurement

ABSENT = "—"
EXACTLY = "exactly "
"""Before a number that every run gave, which has no interval."""
DOUBLES = 2.0
"""Growth by this factor and beyond is told as a factor."""
MANY = 10.0
"""So is a share from here on."""


def directions(standard: Standard, partition: int) -> str:
    """Directions of a partition, counted from 1: `5–8`."""
    return directions_label(standard.scenario.federation.partitions[partition])


def percent(share: float) -> str:
    """A share as text, to three digits and no more than hundredths of a percent."""
    if not np.isfinite(share):
        return "∞" if share > 0 else "-∞"
    if share >= MANY:
        return times(share)
    return f"{round(100 * share, 2) + 0.0:.3g}%"


def times(factor: float) -> str:
    """A factor as text."""
    return f"×{number(factor)}"


def number(value: float) -> str:
    """A number as text, to three digits."""
    return "∞" if np.isposinf(value) else f"{value:.3g}"


def share_text(found: Measurement, h: int) -> str:
    """A share with its interval; a multiple where it is beyond ten."""
    if np.isnan(found.value[h]):
        return "nothing"
    return _with_ends(found, h, times if found.value[h] >= MANY else percent)


def loss_text(found: Measurement, h: int) -> str:
    """What a factor per round takes away, with its interval; negative where it adds.

    The factor itself where it doubles the energy or more.
    """
    if np.isnan(found.value[h]):
        return ABSENT
    if found.value[h] >= DOUBLES:
        return _with_ends(found, h, times)
    return _with_ends(_lost(found), h, percent)


def change_text(found: Measurement, h: int) -> str:
    """`loses 36% [35%, 37%]`, `grows by 4% [3%, 5%]` or `grows ×18`."""
    if np.isnan(found.value[h]):
        return "has nothing left to lose"
    if found.value[h] >= DOUBLES:
        return f"grows {loss_text(found, h)}"
    if percent(1 - found.value[h]).startswith("-"):
        gained = Measurement(found.value - 1, found.low - 1, found.high - 1, found.samples)
        return f"grows by {_with_ends(gained, h, percent)}"
    return f"loses {loss_text(found, h)}"


def half_lives(rate: Array) -> Array:
    """Half-lives of factors per round; infinite at 1, to rounding; NaN where unknown."""
    known = ~np.isnan(rate)
    lives = half_life(np.where(known & (rate < 1 - EXACT), np.maximum(rate, 0.0), 1.0))
    return np.where(known, lives, np.nan)


def half_life_text(found: Measurement, h: int) -> str:
    """Half-life with its interval, from a factor per round; empty where nothing falls."""
    ends = (found.value, found.low, found.high)
    # the two ends of an interval of factors are the ends of one of half-lives, in order
    value, low, high = map(half_lives, ends)
    lives = Measurement(value, low, high, found.samples)
    if not np.isfinite(lives.value[h]):
        return ""
    if not np.isfinite(lives.high[h]):
        return f"at least {number(lives.low[h])}"
    return _with_ends(lives, h, number)


def extinct_text(own: Outcome, h: int) -> str:
    """In how many runs a partition was lost, and by when in half of them."""
    by = own.extinct_rounds[h]
    when = f", in half by round {by:.0f}" if np.isfinite(by) else ""
    return f"{share_text(own.numbers['extinct'], h)} of runs{when}"


def telling_partition(own: Outcome) -> int:
    """The partition above the shared one that decided, and of those the one that lost most."""
    wanted = [h for h, found in enumerate(own.partitions, 1) if found is own.verdict]
    name = "left" if own.verdict is Collapse.KEEPS else "relative_rate"
    value = np.nan_to_num(own.numbers[name].value, nan=-1.0)
    return min(wanted or range(1, len(value)), key=lambda h: float(value[h]))


def _lost(found: Measurement) -> Measurement:
    return Measurement(1 - found.value, 1 - found.high, 1 - found.low, found.samples)


def _with_ends(found: Measurement, h: int, text: Callable[[float], str]) -> str:
    value = text(float(found.value[h]))
    if found.low[h] == found.high[h]:
        return f"{EXACTLY}{value}"
    return f"{value} [{text(found.low[h])}, {text(found.high[h])}]"
