"""The text of a diagnosis: verdict, remedy, and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from analysis.collapse.measure import Collapse
from analysis.diagnose.diagnosis import FEWEST, Diagnosis, PartitionHealth
from analysis.diagnose.spectra import Estimate

SHOWN = 12
"""Layers in the text report: those that lost most."""
ROUNDS = 8
"""Rounds of the table of energies."""


def share_above(diagnosis: Diagnosis, level: int = 0) -> tuple[float, ...]:
    """Return the share of energy above a rank level after each round, (T,)."""
    rows = zip(*(part.share for part in diagnosis.partitions[level + 1 :]), strict=True)
    return tuple(sum(row) for row in rows)


def sentence_of(diagnosis: Diagnosis) -> str:
    """Return the verdict as one sentence."""
    if not diagnosis.levels:
        return "Undecided: without ranks it is not known which energy must be kept; pass ranks."
    if len(diagnosis.levels) == 1:
        return f"All clients have rank {diagnosis.levels[0]}: no direction can be diluted."
    known = [(t, x) for t, x in zip(diagnosis.rounds, share_above(diagnosis), strict=True)
             if math.isfinite(x)]  # fmt: skip
    if not known:
        return "Undecided: the adapters have no energy."
    (first, start), (last, end) = known[0], known[-1]
    lowest = diagnosis.levels[0]
    change = (
        f"the energy share above rank {lowest} is {number(end)} after round {last}, "
        f"{number(start)} after round {first}"
    )
    if diagnosis.verdict == Collapse.COLLAPSES:
        worst = [p for p in diagnosis.partitions[1:] if p.verdict == Collapse.COLLAPSES]
        part = min(worst, key=lambda p: p.left if math.isfinite(p.left) else 0.0)
        name = directions(part)
        how = (
            f"{name} are extinct"
            if part.extinct
            else f"{name} lose half of their energy relative to the shared directions in "
            f"{estimate(part.half_life)} rounds"
        )
        return f"The run collapses: {change}, and {how}."
    if diagnosis.verdict == Collapse.KEEPS:
        return f"The run keeps its rank: {change}."
    if len(known) < FEWEST:
        return f"Undecided after {len(known)} rounds, at least {FEWEST} are needed: {change}."
    return f"Undecided: {change}, and the trend is within its interval."


def remedy_of(diagnosis: Diagnosis) -> str:
    """Return the remedy as one sentence."""
    if not diagnosis.levels:
        return "Pass the rank of each client, e.g. ranks='4x5,8x5' (--ranks 4x5,8x5)."
    if diagnosis.verdict == Collapse.KEEPS:
        return "No change is needed."
    if diagnosis.verdict == Collapse.UNDECIDED:
        return "Diagnose the run again after more rounds, or keep the client files of some rounds."
    cause = ""
    suspects = suspected_rules(diagnosis)
    if suspects:
        cause = f"{suspects} averages a direction over clients that do not carry it: "
    return (
        f"{cause}average each partition over its contributors alone, rule raflora "
        "(`fedlora-sim aggregate --rule raflora`, or `fedlora_sim.rules.aggregate`)."
    )


def suspected_rules(diagnosis: Diagnosis) -> str:
    """Return the rule that made the adapters, or those that may have; empty if not known."""
    if diagnosis.rule is not None:
        return diagnosis.rule
    if diagnosis.clients is not None and diagnosis.clients.made_by:
        return " or ".join(diagnosis.clients.made_by)
    found = [rule.rule for rule in diagnosis.rules if rule.consistent and rule.dilutes]
    return " or ".join(found)


def directions(part: PartitionHealth) -> str:
    """Return the directions of a partition as text."""
    low, high = part.directions
    return f"direction {low}" if low == high else f"directions {low}-{high}"


def number(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.3g}" if math.isfinite(value) else "-" if math.isnan(value) else "never"


def estimate(found: Estimate) -> str:
    """Return a number with its interval; `-` if it is not known."""
    if math.isnan(found.value):
        return "-"
    ends = [_end(found.low), _end(found.high)]
    return f"{number(found.value)} [{', '.join(ends)}]"


def _end(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "never" if value > 0 else "?"


def rules_text(diagnosis: Diagnosis) -> str:
    """Return which rules the adapters are consistent with, as a sentence."""
    if not diagnosis.rules:
        return ""
    groups: dict[tuple[bool | None, tuple[float, ...]], list[str]] = {}
    for rule in diagnosis.rules:
        key = (rule.consistent, tuple(round(x, 3) for x in rule.multiplier))
        groups.setdefault(key, []).append(rule.rule)
    parts = []
    for wanted, said in ((True, "consistent with"), (None, "possible:"), (False, "not with")):
        named = [
            f"{', '.join(names)} (mean factor {', '.join(f'{x:.3f}' for x in mu[1:])})"
            if wanted is not False
            else ", ".join(names)
            for (consistent, mu), names in groups.items()
            if consistent is wanted
        ]
        if named:
            parts.append(f"{said} {'; '.join(named)}" if wanted else f"{said} {', '.join(named)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def as_text(diagnosis: Diagnosis) -> str:
    """Return the whole report as text."""
    d = diagnosis
    gaps = f", missing {_some(d.gaps)}" if d.gaps else ""
    lines = [
        d.sentence,
        d.remedy,
        "",
        f"layout: {d.layout}; {len(d.rounds)} rounds, {d.rounds[0]} to {d.rounds[-1]}{gaps}; "
        f"{len(d.layers)} layers"
        + ("" if d.is_scaled else "; energies of B A, without the scaling alpha / r"),
    ]
    lines += [f"{one.name} is missing (--{one.name}): {one.needed_for}" for one in d.missing]
    lines += [f"assumed: {text}" for text in d.assumed]
    if d.rule is not None:
        lines.append(f"rule of the run: {d.rule}")
    text = rules_text(d)
    lines += [text] if text else []
    lines += d.scalings
    lines += ["", *_energies(d)]
    if d.partitions:
        lines += ["", *partition_lines(d)]
    if d.terms:
        lines += ["", *_terms(d)]
    if d.clients is not None:
        lines += ["", *_clients(d)]
    if d.partitions and len(d.layers) > 1:
        lines += ["", *_layers(d)]
    return "\n".join(lines)


def _some(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:6]))
    return f"{shown}, ..." if len(values) > 6 else shown


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table of aligned columns as lines."""
    every = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in every) for i in range(len(head))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in every]


def _energies(d: Diagnosis) -> list[str]:
    step = max(1, math.ceil(len(d.rounds) / ROUNDS))
    chosen = sorted({*range(0, len(d.rounds), step), len(d.rounds) - 1})
    levels = d.levels[:-1]
    head = ["round", "energy", "effective rank", *(f"share above {level}" for level in levels)]
    above = [share_above(d, h) for h in range(len(levels))]
    return table(
        head,
        (
            [
                str(d.rounds[t]),
                number(float(d.energy[t].sum())),
                number(d.effective_rank[t]),
                *(number(share[t]) for share in above),
            ]
            for t in chosen
        ),
    )


def partition_lines(d: Diagnosis) -> list[str]:
    """Return the table of the partitions of all layers together."""
    head = ("partition", "rate", "half-life", "floor of the energy", "rounds until", "verdict")
    return table(
        head,
        (
            [
                directions(part),
                estimate(part.rate),
                estimate(part.half_life),
                estimate(part.settling.floor),
                estimate(part.settling.rounds),
                "extinct" if part.extinct else str(part.verdict),
            ]
            for part in d.partitions
        ),
    )


def _terms(d: Diagnosis) -> list[str]:
    head = ("ledger, decades a round", *(directions(part) for part in d.partitions))
    return table(head, ([name, *map(number, values)] for name, values in d.terms.items()))


def _clients(d: Diagnosis) -> list[str]:
    assert d.clients is not None
    made = ", ".join(d.clients.made_by) or "no known rule (other weights? pass num_samples)"
    head = ("client files", *(f"share above {level}" for level in d.levels[:-1]), "distance")
    rows = [["global adapter", *map(number, d.clients.actual), ""]]
    rows += [
        [rule, *map(number, kept), number(d.clients.distance[rule])]
        for rule, kept in d.clients.kept.items()
    ]
    return [f"The client files give the global adapters by: {made}.", *table(head, rows)]


def _layers(d: Diagnosis) -> list[str]:
    def lost(layer: object) -> float:
        parts = layer.partitions[1:]  # type: ignore[attr-defined]
        return min((p.left for p in parts if math.isfinite(p.left)), default=math.inf)

    chosen = sorted(d.layers, key=lost)[:SHOWN]
    head = ("layer", "effective rank", "rates", "extinct", "verdicts")
    rows = [
        [
            layer.layer,
            number(layer.effective_rank[-1]),
            ", ".join(estimate(part.rate) for part in layer.partitions[1:]),
            str(sum(part.extinct for part in layer.partitions)),
            ", ".join(str(part.verdict) for part in layer.partitions[1:]),
        ]
        for layer in chosen
    ]
    more = len(d.layers) - len(chosen)
    return [*table(head, rows), *([f"and {more} more layers (--json)"] if more else [])]
