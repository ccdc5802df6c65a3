"""`predict`: predict a scenario in closed form, with the names and labels of a simulation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import numpy as np
import xarray as xr

from analysis import closed_form
from analysis.closed_form.scope import check_scope
from analysis.closed_form.setting import RULES, RuleForm, is_full, known_names, rule_form
from analysis.cohorts.law import Array, MonteCarloWarning, allocation_of
from fedlora_sim.datasets import LABELS, direction_coords
from fedlora_sim.errors import (
    MOST_ROUNDS,
    InputError,
    check_count,
    check_finite,
    check_positive,
    check_sequence,
    expected,
)
from fedlora_sim.metrics import effective_rank, energy_ratio
from fedlora_sim.scenario import Scenario, TrainingFields
from fedlora_sim.tolerances import relative
from fedlora_sim.version import __version__

if TYPE_CHECKING:
    from fedlora_sim.rules import AggregationRule

HARMONIC = (
    "over random cohorts flow_amplitude and flow_floor are 1/E[1/x], given a carrier of the "
    "direction in every round (for ffa E[x]); 1/E[1/x] vanishes before a typical run collapses, "
    "which is what collapse_threshold says"
)
"""The mean to which amplitudes of training refer."""

TRAINED = (
    "training towards a target takes the place of gains and drifts, which do not enter thresholds, "
    "floors and rates of training"
)
"""What predictions of training leave out."""

NO_FACTOR = "its energy does not change by one factor per round"
"""Reason why rules with two states, or with state-dependent weights, have no such factor."""

LATE = (
    "energies of fedex and hetlora do not change by one factor per round: their factors are the "
    "limits of late rounds, and they have no half-life"
)
"""Meaning of factors per round for rules with two states, or with state-dependent weights."""

PLACES = (
    "the server cuts clients their directions from sorted singular values, and directions may "
    "change places"
)
"""Reason why the matrix fidelity is not predicted if amplitudes may change their order."""

SORTED = "singular values are sorted and do not follow their directions: see projected_energy"
"""Reason why energies of sorted singular values are not predicted under random allocation."""

EQUAL = "directions of equal amplitude turn into each other"
"""Reason why the initial basis is undefined for amplitudes that start equal."""

ROUNDS, DIRECTIONS = ("round", "direction"), ("direction",)
_UNIT = {"energy": LABELS["energy"][1], "amplitude": "amplitude of dW", "rounds": "rounds"}
VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "energy": (ROUNDS, "mean energy of the direction, E[sigma_i**2]", _UNIT["energy"]),
    "mean_amplitude": (ROUNDS, "mean amplitude of the direction, E[sigma_i]", _UNIT["amplitude"]),
    "rho": (("round",), "energy ratio of the mean energies", LABELS["rho"][1]),
    "effective_rank": (
        ("round",),
        "effective rank of the mean energies",
        LABELS["effective_rank"][1],
    ),
    "energy_rate": (DIRECTIONS, "factor of the mean energy per round, drift apart", "1"),
    "half_life": (DIRECTIONS, "half-life of the mean energy", _UNIT["rounds"]),
    "typical_rate": (DIRECTIONS, "factor of the energy per round of a typical run", "1"),
    "typical_half_life": (DIRECTIONS, "half-life of a typical run's energy", _UNIT["rounds"]),
    "energy_floor": (DIRECTIONS, "stationary mean energy", _UNIT["energy"]),
    "extinction_probability": (DIRECTIONS, "chance per round of a cohort without carrier", "1"),
    "survival": (DIRECTIONS, "probability that the direction survives all rounds", "1"),
    "collapse_threshold": (DIRECTIONS, "local time below which the direction collapses", "time"),
    "flow_floor": (DIRECTIONS, "amplitude at which training holds it", _UNIT["amplitude"]),
    "flow_rate": (DIRECTIONS, "factor per round of the approach to that amplitude", "1"),
    "flow_amplitude": (ROUNDS, "amplitude under training", _UNIT["amplitude"]),
    "drift_floor": (DIRECTIONS, "mean amplitude at which drift holds it", _UNIT["amplitude"]),
    "drift_growth": (DIRECTIONS, "growth of the mean amplitude per late round", _UNIT["amplitude"]),
    "drift_settling": (
        DIRECTIONS,
        "rounds until the mean amplitude stays within 10% of its floor",
        _UNIT["rounds"],
    ),
    "drift_std": (ROUNDS, "standard deviation of the amplitude over runs", _UNIT["amplitude"]),
}
"""Dimensions, meaning and unit of all predicted variables."""

PROJECTED = (ROUNDS, "mean energy on the initial basis, E[(u_i^T dW v_i)**2]", _UNIT["energy"])
"""The same for `projected_energy`, which only the matrix fidelity has."""

MOST_VALUES = 100_000_000
"""Maximum number of values of one variable."""

TRAINING = ("collapse_threshold", "flow_floor", "flow_rate", "flow_amplitude")
"""Variables that need `local_loss="quadratic"`."""

DRIFT = ("drift_floor", "drift_growth", "drift_settling", "drift_std")
"""Variables that need `local_loss="drift"`."""


# One scenario under one rule


def predict(scenario: Scenario, rule: str | AggregationRule = "raflora") -> xr.Dataset:
    """Predict a scenario under one server rule in closed form.

    Args:
        scenario: the scenario, at fidelity `spectral` or `matrix`.
        rule: name of the server rule, or an `AggregationRule`, as for `simulate`.

    Returns:
        Dataset with the names and coordinates of a simulation's, without seeds. Per (round,
        direction): `energy`, `mean_amplitude`, `flow_amplitude` and `drift_std`; at matrix fidelity
        also `projected_energy`. Per (round): `rho` and `effective_rank`, both of the mean energies.
        Per (direction): `energy_rate`, `half_life`, `typical_rate`, `typical_half_life`,
        `energy_floor`, `extinction_probability`, `survival` after the last round,
        `collapse_threshold`, `flow_floor`, `flow_rate`, `drift_floor`, `drift_growth` and
        `drift_settling`. Coordinates `partition` and `coverage`.
        Values without a closed form are NaN; the reason is in the variable's attribute `reason`,
        and in the dataset's attribute `reasons` (JSON, by variable). Further attributes hold the
        scenario, the rule and `notes` (JSON), for instance on estimated distributions.

    Raises:
        InputError: if the argument is not a scenario, the rule is unknown (names the closest one),
            or rounds times directions do not fit in memory.
    """
    _check(scenario)
    label, form = _resolve(rule)
    notes: list[str] = []
    # an energy that overflows is infinite, which datasets and records can represent
    with _noted(notes), np.errstate(over="ignore", invalid="ignore"):
        found = _Prediction(scenario, label, form)
        found.fill()
    trains = scenario.local_loss == "quadratic"
    if trains and not found.is_full:
        notes.append(HARMONIC)
    if form is not None and not _is_geometric(form):
        notes.append(LATE)
    return found.dataset(tuple(dict.fromkeys(notes)))


def _check(scenario: object) -> None:
    """Refuse anything but a scenario whose prediction fits in memory."""
    if not isinstance(scenario, Scenario):
        raise expected("scenario", scenario, "a Scenario")
    check_count("rounds", scenario.rounds, min(MOST_ROUNDS, MOST_VALUES // max(scenario.ranks)))


def _resolve(rule: str | AggregationRule) -> tuple[str, RuleForm | None]:
    """Return the rule's label and its form; None for rules or options without closed forms."""
    if isinstance(rule, str) and rule.strip().lower() in known_names():
        form = rule_form(rule)
        return form.name, form
    from fedlora_sim.rules import get_rule  # torch takes seconds, and names do not need it

    chosen = get_rule(rule)
    known = chosen.label in RULES and type(get_rule(chosen.label)) is type(chosen)
    return chosen.label, rule_form(chosen.label) if known else None


@contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Collect warnings on estimated distributions as notes."""
    with catch_warnings(record=True) as caught:
        simplefilter("always")
        yield
    notes += [str(one.message) for one in caught if issubclass(one.category, MonteCarloWarning)]


def _is_geometric(form: RuleForm) -> bool:
    """Return True if the mean energy changes by the same factor in every round, without drift."""
    return not form.norm_weighted and form.space != "residual"


class _Prediction:
    """The variables of one prediction, filled one by one."""

    def __init__(self, scenario: Scenario, label: str, form: RuleForm | None) -> None:
        self.scenario, self.label, self.form = scenario, label, form
        self.values: dict[str, Array] = {}
        self.reasons: dict[str, str] = {}

    @property
    def is_full(self) -> bool:
        """True if all rounds are equal."""
        return is_full(self.scenario)

    def fill(self) -> None:
        """Evaluate all forms, and keep the reason for those without a value."""
        scenario = self.scenario
        self._add("extinction_probability", lambda: closed_form.extinction_probability(scenario))
        if self.form is None:
            self._give_up(
                expected("rule", self.label, f"one of {', '.join(RULES)}: no closed form")
            )
            return
        passive = scenario.local_loss != "quadratic" and scenario.allocation == "svd"
        if scenario.fidelity == "matrix" and passive:
            try:
                self._check_order()
            except InputError as error:
                self._give_up(error)
                return
        rule, cf = self.form.name, closed_form
        self._add("energy_rate", lambda: cf.energy_rate(scenario, rule))
        self._follow("half_life", "energy_rate", self._half_life)
        self._add("typical_rate", lambda: cf.typical_rate(scenario, rule))
        self._follow("typical_half_life", "typical_rate", self._typical_half_life)
        self._add("energy_floor", lambda: cf.energy_floor(scenario, rule))
        self._add("survival", lambda: cf.survival(scenario, rule)[-1])
        self._add("collapse_threshold", lambda: cf.collapse_threshold(scenario, rule))
        self._add("flow_floor", lambda: cf.flow_floor(scenario, rule))
        self._add("flow_rate", self._flow_rate)
        self._add("flow_amplitude", lambda: cf.flow_trajectory(scenario, rule))
        for name in DRIFT:
            self._add(name, partial(getattr(cf, name), scenario, rule))
        if scenario.local_loss == "quadratic":
            self._follow("mean_amplitude", "flow_amplitude", self._flow_mean)
            self._follow("energy", "flow_amplitude", self._flow_energy)
        else:
            self._add("mean_amplitude", lambda: cf.mean_trajectory(scenario, rule))
            self._add("energy", lambda: cf.energy_trajectory(scenario, rule))
        if scenario.fidelity == "matrix":
            self._follow("projected_energy", "energy", self._projected)
            self._follow("energy", "energy", self._sorted)
        level = scenario.federation.levels[0]
        self._follow("rho", "energy", lambda energy: energy_ratio(energy, level))
        self._follow("effective_rank", "energy", effective_rank)

    def _give_up(self, error: InputError) -> None:
        """Leave out all variables without a value, for one reason."""
        for name in self._variables():
            if name not in self.values:
                self.reasons.setdefault(name, str(error))

    def _add(self, name: str, evaluate: Callable[[], Array]) -> None:
        try:
            self.values[name] = evaluate()
        except ValueError as error:  # the scenario is valid: the form does not cover it
            self.reasons[name] = str(error)

    def _follow(self, name: str, source: str, evaluate: Callable[[Array], Array]) -> None:
        """Add a value that follows from another variable, or that variable's reason."""
        if source in self.reasons:
            self.reasons[name] = self.reasons[source]
            return
        values = self.values.pop(source) if name == source else self.values[source]
        self._add(name, lambda: evaluate(values))

    def _half_life(self, rate: Array) -> Array:
        """Return the half-lives, except of energies without a constant factor per round."""
        for name in ("drift_mean", "drift_std", "drift_levels"):
            value = getattr(self.scenario, name)
            if np.any(value):
                reason = "drift holds the energy up, so it does not halve at its rate"
                raise expected(name, value, f"0 ({reason})")
        return self._typical_half_life(rate)

    def _typical_half_life(self, rate: Array) -> Array:
        assert self.form is not None
        if not _is_geometric(self.form):
            raise expected("rule", self.label, f"another rule ({NO_FACTOR}: no half-life)")
        return closed_form.half_life(rate)

    def _flow_rate(self) -> Array:
        """Return the rate of approach, except for hetlora, where it is known only near collapse."""
        assert self.form is not None
        rate = closed_form.flow_rate(self.scenario, self.form.name)
        if self.form.norm_weighted:
            reason = "its weights depend on the state: the factor is known near collapse alone"
            raise expected("rule", self.label, f"another rule ({reason})")
        return rate

    def _flow_mean(self, amplitude: Array) -> Array:
        assert self.form is not None
        return amplitude if self.form.name == "ffa" else self._of_every_run(amplitude)

    def _flow_energy(self, amplitude: Array) -> Array:
        return self._of_every_run(amplitude) ** 2

    def _of_every_run(self, amplitude: Array) -> Array:
        """Return the amplitudes if they are equal in all runs."""
        assert self.form is not None
        empty = closed_form.extinction_probability(self.scenario)
        undiluted = self.form.normalizer == "contributors" and not empty.any()
        if self.is_full or undiluted:
            return amplitude
        size = self.scenario.federation.cohort_size
        reason = "over random cohorts only 1/E[1/x] is known, in flow_amplitude"
        raise expected("cohort_size", size, f"full participation ({reason})")

    def _check_order(self) -> None:
        """Refuse the matrix fidelity if an SVD may send clients other directions.

        Amplitudes must keep their order in every run. They are known if all runs are equal;
        otherwise the shares that multiply them must decrease with the direction.
        """
        scenario, form = self.scenario, self.form
        assert form is not None
        alike = scenario.gain_std == scenario.drift_std == 0
        if alike and self.is_full:
            mean = np.abs(closed_form.mean_trajectory(scenario, form.name))
            if (np.diff(mean, axis=-1) > relative("reduction") * mean[:, :-1]).any():
                raise expected("fidelity", "matrix", f"'spectral' ({PLACES})")
            return
        g, c = scenario.gain_mean, scenario.drift_means
        # carriers of a direction carry all earlier ones
        falls = alike and g >= 0 and bool((c >= 0).all() and (np.diff(c) <= 0).all())
        held = form.has_policy and scenario.empty_partition == "carry"
        if form.space == "base" or (held and self.values["extinction_probability"].any()):
            falls = falls and g >= 1
        if not falls or form.space == "residual" or form.norm_weighted:
            raise expected("fidelity", "matrix", f"'spectral' ({PLACES})")

    def _projected(self, energy: Array) -> Array:
        """Return the energies on the initial basis, which are those of the directions."""
        decay = self.scenario.spectrum_decay
        if decay == 1 and len(self.scenario.ranks) > 1:
            raise expected("spectrum_decay", decay, f"a number below 1 ({EQUAL})")
        return energy

    def _sorted(self, energy: Array) -> Array:
        """Return the energies of sorted singular values: those of directions in constant order."""
        if self.scenario.allocation != "svd":
            raise expected("allocation", self.scenario.allocation, f"'svd' ({SORTED})")
        return energy

    def _variables(self) -> dict[str, tuple[tuple[str, ...], str, str]]:
        more = {"projected_energy": PROJECTED} if self.scenario.fidelity == "matrix" else {}
        return VARIABLES | more

    def dataset(self, notes: Sequence[str]) -> xr.Dataset:
        """Label the values; missing ones are NaN, with a reason."""
        scenario = self.scenario
        sizes = {"round": scenario.rounds + 1, "direction": scenario.federation.r_max}
        variables = {}
        for name, (dims, meaning, unit) in self._variables().items():
            attrs = {"long_name": meaning, "units": unit}
            values = self.values.get(name)
            if values is None:
                values = np.full([sizes[dim] for dim in dims], np.nan)
                attrs["reason"] = self.reasons[name]
            variables[name] = xr.Variable(dims, values, attrs)
        return xr.Dataset(
            variables,
            coords={
                "round": np.arange(sizes["round"]),
                **direction_coords(scenario.federation, scenario.allocation),
            },
            attrs={
                **scenario.to_attrs(),
                "rule": self.label,
                "fedlora_sim_version": __version__,
                "rho_level": scenario.federation.levels[0],
                "reasons": json.dumps(self.reasons),
                "notes": json.dumps(list(notes)),
            },
        )


def reasons(theory: xr.Dataset) -> dict[str, str]:
    """Return the reasons for missing variables of a prediction, by variable."""
    return {str(k): v.attrs["reason"] for k, v in theory.data_vars.items() if "reason" in v.attrs}


def left_of_the_start(scenario: Scenario, rule: str) -> xr.Dataset:
    """Predict the remaining part of the start, without drift: `typical_rate` and `survival`.

    Drift adds energy that does not belong to the start. If gains differ the rate has no closed form
    and is NaN.
    """
    none = {"drift_mean": 0.0, "drift_std": 0.0, "drift_levels": None}
    return predict(scenario.replace(**none), rule)[["typical_rate", "survival"]]


# Comparison of several rules, as the command shows it. A partition's numbers are those of its first
# direction, because all its directions behave alike; energies are means over its directions, which
# may start and stop at different amplitudes.

LEAST = 1e-150
"""Lowest initial amplitude of a partition: squares of lower ones are not exact any more."""

MEANS = ("energy", "energy_floor", "relative_energy")
"""Quantities that are means over the directions of a partition."""


def check_start(argument: str, value: float, amplitude: float | None = None) -> float:
    """Return the value if initial amplitudes have energies that can be compared.

    Args:
        argument: its name.
        value: the given value.
        amplitude: its initial amplitude; the value itself when None.

    Raises:
        InputError: names the argument.
    """
    number = check_finite(argument, value)
    start = number if amplitude is None else amplitude
    if not LEAST <= start <= 1 / LEAST:
        bounds = f"amplitudes at the start from {LEAST:g} to {1 / LEAST:g}, not {start:.3g}"
        raise expected(argument, value, f"{bounds} (energies are squares)")
    return number


def directions_label(part: slice) -> str:
    """Return the directions of a partition, counted from 1: `9–16`, or `1` alone."""
    return f"{part.stop}" if part.stop == part.start + 1 else f"{part.start + 1}–{part.stop}"


def rule_label(rule: str, empty_partition: str | None) -> str:
    """Return a rule with its policy, for tables."""
    return rule if empty_partition is None else f"{rule}, {empty_partition}"


@dataclass(frozen=True)
class RulePrediction:
    """One rule of a comparison, with the values of each partition.

    Args:
        rule: name of the rule.
        empty_partition: its policy, `zero` or `carry`; None for a rule without one.
        theory: its prediction, with the variables of training if requested.
    """

    rule: str
    empty_partition: str | None
    theory: xr.Dataset

    @property
    def label(self) -> str:
        """The rule with its policy."""
        return rule_label(self.rule, self.empty_partition)

    @cached_property
    def scenario(self) -> Scenario:
        """The predicted scenario."""
        return Scenario.from_attrs(self.theory.attrs)

    @property
    def quantities(self) -> tuple[str, ...]:
        """Requested quantities; floor and rate of training only with a local time."""
        return tuple(n for n in QUANTITIES if n == "relative_energy" or n in self.theory)

    def of(self, name: str) -> Array | None:
        """Return a quantity by partition, energies (rounds + 1, partitions); None without one."""
        if name == "relative_energy":
            energy = self.of("energy")
            with np.errstate(over="ignore"):
                return None if energy is None else energy[-1] / energy[0]
        values = self.theory[name]
        if "reason" in values.attrs:
            return None
        parts = self.scenario.federation.partitions
        if name in MEANS:
            with np.errstate(over="ignore"):
                return np.stack([values.values[..., p].mean(axis=-1) for p in parts], axis=-1)
        return np.asarray(values.values[..., [p.start for p in parts]])

    @property
    def reasons(self) -> dict[str, str]:
        """Reasons for missing values."""
        found = {name: why for name, why in reasons(self.theory).items() if name in QUANTITIES}
        if "energy" in found:
            found["relative_energy"] = found["energy"]
        return found


QUANTITIES = (
    *("energy_rate", "half_life", "typical_rate", "typical_half_life", "survival"),
    *("relative_energy", "energy_floor", "energy", *TRAINING[:3]),
)
"""Quantities in a comparison."""


def with_training(
    scenario: Scenario, rule: str, *, local_time: float | None = None
) -> RulePrediction:
    """Predict a rule for clients that return `a x + b`, and for clients that train instead.

    Args:
        scenario: clients that return `a x + b`; its target is used for training.
        rule: name of a rule with closed forms.
        local_time: local time of a round's training; None leaves out its floor, rate and
            amplitudes.

    Raises:
        InputError: if the rule is unknown, or the initial energies cannot be compared.
    """
    _check(scenario)
    check_start("initial_amplitude", scenario.initial_amplitude)
    for part in scenario.federation.partitions:  # the first direction of each has the most energy
        amplitude = float(scenario.initial_amplitudes[part.start])
        check_start("spectrum_decay", scenario.spectrum_decay, amplitude)
    form = rule_form(rule)
    allocation_of(scenario.allocation)  # no form of any rule covers importance
    time = {} if local_time is None else {"local_time": check_positive("local_time", local_time)}
    none: dict[str, Any] = {"gain_mean": 1.0, "gain_std": 0.0, "drift_mean": 0.0, "drift_std": 0.0}
    none |= {"drift_levels": None, "learning_rate_schedule": "constant"}
    training = scenario.replace(local_loss="quadratic", **none, **time)
    theory = predict(scenario, form.name).drop_vars((*TRAINING, *DRIFT))
    trained = predict(training, form.name)
    notes = json.loads(theory.attrs["notes"]) + json.loads(trained.attrs["notes"])
    theory = theory.assign({n: trained[n] for n in (TRAINING if time else TRAINING[:1])})
    theory.attrs["local_time"] = training.local_time
    theory.attrs["notes"] = json.dumps([n for n in notes if n != HARMONIC or time])
    return RulePrediction(form.name, scenario.empty_partition if form.has_policy else None, theory)


def compare(
    scenario: Scenario, rules: Sequence[str] = RULES, *, local_time: float | None = None
) -> tuple[RulePrediction, ...]:
    """Predict a scenario under several rules, with a separate prediction per policy.

    Args:
        scenario: as for `with_training`.
        rules: names of rules.
        local_time: as for `with_training`.

    Returns:
        One prediction per rule and policy, in the order of the rules.

    Raises:
        InputError: if a rule is unknown, or the initial energies cannot be compared.
    """
    _check(scenario)
    return tuple(
        with_training(
            scenario.replace(empty_partition=policy or scenario.empty_partition),
            form.name,
            local_time=local_time,
        )
        for form in map(rule_form, check_sequence("rules", rules, "names of rules"))
        for policy in form.policies
    )


def comparison_notes(rows: Sequence[RulePrediction]) -> list[str]:
    """Return notes on a comparison, for instance on estimated distributions."""
    notes = [note for row in rows for note in json.loads(row.theory.attrs["notes"])]
    scenario = rows[0].scenario if rows else None
    passive = ("gain_mean", "gain_std", "drift_mean", "drift_std", "drift_levels")
    if scenario and any(getattr(scenario, n) != getattr(Scenario, n) for n in passive):
        notes.append(TRAINED)
    return list(dict.fromkeys(notes))


# Meaning of an infinite value, by quantity.
INFINITE = {
    "half_life": "infinite: it does not fall",
    "typical_half_life": "infinite: it does not fall",
    "energy_floor": "infinite: the factor per round is 1 or more, nothing holds the energy",
    "collapse_threshold": "infinite: no local training time prevents the collapse",
}
OVERFLOW = "infinite: beyond the range of numbers"


def comparison_record(rows: Sequence[RulePrediction]) -> dict[str, Any]:
    """Return a comparison as plain data for JSON, without infinite or undefined numbers.

    Keys: `scenario`, its fields except those of fine-tuning; `partitions`, each with `level`,
    `first` and `last` direction, number of `clients`, `coverage` and `extinction_probability`;
    `notes`; and `rules`, each with `rule`, `empty_partition` (or null) and, by quantity,
    `{"values": one number per partition, "reason": null}`; `energy` has one such list per round.
    Without a closed form `values` is null and `reason` explains why. A single null among values
    means infinity, which `reason` then explains.
    """
    first = rows[0]
    scenario, federation = first.scenario, first.scenario.federation
    of_training = {f.name for f in fields(TrainingFields)}
    own = {f.name: getattr(scenario, f.name) for f in fields(Scenario) if f.name not in of_training}
    del own["empty_partition"]  # each rule has its own
    resolved = ("ranks", "num_samples", "cohort_size", "sampling")
    own |= {name: getattr(federation, name) for name in resolved}
    covered = first.theory["coverage"].values
    empty = first.theory["extinction_probability"].values
    return {
        "scenario": {n: list(v) if isinstance(v, tuple) else v for n, v in own.items()},
        "partitions": [
            {
                "level": level,
                "first": part.start + 1,
                "last": part.stop,
                "clients": sum(rank >= level for rank in federation.ranks),
                "coverage": float(covered[part.start]),
                "extinction_probability": float(empty[part.start]),
            }
            for level, part in zip(federation.levels, federation.partitions, strict=True)
        ],
        "rules": [_rule_record(row) for row in rows],
        "notes": comparison_notes(rows),
    }


def _rule_record(row: RulePrediction) -> dict[str, Any]:
    record: dict[str, Any] = {"rule": row.rule, "empty_partition": row.empty_partition}
    why = row.reasons
    for name in row.quantities:
        if name in why:
            record[name] = {"values": None, "reason": why[name]}
        else:
            values = row.of(name)
            assert values is not None
            finite = np.isfinite(values)
            plain = values.astype(object)
            plain[~finite] = None
            reason = None if finite.all() else INFINITE.get(name, OVERFLOW)
            record[name] = {"values": plain.tolist(), "reason": reason}
    return record


# A direction by its number of carriers
#
# With equal sample counts the moments of a direction depend on the rule and on how many of the K
# clients carry it. A federation with one client of each rank 1..K has each such number once, so a
# rule's closed forms are evaluated once and not per configuration.


@dataclass(frozen=True)
class ByCarriers:
    """A direction after the last round under one rule, by number of carriers 0..K, each (K + 1,).

    From an initial amplitude x its mean amplitude is `mean x` and its mean energy
    `second x**2 + drift`; without carriers both are zero.

    Args:
        rule: the rule.
        empty_partition: its policy, `zero` or `carry`; None for a rule without one.
        mean: factor of the mean amplitude.
        second: factor of the mean energy.
        drift: mean energy that drifts add.
        rate: factor of the mean energy per round, without drift; None if there is no constant
            factor (fedex, whose base keeps its value).
    """

    rule: str
    empty_partition: str | None
    mean: Array
    second: Array
    drift: Array
    rate: Array | None


def by_carriers(scenario: Scenario, rule: str) -> ByCarriers:
    """Return the result of a rule for a direction, by its number of carriers.

    Args:
        scenario: as many clients, of equal sample counts and any ranks, and what they return.
        rule: name of a rule.

    Raises:
        InputError: for a field that the forms do not cover, and for hetlora.
    """
    form = rule_form(rule)
    check_scope("energy_trajectory", scenario, {})
    check_count("rounds", scenario.rounds, MOST_ROUNDS)
    if form.norm_weighted:
        reason = "weights depend on all directions, not on the number of carriers"
        raise expected("rule", form.name, f"another rule ({reason})")
    samples = scenario.federation.num_samples or ()
    if len(set(samples)) > 1:
        reason = "else it matters which clients carry a direction"
        raise expected("num_samples", list(samples), f"equal values ({reason})")
    reason = "a mean drift adds to what is left of the start"
    if scenario.drift_levels is not None:
        raise expected("drift_levels", scenario.drift_levels, f"None ({reason})")
    if scenario.drift_mean != 0:
        raise expected("drift_mean", scenario.drift_mean, f"0 ({reason})")
    ranks = tuple(range(1, scenario.federation.num_clients + 1))
    ladder = scenario.replace(ranks=ranks, fidelity="spectral")
    alone = ladder.replace(drift_std=0.0)
    name = form.name
    return ByCarriers(
        name,
        scenario.empty_partition if form.has_policy else None,
        _by_carriers(closed_form.mean_trajectory(alone, name, initial_amplitude=1.0)[-1]),
        _by_carriers(closed_form.energy_trajectory(alone, name, initial_amplitude=1.0)[-1]),
        # a zero-mean drift adds its own energy, for every start
        _by_carriers(closed_form.energy_trajectory(ladder, name, initial_amplitude=0.0)[-1]),
        _by_carriers(closed_form.energy_rate(ladder, name)) if _is_geometric(form) else None,
    )


def _by_carriers(by_direction: Array) -> Array:
    """Return values by number of carriers, zero without any.

    Direction i of ranks 1..K has K + 1 - i carriers.
    """
    return np.concatenate([[0.0], by_direction[::-1]])
