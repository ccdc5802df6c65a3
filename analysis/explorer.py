"""One federation under one rule, in numbers quick enough to turn a knob: closed forms only.

Two kinds of clients are asked for side by side: those that return `a x + b` (gain and drift), and
those that train for a local time. Nothing is simulated. Verdicts are on the start: what a typical
run has left of it, or whether training holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import closed_form
from analysis.closed_form.setting import rule_form
from analysis.cohorts.law import Array
from analysis.collapse.measure import Collapse, by_partition, together
from analysis.predict import (
    Case,
    Prediction,
    RulePrediction,
    directions_label,
    left_of_the_start,
    predict,
)
from analysis.stats.intervals import Measurement
from fedlora_sim.errors import InputError, check_choice

ROUNDS = 30
POLICIES = ("carry", "zero")
FIRST = 1  # partitions from here on may collapse: the one before is shared by all clients


@dataclass(frozen=True)
class Row:
    """What becomes of one partition; NaN where there is no closed form.

    Args:
        directions: the directions of the partition, from 1, as text.
        coverage: expected weight of those who carry it.
        empty: chance P0 per round that nobody does.
        rate: factor of its mean energy per round.
        typical: the same in a typical run that survives.
        half_life: rounds in which a typical run loses half of it; infinite if never.
        survival: chance that a run has not lost it altogether after the last round.
        floor: mean energy at which drifts hold it.
        threshold: local time T* from which on training holds it.
        held: amplitude at which training holds it.
        passive: verdict on it where clients return what they got, up to gain and drift.
        trained: verdict on it where they train; None without a local time.
    """

    directions: str
    coverage: float
    empty: float
    rate: float
    typical: float
    half_life: float
    survival: float
    floor: float
    threshold: float
    held: float
    passive: Collapse
    trained: Collapse | None


@dataclass(frozen=True, eq=False)
class Exploration:
    """A federation under a rule.

    Args:
        case: what was asked.
        rule: the rule.
        empty_partition: its policy; None for a rule without one.
        rows: one per partition, the shared one first.
        energy: mean energy of every direction, (rounds + 1, r_max); None without a closed form.
        training: amplitude of every direction under training, (rounds + 1, r_max); None without a
            local time or a closed form.
        reasons: why something has no closed form here.
    """

    case: Case
    rule: str
    empty_partition: str | None
    rows: tuple[Row, ...]
    energy: Array | None
    training: Array | None
    reasons: tuple[str, ...]

    @property
    def passive(self) -> Collapse:
        """Verdict where clients return what they got, up to gain and drift."""
        return together(row.passive for row in self.rows[FIRST:])

    @property
    def trained(self) -> Collapse | None:
        """Verdict where clients train; None without a local time."""
        found = [row.trained for row in self.rows[FIRST:]]
        return None if None in found else together(v for v in found if v is not None)

    @property
    def has_levels(self) -> bool:
        """Whether there are ranks above the shared one, of which a verdict speaks."""
        return len(self.rows) > FIRST

    @property
    def sentence(self) -> str:
        """The verdicts in words."""
        if not self.has_levels:
            return f"{self.label}: all clients have one rank, which cannot collapse."
        told = f"{self.label}: without training it {_word(self.passive)}"
        if self.trained is None:
            return f"{told}."
        return f"{told}; with local time {self.case.local_time:g} it {_word(self.trained)}."

    @property
    def label(self) -> str:
        """The rule with its policy."""
        return self.rule if self.empty_partition is None else f"{self.rule}, {self.empty_partition}"


def explore(
    rule: str = "fedavg",
    ranks: str = "4x8,8x6,16x4",
    *,
    cohort_size: int | None = None,
    gain_mean: float = 1.0,
    gain_std: float = 0.0,
    drift_std: float = 0.0,
    local_time: float = 0.0,
    empty_partition: str = "carry",
    rounds: int = ROUNDS,
) -> Exploration:
    """What the closed forms say of a federation under one rule.

    Args:
        rule: any of `closed_form.RULES`.
        ranks: client ranks as text, `"4x8,8x6,16x4"`.
        cohort_size: clients per round; all when None.
        gain_mean: mean g of the factor by which a client changes an amplitude.
        gain_std: its standard deviation nu.
        drift_std: deviation tau of what a client adds to an amplitude.
        local_time: local training per round, in units of 1 / target; 0 for none.
        empty_partition: what rules with such a policy do where nobody carries a partition.
        rounds: number of rounds.

    Returns:
        Numbers and verdicts; what has no closed form is NaN or None, with the reason.

    Raises:
        ValueError: naming the argument, its value and what was expected.
    """
    case = Case(
        ranks,
        rounds=rounds,
        cohort_size=cohort_size,
        gain_mean=gain_mean,
        gain_std=gain_std,
        drift_std=drift_std,
        local_time=local_time if local_time else None,  # checked where it is not 0
    )
    form = rule_form(rule)
    empty_partition = check_choice("empty_partition", empty_partition, POLICIES)
    policy = empty_partition if form.has_policy else None
    found = predict(case, (form.name,))
    own = next(r for r in found.rules if r.empty_partition in (None, policy))
    asked: dict[str, Any] = {"cohort_size": case.cohort_size, "empty_partition": policy or "carry"}
    return Exploration(
        case,
        form.name,
        policy,
        _rows(case, found, own),
        _energy(case, form.name, asked),
        _training(case, form.name, asked),
        tuple(dict.fromkeys([*own.reasons.values(), *found.notes])),
    )


def _word(verdict: Collapse) -> str:
    return "is undecided" if verdict is Collapse.UNDECIDED else str(verdict)


def _rows(case: Case, found: Prediction, own: RulePrediction) -> tuple[Row, ...]:
    unknown = np.full(len(case.partitions), np.nan)

    def of(name: str) -> Array:
        return own.values.get(name, unknown)

    start = left_of_the_start(case, own.rule, own.empty_partition)
    passive, trained = _passive(case, start), _trained(case, own, start)
    columns = {
        "coverage": found.coverage,
        "empty": found.empty_probability,
        "rate": of("energy_rate"),
        "typical": of("typical_rate"),
        "half_life": of("typical_half_life"),
        "survival": of("survival"),
        "floor": of("energy_floor"),
        "threshold": of("collapse_threshold"),
        "held": of("flow_floor"),
    }
    return tuple(
        Row(
            directions=directions_label(part),
            passive=passive[h],
            trained=trained[h],
            **{name: float(values[h]) for name, values in columns.items()},
        )
        for h, part in enumerate(case.partitions)
    )


def _passive(case: Case, start: RulePrediction) -> tuple[Collapse, ...]:
    """Judge by the criteria of `analysis.collapse` what a typical run has left of its start."""
    rate = start.values.get("typical_rate")
    if rate is None:
        return (Collapse.UNDECIDED,) * len(case.partitions)
    with np.errstate(divide="ignore", invalid="ignore"):
        beside = rate / rate[0]
    lost = 1 - start.values["survival"]
    numbers = {"extinct": lost, "relative_late": beside, "left": beside**case.rounds}
    exact = {name: Measurement(x, x, x, 1) for name, x in numbers.items()}
    return (Collapse.KEEPS, *by_partition(exact))


def _trained(case: Case, own: RulePrediction, start: RulePrediction) -> tuple[Collapse | None, ...]:
    """Held where training is longer than the threshold, and most runs do not lose it meanwhile."""
    if case.local_time is None:
        return (None,) * len(case.partitions)
    if "collapse_threshold" not in own.values or "survival" not in start.values:
        return (Collapse.UNDECIDED,) * len(case.partitions)
    held = own.values["collapse_threshold"] < case.local_time
    lives = start.values["survival"] > 1 / 2
    return tuple(Collapse.KEEPS if ok else Collapse.COLLAPSES for ok in held & lives)


def _energy(case: Case, rule: str, asked: dict[str, Any]) -> Array | None:
    return _known(
        lambda: closed_form.energy_trajectory(
            rule,
            case.ranks,
            case.rounds,
            initial_amplitude=case.initial_amplitudes,
            gain_mean=case.gain_mean,
            gain_std=case.gain_std,
            drift_std=case.drift_std,
            **asked,
        )
    )


def _training(case: Case, rule: str, asked: dict[str, Any]) -> Array | None:
    time = case.local_time
    if time is None:
        return None
    return _known(
        lambda: closed_form.flow_trajectory(
            rule,
            case.ranks,
            case.rounds,
            target=case.target,
            local_time=time,
            initial_amplitude=case.initial_amplitudes,
            **asked,
        )
    )


def _known(formula: Callable[[], Array]) -> Array | None:
    """What a formula gives; None where it has no closed form, of which `predict` gives reasons."""
    found = None
    with suppress(InputError):  # the case is sound: this rule has no closed form in it
        found = formula()
    return found
