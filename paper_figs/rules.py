"""How every rule looks and is called in the figures of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paper_figs.style import PALETTE, RULE_COLOURS


@dataclass(frozen=True)
class RuleLook:
    """A rule's line.

    Args:
        name: as the legend has it.
        colour: of its line.
        line: matplotlib's line style.
        marker: of its dots.
    """

    name: str
    colour: str
    line: str = "-"
    marker: str = "o"


LOOKS = {
    "fedavg": RuleLook("FedAvg", RULE_COLOURS["fedavg"]),
    "zero_pad": RuleLook("zero padding", RULE_COLOURS["zero_pad"]),
    "hetlora": RuleLook("HetLoRA", PALETTE[5]),
    "rbla": RuleLook("RBLA", PALETTE[2]),
    "ffa": RuleLook("FFA-LoRA", PALETTE[6]),
    "flora": RuleLook("FLoRA", PALETTE[4]),
    "fedex": RuleLook("FedEx-LoRA", PALETTE[9]),
    "raflora": RuleLook("raFLoRA", RULE_COLOURS["raflora"]),
    "raflora:canonicalize=true": RuleLook("raFLoRA, canonical", RULE_COLOURS["raflora"], "--", "s"),
}


def ranks_text(ranks: Sequence[int]) -> str:
    """Client ranks in short, as `2x4, 16x4`: rank 2, 4 clients; ..."""
    return ", ".join(f"{rank}x{ranks.count(rank)}" for rank in dict.fromkeys(ranks))


def look(rule: str) -> RuleLook:
    """The look of a rule; of one that is not known here grey, under its own name."""
    return LOOKS.get(rule, RuleLook(rule, "0.5", ":", "^"))
