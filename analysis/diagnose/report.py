"""The record of a diagnosis, as JSON and as text: verdict, remedy, and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from analysis.collapse.measure import Collapse
from analysis.diagnose.client_rounds import ClientAccount
from analysis.diagnose.consistency import RuleFit
from analysis.diagnose.spectra import Array, Estimate, Settling
from fedlora_sim.errors import one_line

FEWEST = 4
"""Fewer rounds leave the verdict undecided, unless a partition is extinct."""

Table = list[list[str]]

SHOWN = 12
"""Layers in the text report: those that lost most."""
ROUNDS = 8
"""Rounds of the table of energies."""


# The record


@dataclass(frozen=True)
class PartitionHealth:
    """One partition of one layer, or of all layers together.

    Args:
        directions: its first and last direction, from 1.
        share: share of the update's energy after each round, (T,); NaN where there is none.
        left: energy relative to the shared partition, mean of the last third of the rounds over the
            largest mean of a third.
        rate: factor of that relative energy per round.
        half_life: rounds in which it halves; infinite if it does not fall.
        settling: floor of the energy, and rounds until then, by the drift law.
        extinct: whether no relative energy is left in the last two rounds.
        verdict: `collapses`, `keeps its rank` or `undecided`; the shared partition keeps it.
    """

    directions: tuple[int, int]
    share: tuple[float, ...]
    left: float
    rate: Estimate
    half_life: Estimate
    settling: Settling
    extinct: bool
    verdict: Collapse


@dataclass(frozen=True)
class LayerHealth:
    """One layer.

    Args:
        layer: its name.
        effective_rank: after each round, (T,).
        spectrum: squared singular values after the last round, (R,).
        partitions: its partitions; empty without rank levels.
    """

    layer: str
    effective_rank: tuple[float, ...]
    spectrum: tuple[float, ...]
    partitions: tuple[PartitionHealth, ...]


@dataclass(frozen=True)
class Missing:
    """Information that the run does not state.

    Args:
        name: argument that states it.
        needed_for: what cannot be measured without it.
    """

    name: str
    needed_for: str


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The result of `diagnose`.

    Args:
        run: the folder, or the kind of object.
        layout: recognized or given layout.
        rounds: numbers of the rounds, ascending, (T,).
        gaps: rounds between them that are missing.
        is_scaled: whether energies include the LoRA scaling; otherwise they are those of `B A`.
        levels: rank levels; empty if not known.
        energy: energies of the directions, all layers together, (T, R).
        effective_rank: of these, (T,).
        partitions: all layers together; empty without rank levels.
        layers: each layer.
        rules: known rules, compared with the adapters; empty without ranks or cohort.
        clients: account of the client files; None without.
        terms: ledger terms of each partition, decades per round, mean over rounds and layers, by
            name; empty without client files or records of clients.
        scalings: inconsistencies between the scalings of clients and the global adapter.
        missing: information to pass.
        assumed: assumptions.
        rule: the rule that the run states.
        verdict, sentence, remedy: the outcome, in a sentence each.
    """

    run: str
    layout: str
    rounds: tuple[int, ...]
    gaps: tuple[int, ...]
    is_scaled: bool
    levels: tuple[int, ...]
    energy: Array
    effective_rank: tuple[float, ...]
    partitions: tuple[PartitionHealth, ...]
    layers: tuple[LayerHealth, ...]
    rules: tuple[RuleFit, ...]
    clients: ClientAccount | None
    terms: Mapping[str, tuple[float, ...]]
    scalings: tuple[str, ...]
    missing: tuple[Missing, ...]
    assumed: tuple[str, ...]
    rule: str | None
    verdict: Collapse
    sentence: str = ""
    remedy: str = ""

    @property
    def collapses(self) -> bool:
        """True if the run collapses."""
        return self.verdict == Collapse.COLLAPSES

    def to_json(self) -> dict[str, Any]:
        """Return all numbers, JSON-serializable; numbers that are not finite are None."""
        record = {
            "run": self.run,
            "layout": self.layout,
            "rounds": self.rounds,
            "gaps": self.gaps,
            "is_scaled": self.is_scaled,
            "levels": self.levels,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "remedy": self.remedy,
            "rule": self.rule,
            "energy": self.energy.tolist(),
            "effective_rank": self.effective_rank,
            "partitions": [asdict(part) for part in self.partitions],
            "layers": [asdict(layer) for layer in self.layers],
            "rules": [asdict(rule) for rule in self.rules],
            "clients": None if self.clients is None else self.clients.to_json(),
            "terms": dict(self.terms),
            "scalings": self.scalings,
            "missing": [asdict(one) for one in self.missing],
            "assumed": self.assumed,
        }
        found: dict[str, Any] = _finite(record)
        return found

    def __str__(self) -> str:
        """Return the report as text."""
        return as_text(self)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# Text


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
    return f"Undecided: {change}, and the interval of the trend includes both outcomes."


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
        verb = "averages" if len(suspects) == 1 else "average"
        cause = f"{' or '.join(suspects)} {verb} a direction over clients that do not carry it: "
    return (
        f"{cause}average each partition over its contributors alone, rule raflora "
        "(`fedlora-sim aggregate --rule raflora`, or `fedlora_sim.rules.aggregate`)."
    )


def suspected_rules(diagnosis: Diagnosis) -> list[str]:
    """Return the rule that made the adapters, or those that may have; empty if not known."""
    if diagnosis.rule is not None:
        return [diagnosis.rule]
    possible = [rule.rule for rule in diagnosis.rules if rule.consistent and rule.dilutes]
    if diagnosis.clients is None:
        return possible
    made = list(diagnosis.clients.made_by)
    return [rule for rule in made if rule in possible] or made


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


def run_text(d: Diagnosis) -> str:
    """Return layout, rounds and layers of the run."""
    gaps = f", missing {_some(d.gaps)}" if d.gaps else ""
    scaled = "" if d.is_scaled else "; energies of B A, without the scaling alpha / r"
    layers = "1 layer" if len(d.layers) == 1 else f"{len(d.layers)} layers"
    return (
        f"layout: {d.layout}; {len(d.rounds)} rounds, {d.rounds[0]} to {d.rounds[-1]}{gaps}; "
        f"{layers}{scaled}"
    )


def notes_of(d: Diagnosis) -> list[str]:
    """Return what is missing, assumed and known of the rule, a sentence each."""
    notes = [f"{one.name} is missing (--{one.name}): {one.needed_for}" for one in d.missing]
    notes += [f"assumed: {text}" for text in d.assumed]
    if d.rule is not None:
        notes.append(f"rule of the run: {d.rule}")
    if d.rules:
        notes.append(rules_text(d))
    if d.clients is not None:
        made = ", ".join(d.clients.made_by) or "no known rule (other weights? --samples)"
        notes.append(f"The client files give the global adapters by: {made}.")
    return [*notes, *d.scalings]


def as_text(d: Diagnosis) -> str:
    """Return the whole report as text."""
    lines = [d.sentence, d.remedy, "", run_text(d), *notes_of(d)]
    for rows in (energy_rows(d), partition_rows(d), term_rows(d), client_rows(d), layer_rows(d)):
        if rows:
            lines += ["", *aligned(rows)]
    more = len(d.layers) - SHOWN
    return "\n".join([*lines, *([f"and {more} more layers (--json)"] if more > 0 else [])])


def _some(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:6]))
    return f"{shown}, ..." if len(values) > 6 else shown


def aligned(rows: Table) -> list[str]:
    """Return the lines of a table with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]


# Tables, each with its head as the first row; empty if there is nothing to show


def energy_rows(d: Diagnosis) -> Table:
    """Return energies, effective ranks and shares of some rounds."""
    step = max(1, math.ceil(len(d.rounds) / ROUNDS))
    chosen = sorted({*range(0, len(d.rounds), step), len(d.rounds) - 1})
    levels = d.levels[:-1]
    above = [share_above(d, h) for h in range(len(levels))]
    head = ["round", "energy", "effective rank", *(f"share above {level}" for level in levels)]
    rows = [
        [
            str(d.rounds[t]),
            number(float(d.energy[t].sum())),
            number(d.effective_rank[t]),
            *(number(share[t]) for share in above),
        ]
        for t in chosen
    ]
    return [head, *rows]


def partition_rows(d: Diagnosis) -> Table:
    """Return the partitions of all layers together."""
    if not d.partitions:
        return []
    head = ["partition", "rate", "half-life", "floor of the energy", "rounds until", "verdict"]
    rows = [
        [
            directions(part),
            estimate(part.rate),
            estimate(part.half_life),
            estimate(part.settling.floor),
            estimate(part.settling.rounds),
            "extinct" if part.extinct else str(part.verdict),
        ]
        for part in d.partitions
    ]
    return [head, *rows]


def term_rows(d: Diagnosis) -> Table:
    """Return the terms of the energy ledger."""
    if not d.terms:
        return []
    head = ["ledger, decades a round", *(directions(part) for part in d.partitions)]
    return [head, *([name, *map(number, values)] for name, values in d.terms.items())]


def client_rows(d: Diagnosis) -> Table:
    """Return what each rule would have kept of the client files."""
    if d.clients is None:
        return []
    head = ["client files", *(f"share above {level}" for level in d.levels[:-1]), "distance"]
    rows = [["global adapter", *map(number, d.clients.actual), "0"]]
    rows += [
        [rule, *map(number, kept), number(d.clients.distance[rule])]
        for rule, kept in d.clients.kept.items()
    ]
    return [head, *rows]


def layer_rows(d: Diagnosis) -> Table:
    """Return the layers that lost most."""
    if not d.partitions or len(d.layers) < 2:
        return []

    def lost(layer: LayerHealth) -> float:
        return min((p.left for p in layer.partitions[1:] if math.isfinite(p.left)), default=0.0)

    head = ["layer", "effective rank", "rates", "extinct", "verdicts"]
    rows = [
        [
            one_line(layer.layer),
            number(layer.effective_rank[-1]),
            ", ".join(estimate(part.rate) for part in layer.partitions[1:]),
            str(sum(part.extinct for part in layer.partitions)),
            ", ".join(str(part.verdict) for part in layer.partitions[1:]),
        ]
        for layer in sorted(d.layers, key=lost)[:SHOWN]
    ]
    return [head, *rows]
