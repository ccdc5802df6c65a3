"""How every rule looks and is called, in all figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paper_figs.style import BLACK, GREEN, GREY, PURPLE, RULE_COLOURS, SKY


@dataclass(frozen=True)
class RuleLook:
    """A rule's line.

    Args:
        name: as the legend has it.
        colour: of its line.
        line: matplotlib's line style: rules are told apart without colour too.
        marker: of its dots.
    """

    name: str
    colour: str
    line: Any = "-"
    marker: str = "o"


LOOKS = {
    "fedavg": RuleLook("FedAvg", RULE_COLOURS["fedavg"], "-", "o"),
    "zero_pad": RuleLook("zero padding", RULE_COLOURS["zero_pad"], (0, (4, 1)), "s"),
    "hetlora": RuleLook("HetLoRA", PURPLE, (0, (1, 1)), "v"),
    "rbla": RuleLook("RBLA", GREEN, (0, (6, 1, 1, 1)), "D"),
    "ffa": RuleLook("FFA-LoRA", GREY, (0, (2, 1)), "P"),
    "flora": RuleLook("FLoRA", SKY, (0, (3, 1, 1, 1, 1, 1)), "X"),
    "fedex": RuleLook("FedEx-LoRA", BLACK, (0, (5, 2)), "d"),
    "raflora": RuleLook("raFLoRA", RULE_COLOURS["raflora"], "-", "^"),
    "raflora:canonicalize=true": RuleLook(
        "raFLoRA, canonical", RULE_COLOURS["raflora"], (0, (3, 1)), ">"
    ),
}


def ranks_text(ranks: Sequence[int]) -> str:
    """Client ranks in short, as `2x4, 16x4`: rank 2, 4 clients; ..."""
    return ", ".join(f"{rank}x{ranks.count(rank)}" for rank in dict.fromkeys(ranks))


def look(rule: str) -> RuleLook:
    """The look of a rule; of one that is not known here grey, under its own name."""
    return LOOKS.get(rule, RuleLook(rule, "0.5", ":", "*"))
