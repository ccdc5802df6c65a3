"""Whether a rule collapses, by intervals: the typical run of every partition above the shared rank.

A partition collapses where one of these is beyond doubt: most runs lose it altogether; a typical
run still loses energy in the second half of its rounds; what is left there is next to nothing. It
keeps its place where all three are ruled out. Growth is never collapse.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import numpy as np

from analysis.collapse.gauge import EXTINCT, FALLS, Numbers

MOST = 0.5
"""More runs than this that lose a partition are most of them."""
NOTHING = 0.01
"""Less than this share of its energy, beside the shared partition, is next to nothing."""

CRITERIA = (
    f"collapses: most runs lose a partition (energy below {EXTINCT:g}), or a typical run still "
    f"loses more than {FALLS:.0%} a round in the second half of its rounds, or less than "
    f"{NOTHING:.0%} is left then"
)


class Collapse(StrEnum):
    """What a rule does to the partitions above the shared rank."""

    COLLAPSES = "collapses"
    KEEPS = "keeps its rank"
    UNDECIDED = "undecided"


def by_partition(numbers: Numbers) -> tuple[Collapse, ...]:
    """The verdict on every partition above the shared one."""
    extinct, late, left = (numbers[name] for name in ("extinct", "relative_late", "left"))
    collapses = (extinct.low > MOST) | (late.high < 1 - FALLS) | (left.high < NOTHING)
    keeps = (extinct.high < MOST) & (late.low >= 1 - FALLS) & (left.low >= NOTHING)
    found = np.where(collapses, Collapse.COLLAPSES, Collapse.UNDECIDED)
    return tuple(Collapse(x) for x in np.where(keeps & ~collapses, Collapse.KEEPS, found)[1:])


def of_partitions(numbers: Numbers) -> Collapse:
    """The verdict on a scenario: one partition that collapses is enough, all must keep."""
    return together(by_partition(numbers))


def together(verdicts: Iterable[Collapse]) -> Collapse:
    """The verdict on several partitions, or several scenarios."""
    found = set(verdicts)
    if Collapse.COLLAPSES in found:
        return Collapse.COLLAPSES
    return Collapse.KEEPS if found == {Collapse.KEEPS} else Collapse.UNDECIDED
