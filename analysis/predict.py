"""What the closed forms say of one federation, for every rule side by side: no simulation.

A partition's numbers are those of its first direction, since all directions of a partition fare
alike; energies are means over its directions, which may start and stop at different amplitudes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np

from analysis import closed_form
from analysis.closed_form.setting import RULES, federation_of, is_full, rule_form
from analysis.cohorts.law import Array
from fedlora_sim.errors import (
    MOST_ROUNDS,
    check_choice,
    check_count,
    check_finite,
    check_positive,
    check_sequence,
    check_share,
    expected,
)
from fedlora_sim.federation import Federation

LEAST = 1e-150
"""Lowest amplitude of a partition at the start: squares of lower ones are no longer exact."""

HARMONIC = (
    "over random cohorts the amplitude at the end of training is 1/E[1/x] where somebody carries "
    "the direction in every round, for ffa E[x]; 1/E[1/x] vanishes before a typical run collapses, "
    "of which the threshold speaks"
)
"""What the floors of training are means of."""

TRAINED = (
    "training towards a target stands in place of gains and drifts, which do not enter thresholds, "
    "floors and rates of training"
)
"""What the questions about training leave out."""

NO_FACTOR = "its energy does not change by one factor per round"
"""Why rules of two states, or with weights that depend on the state, have no such factor."""

LATE = (
    "energies of fedex and hetlora do not change by one factor per round: their factors are the "
    "limits of late rounds, and they have no half-life"
)
"""What factors per round mean for rules of two states, or with weights that depend on the state."""


@dataclass(frozen=True)
class Case:
    """What is predicted: a federation, its clients' updates, and for how long.

    Args:
        ranks: client ranks, a sequence or text (`"8x10,16x6"`: rank 8, 10 clients; ...).
        rounds: number of rounds T.
        cohort_size, num_samples, sampling: see `Federation`.
        allocation: which directions clients carry, `svd` or `random`.
        gain_mean, gain_std: of the factor a by which a client's round changes an amplitude.
        drift_mean, drift_std: of what it adds, in units of the amplitude.
        initial_amplitude: amplitude of the first direction at round 0.
        spectrum_decay: each direction starts with this share of the one before, in (0, 1].
        target: amplitude that local training aims at, for the questions about training.
        local_time: time T of local gradient flow per round; None leaves floor and rate out.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """

    ranks: str | Sequence[int]
    rounds: int = 100
    cohort_size: int | None = None
    num_samples: Sequence[float] | None = None
    sampling: str | None = None
    allocation: str = "svd"
    gain_mean: float = 1.0
    gain_std: float = 0.0
    drift_mean: float = 0.0
    drift_std: float = 0.0
    initial_amplitude: float = 1.0
    spectrum_decay: float = 0.9
    target: float = 1.0
    local_time: float | None = None
    federation: Federation = field(init=False, repr=False)

    def __post_init__(self) -> None:
        federation = federation_of(self.ranks, self.num_samples, self.cohort_size, self.sampling)
        samples = None if self.num_samples is None else federation.num_samples
        checked: dict[str, Any] = {
            "federation": federation,
            "ranks": self.ranks if isinstance(self.ranks, str) else federation.ranks,
            "num_samples": samples,
            "rounds": check_count("rounds", self.rounds, MOST_ROUNDS),
            "allocation": check_choice("allocation", self.allocation, ("svd", "random")),
        }
        for name in ("gain_mean", "drift_mean"):
            checked[name] = check_finite(name, getattr(self, name))
        for name in ("gain_std", "drift_std"):
            checked[name] = check_finite(name, getattr(self, name), minimum=0.0)
        for name in ("initial_amplitude", "target"):
            checked[name] = check_positive(name, getattr(self, name))
        if self.local_time is not None:
            checked["local_time"] = check_positive("local_time", self.local_time)
        checked["spectrum_decay"] = check_share("spectrum_decay", self.spectrum_decay)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        check_start("initial_amplitude", self.initial_amplitude)
        for part in self.partitions:  # the first direction of each has the most energy
            amplitude = float(self.initial_amplitudes[part.start])
            check_start("spectrum_decay", self.spectrum_decay, amplitude)

    @property
    def is_full(self) -> bool:
        """Whether all clients take part in every round, with the same directions."""
        return is_full(self.federation, self.allocation)

    @property
    def alike(self) -> bool:
        """Whether all clients multiply an amplitude by one gain and add nothing."""
        return self.gain_std == self.drift_mean == self.drift_std == 0

    @property
    def initial_amplitudes(self) -> Array:
        """Amplitudes at round 0, shape (r_max,), descending."""
        directions = np.arange(self.federation.r_max, dtype=np.float64)
        return np.asarray(self.initial_amplitude * self.spectrum_decay**directions)

    @property
    def partitions(self) -> tuple[slice, ...]:
        """Directions of each partition, lowest rank level first."""
        return self.federation.partitions


def check_start(argument: str, value: float, amplitude: float | None = None) -> float:
    """The value, if amplitudes at the start have energies that others can be compared with.

    Args:
        argument: its name.
        value: what was given.
        amplitude: what it makes of an amplitude at the start; the value itself when None.

    Raises:
        ValueError: naming the argument.
    """
    number = check_finite(argument, value)
    start = number if amplitude is None else amplitude
    if not LEAST <= start <= 1 / LEAST:
        bounds = f"amplitudes at the start from {LEAST:g} to {1 / LEAST:g}, not {start:.3g}"
        raise expected(argument, value, f"{bounds} (energies are squares)")
    return number


def directions_label(part: slice) -> str:
    """The directions of a partition, counted from 1: `9–16`, or `1` alone."""
    return f"{part.stop}" if part.stop == part.start + 1 else f"{part.start + 1}–{part.stop}"


def rule_label(rule: str, empty_partition: str | None) -> str:
    """A rule with its policy, for tables."""
    return rule if empty_partition is None else f"{rule}, {empty_partition}"


@dataclass(frozen=True)
class RulePrediction:
    """What one rule does to every partition.

    Args:
        rule: name of the rule.
        empty_partition: its policy, `zero` or `carry`; None for a rule without one.
        values: quantities by name, (partitions,); `energy` is (rounds + 1, partitions).
            `energy_rate` is the factor of the mean energy apart from what drift adds;
            `typical_rate` and `survival` are known without drift only.
        reasons: for each quantity that has no value here, why.
    """

    rule: str
    empty_partition: str | None
    values: dict[str, Array]
    reasons: dict[str, str]

    @property
    def label(self) -> str:
        """The rule with its policy."""
        return rule_label(self.rule, self.empty_partition)


@dataclass(frozen=True)
class Prediction:
    """Every rule's outcome in one case.

    Args:
        case: what was asked.
        coverage: expected weight of those who carry a partition, (partitions,).
        empty_probability: chance P0 per round that nobody does, (partitions,).
        rules: one prediction per rule and policy.
        notes: what else must be known, such as laws that had to be estimated.
    """

    case: Case
    coverage: Array
    empty_probability: Array
    rules: tuple[RulePrediction, ...]
    notes: tuple[str, ...]


def predict(case: Case, rules: Sequence[str] = RULES) -> Prediction:
    """Predict a case under rules, each policy of a rule apart.

    Args:
        case: the federation and its clients' updates.
        rules: names of rules.

    Returns:
        The prediction; what has no closed form is missing from its values, with the reason.

    Raises:
        ValueError: on an unknown rule.
    """
    if not isinstance(case, Case):
        raise expected("case", case, "a Case")
    names = check_sequence("rules", rules, "names of rules")
    notes: list[str] = []
    # an energy beyond the range of numbers is infinite, which tables and records can say
    with _noted(notes), np.errstate(over="ignore"):
        covered = np.asarray(case.federation.coverage(case.allocation))
        empty = closed_form.extinction_probability(
            case.ranks, case.cohort_size, case.num_samples, case.sampling, case.allocation
        )
        found = tuple(
            _predict_rule(case, form.name, policy)
            for form in map(rule_form, names)
            for policy in form.policies
        )
    if case.local_time is not None and not case.is_full:
        notes.append(HARMONIC)
    if not (case.alike and case.gain_mean == 1):
        notes.append(TRAINED)
    if not all(_is_geometric(row.rule) for row in found):
        notes.append(LATE)
    covered, empty = (_of_first_directions(case, values) for values in (covered, empty))
    return Prediction(case, covered, empty, found, tuple(dict.fromkeys(notes)))


@contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Keep warnings, which speak of estimated laws, as notes."""
    with catch_warnings(record=True) as caught:
        simplefilter("always")
        yield
    notes += [str(warning.message) for warning in caught]


def _of_first_directions(case: Case, values: Array) -> Array:
    """One value per partition, from values (r_max,)."""
    return values[[part.start for part in case.partitions]]


# Quantities that follow from another one.
_FOLLOWING: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "energy_half_life": ("energy_rate", closed_form.half_life),
    "typical_half_life": ("typical_rate", closed_form.half_life),
    "relative_energy": ("energy", lambda energy: energy[-1] / energy[0]),
}


def left_of_the_start(case: Case, rule: str, policy: str | None) -> RulePrediction:
    """Predict `typical_rate` and `survival` of what is left of the start, drift apart.

    Drift adds energy, but none of it is of the start. Where gains differ the rate has no closed
    form, and its value is missing.
    """
    still = replace(case, drift_mean=0.0, drift_std=0.0)
    return _predict_rule(still, rule, policy, ("typical_rate", "survival"))


def _predict_rule(
    case: Case, rule: str, policy: str | None, names: Sequence[str] | None = None
) -> RulePrediction:
    values: dict[str, Array] = {}
    reasons: dict[str, str] = {}
    formulas = _formulas(case, rule, policy or "carry")
    for name in formulas if names is None else names:
        try:
            values[name] = formulas[name]()
        except ValueError as error:  # the case is sound: this rule has no closed form in it
            reasons[name] = str(error)
    for name, (source, follow) in _FOLLOWING.items() if names is None else ():
        try:
            if name.endswith("half_life"):
                _check_half_life(case, rule)
            values[name] = follow(values[source])
        except KeyError:
            reasons[name] = reasons[source]
        except ValueError as error:
            reasons[name] = str(error)
    return RulePrediction(rule, policy, values, reasons)


def _is_geometric(rule: str) -> bool:
    """Whether the mean energy changes by the same factor in every round, drift apart."""
    form = rule_form(rule)
    return not form.norm_weighted and form.space != "residual"


def _check_half_life(case: Case, rule: str) -> None:
    """Refuse half-lives of energies that do not fall by one factor per round."""
    _check_no_drift(case, "drift holds the energy up, so it does not halve at its rate")
    if not _is_geometric(rule):
        raise expected("rule", rule, f"another rule ({NO_FACTOR}: no half-life)")


def _check_no_drift(case: Case, reason: str) -> None:
    for name in ("drift_mean", "drift_std"):
        if getattr(case, name) != 0:
            raise expected(name, getattr(case, name), f"0 ({reason})")


def _energy_rate(case: Case, rule: str, asked: dict[str, Any]) -> Array:
    """Return `closed_form.energy_rate`, where drift does not keep hetlora from its limit."""
    if rule_form(rule).norm_weighted:
        _check_no_drift(case, "drift keeps hetlora's weights from their uniform limit")
    return closed_form.energy_rate(rule, case.ranks, **asked)


def _flow_rate(case: Case, rule: str, asked: dict[str, Any]) -> Array:
    """Return `closed_form.flow_rate`, but for hetlora, where it is known near collapse alone."""
    if rule_form(rule).norm_weighted:
        reason = "its weights depend on the state: the factor is known near collapse alone"
        raise expected("rule", rule, f"another rule ({reason})")
    assert case.local_time is not None  # asked for training alone
    return closed_form.flow_rate(rule, case.ranks, case.target, case.local_time, **asked)


def _typical_rate(case: Case, rule: str, asked: dict[str, Any]) -> Array:
    """Return `closed_form.typical_rate` where the case is one that it covers."""
    _check_no_drift(case, "with drift the log energy is no random walk: no closed form")
    if case.gain_std != 0:
        reason = "the mean logarithm of a weighted sum of different gains has no closed form"
        raise expected("gain_std", case.gain_std, f"0 ({reason})")
    return closed_form.typical_rate(rule, case.ranks, gain_mean=case.gain_mean, **asked)


def _survival(case: Case, rule: str, asked: dict[str, Any]) -> Array:
    """Return `closed_form.survival` after the last round where the case is one that it covers."""
    _check_no_drift(case, "drift brings back what a cohort without contributor has lost")
    in_base = rule_form(rule).space in ("base", "residual")
    if case.gain_std == 0 and not (case.gain_mean > 0 if in_base else case.gain_mean):
        wanted = "a gain above 0" if in_base else "a gain other than 0"
        reason = "what the clients return may cancel what there is: no closed form"
        raise expected("gain_mean", case.gain_mean, f"{wanted} ({reason})")
    return closed_form.survival(rule, case.ranks, case.rounds, **asked)[-1]


def _formulas(case: Case, rule: str, policy: str) -> dict[str, Callable[[], Array]]:
    """The closed forms by quantity, each giving values per partition."""
    asked: dict[str, Any] = {
        "cohort_size": case.cohort_size,
        "num_samples": case.num_samples,
        "sampling": case.sampling,
        "allocation": case.allocation,
        "empty_partition": policy,
    }
    gains: dict[str, Any] = {"gain_mean": case.gain_mean, "gain_std": case.gain_std}
    drifts: dict[str, Any] = {"drift_mean": case.drift_mean, "drift_std": case.drift_std}
    ranks, rounds, target, time = case.ranks, case.rounds, case.target, case.local_time
    start = case.initial_amplitudes

    def first(values: Array) -> Array:
        return _of_first_directions(case, values)

    def means(energy: Array) -> Array:
        return np.stack([energy[..., part].mean(axis=-1) for part in case.partitions], axis=-1)

    cf = closed_form
    formulas: dict[str, Callable[[], Array]] = {
        "energy_rate": lambda: first(_energy_rate(case, rule, {**asked, **gains})),
        "typical_rate": lambda: first(_typical_rate(case, rule, asked)),
        "survival": lambda: first(_survival(case, rule, asked)),
        "energy_floor": lambda: means(cf.energy_floor(rule, ranks, **asked, **gains, **drifts)),
        "energy": lambda: means(
            cf.energy_trajectory(
                rule, ranks, rounds, initial_amplitude=start, **asked, **gains, **drifts
            )
        ),
        "collapse_threshold": lambda: first(cf.collapse_threshold(rule, ranks, target, **asked)),
    }
    if time is not None:
        formulas["flow_floor"] = lambda: first(cf.flow_floor(rule, ranks, target, time, **asked))
        formulas["flow_rate"] = lambda: first(_flow_rate(case, rule, asked))
    return formulas
