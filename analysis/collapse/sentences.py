"""Verdicts in words, every number with its interval and beside FedAvg's and raFLoRA's."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from analysis.collapse.outcome import Agreement, Outcome
from analysis.collapse.scenarios import Standard
from analysis.collapse.verdict import CRITERIA, MOST, Collapse
from analysis.collapse.words import (
    change_text,
    directions,
    extinct_text,
    half_life_text,
    share_text,
    telling_partition,
)

if TYPE_CHECKING:
    from analysis.collapse.report import CollapseReport

NAMES = {"fedavg": "FedAvg", "raflora": "raFLoRA"}
UNTRUSTED = "The controls failed: do not trust this report."
EVERYTHING = "it loses everything, the shared directions too"
WIDTH = 100


def of_scenario(rules: Mapping[str, Outcome], label: str, standard: Standard) -> str:
    """The verdict on a rule in a scenario."""
    return f"{label} {_verb(rules[label].verdict)}: {_evidence(rules, label, standard)}."


def of_report(report: CollapseReport) -> str:
    """The verdict on a rule over all scenarios, with the numbers of the first that decides."""
    verdict = report.verdict
    titles: dict[Collapse, list[str]] = {}
    for part in report.scenarios:
        titles.setdefault(part.verdict(report.rule), []).append(part.standard.title)
    first = next(p for p in report.scenarios if p.verdict(report.rule) is verdict)
    held, total = titles[verdict], len(report.scenarios)
    where = f"in {len(held)} of {total} scenarios ({', '.join(held)})"
    if len(held) == total:
        where = f"in all {total} scenarios" if total > 1 else f"in {held[0]}"
    text = f"{report.rule} {_verb(verdict)} {where}"
    if report.rule in first.rules:
        evidence = _evidence(first.rules, report.rule, first.standard)
        text += f". At {first.standard.title}, {evidence}"
    rest = [f"It {_verb(v)} in {', '.join(t)}" for v, t in titles.items() if v is not verdict]
    text = ". ".join([text, *rest]) + "."
    return f"{UNTRUSTED} {text}" if report.failed_controls else text


def in_full(report: CollapseReport) -> str:
    """The verdict, every scenario's, what disagrees with theory, and how it was decided."""
    lines = [report.sentence, ""]
    for part in report.scenarios:
        lines.append(f"{part.standard.title} ({part.fidelity}, {part.runs:,} runs):")
        lines.append(f"  Federation: {part.standard.federation_text}.")
        lines.append(f"  {part.sentence(report.rule)}")
        own = part.rules.get(report.rule)
        lines += [f"  Note: {note}." for note in (own.notes if own else ())]
        lines += [f"  {_against_theory(own)}"] if own else []
    lines += ["", f"Decided by simultaneous 95% intervals; {CRITERIA}."]
    lines += [f"Control failed: {text}." for text in report.failed_controls]
    return "\n".join(textwrap.fill(x, WIDTH, subsequent_indent="    ") for x in lines)


def _evidence(rules: Mapping[str, Outcome], label: str, standard: Standard) -> str:
    own = rules[label]
    h = telling_partition(own)
    rate, extinct = own.numbers["relative_rate"], own.numbers["extinct"]
    if own.verdict is Collapse.COLLAPSES and min(extinct.low[0], extinct.low[h]) > MOST:
        return f"{EVERYTHING} (extinct in {extinct_text(own, h)})"
    if np.isnan(rate.value[h]):
        return f"above the shared rank {standard.levels[0]} nothing could be measured"
    lives = half_life_text(rate, h)
    details = [f"half-life {lives} rounds"] if lives else []
    if own.verdict is Collapse.KEEPS:
        left, late = share_text(own.numbers["left"], h), own.numbers["relative_late"]
        details.append(f"late in the run it {change_text(late, h)}, at {left} of its start")
    elif extinct.value[h] > 0:
        details.append(f"extinct in {extinct_text(own, h)}")
    inside = "; ".join(details)
    others = ", ".join(
        f"{name} {change_text(rules[key].numbers['relative_rate'], h)}"
        for key, name in NAMES.items()
        if key != label
    )
    change = change_text(rate, h)
    said = f"it {change} of its energy" if change.startswith("loses") else f"its energy {change}"
    place = f"above the shared rank {standard.levels[0]} (directions {directions(standard, h)})"
    against = "relative to the shared directions" if standard.beside else "itself"
    return f"{place} {said} a round, {against}" + (f" ({inside})" if inside else "") + f"; {others}"


def _verb(verdict: Collapse) -> str:
    return "is undecided" if verdict is Collapse.UNDECIDED else str(verdict)


def _against_theory(own: Outcome) -> str:
    """How many numbers agree with their predictions, and which do not."""
    prediction = own.prediction
    told = "" if prediction.verdict is None else f" Predicted: {prediction.verdict}."
    found = [(name, a) for name, each in own.agreement.items() for a in each if a in _COMPARED]
    if not found:
        return f"Theory: {prediction.source}.{told}"
    agree = sum(a is Agreement.AGREES for _, a in found)
    others = "".join(
        f"; {a}: {', '.join(sorted({name for name, b in found if b is a}))}"
        for a in _COMPARED[1:]
        if any(b is a for _, b in found)
    )
    return f"Theory: {prediction.source}.{told} {agree} of {len(found)} numbers agree{others}."


_COMPARED = (Agreement.AGREES, Agreement.DISAGREES, Agreement.UNDECIDED)
