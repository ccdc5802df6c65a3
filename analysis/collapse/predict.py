"""Predict a rule in a standard scenario, before anything is run.

Rules with closed forms are predicted by them. Other rules that are weights on amplitudes and
declare their multiplier are predicted by that multiplier over the distribution of cohorts, if the
round is linear. A trajectory of the closed forms is measured by the same function as runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from analysis import closed_form
from analysis.closed_form.setting import RULES, rule_form
from analysis.cohorts.law import Array, ShareLaw
from analysis.cohorts.shares import share_laws
from analysis.collapse.measure import EXTINCT, GONE, Collapse, Numbers, measure, of_partitions
from analysis.collapse.scenarios import Standard
from analysis.stats.intervals import Measurement
from analysis.stats.verdicts import FAMILY_ERROR
from fedlora_sim.errors import InputError
from fedlora_sim.federation import Federation
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.rules.external import ExternalRule

# The energy of a partition as a random walk of independent factors per round

# Decimals to which logarithms of energies are merged into one state of the walk.
DECIMALS = 9


@dataclass(frozen=True, eq=False)
class RandomWalk:
    """A partition's energy under independent rounds.

    Args:
        typical: factor per round of a surviving run, `exp(2 E[log |A| | A != 0])`; 0 if none
            survives.
        mean: factor per round of the mean energy, `E[A**2]`.
        extinct: probability to be extinct by each round, (T + 1,).
        median: median energy of each round relative to the start, (T + 1,); 0 where it is extinct.
    """

    typical: float
    mean: float
    extinct: Array
    median: Array

    @classmethod
    def of(cls, factor: Array, probability: Array, rounds: int) -> RandomWalk:
        """Return the walk with factors (n,) on an amplitude and their probabilities (n,)."""
        lives = (factor != 0) & (probability > 0)
        steps, chances = 2 * np.log(np.abs(factor[lives])), probability[lives]
        typical = float(np.exp(chances @ steps / chances.sum())) if lives.any() else 0.0
        log: Array = np.zeros(1)
        mass: Array = np.ones(1)
        extinct, median = [0.0], [1.0]
        for _ in range(rounds):
            sums = np.round(np.add.outer(log, steps).ravel(), DECIMALS)
            log, where = np.unique(sums, return_inverse=True)
            weights = np.multiply.outer(mass, chances).ravel()
            mass = np.bincount(where, weights, len(log)).astype(np.float64)
            alive = log >= np.log(EXTINCT)
            log, mass = log[alive], mass[alive]
            # extinct partitions stay extinct, whatever the later factors
            gone = max(0.0, 1.0 - float(mass.sum()))
            extinct.append(0.0 if gone < GONE else gone)
            below = gone + np.cumsum(mass)
            middle = int(np.searchsorted(below, 0.5))
            median.append(0.0 if gone > 0.5 else float(np.exp(log[min(middle, len(log) - 1)])))
        mean = float(probability @ factor**2)
        return cls(typical, mean, np.array(extinct), np.array(median))

    def times(self, factor: float) -> RandomWalk:
        """Return walk with an additional factor on the energy in all rounds, extinct as before."""
        gains = factor ** np.arange(len(self.median))
        return RandomWalk(
            self.typical * factor, self.mean * factor, self.extinct, self.median * gains
        )


def walks(
    federation: Federation,
    multiplier: Callable[[Array], Array],
    rounds: int,
    *,
    carries: bool = False,
) -> list[RandomWalk]:
    """Return the walk of each partition, lowest rank level first.

    Args:
        federation: the clients and the cohort law; SVD allocation.
        multiplier: maps shares W of the contributors in the cohort's weights, (n,), to factors.
        rounds: number of rounds T.
        carries: whether a partition without contributors is kept.

    Returns:
        One walk per rank level. Extinct means lost relative to the shared partition, which every
        client carries, as in runs; if that one is lost by the end, it means lost absolutely.
    """
    shared = float(np.abs(multiplier(np.ones(1)))[0])
    unit = shared if shared > GONE ** (0.5 / rounds) else 1.0

    def of(law: ShareLaw) -> RandomWalk:
        factor = np.asarray(multiplier(law.share), dtype=np.float64)
        if carries:
            factor = np.where(law.share == 0, 1.0, factor)
        return RandomWalk.of(factor / unit, law.probability, rounds).times(unit**2)

    return [of(law) for law in share_laws(federation)]


# Predictions

NONE_DECLARED = "no closed form declared"
NOT_APPLICABLE = "the declared multiplier is not applicable here: "
"""Prefix of the reason."""


@dataclass(frozen=True, eq=False)
class CollapsePrediction:
    """A prediction for one rule in one scenario.

    Args:
        source: source of the prediction, or the reason why there is none.
        values: numbers by kind, (M,), `rho` (1,); those without a prediction are missing.
        verdict: the predicted verdict, None without one.
        path: energies of the partitions relative to their start, (T + 1, M), for the figure; or
            None.
    """

    source: str
    values: dict[str, Array] = field(default_factory=dict)
    verdict: Collapse | None = None
    path: Array | None = None


def known_form(rule: AggregationRule) -> str | None:
    """Return the rule's name in the closed forms, which cover it without options; else None."""
    if rule.label not in RULES:
        return None
    return rule.label if type(get_rule(rule.label)) is type(rule) else None


def predict(standard: Standard, rule: AggregationRule) -> CollapsePrediction:
    """Return the prediction for a rule in a scenario."""
    name = known_form(rule)
    if name is None:
        return _declared(standard, rule)
    try:
        return _known(standard, name)
    except InputError as error:  # the scenario is valid: the rule has no closed form in it
        why = f"no closed form of {name} here: {error}"
        return CollapsePrediction(why, verdict=_by_threshold(standard, name))


def _known(standard: Standard, name: str) -> CollapsePrediction:
    source = f"closed form of {name}"
    if standard.name != "cohorts":
        energy = partition_sums(_trajectory(standard, name), standard)
        return _read(source, energy, standard)
    form = rule_form(name)
    if form.space in ("residual", "base") or form.norm_weighted:
        return _limit(standard, name)
    federation, rounds = standard.scenario.federation, standard.scenario.rounds
    multiplier = partial(closed_form.multiplier, name)
    found = walks(federation, multiplier, rounds, carries=form.has_policy)
    return _walked(source, found, standard)


def _trajectory(standard: Standard, name: str) -> Array:
    """Return the mean energies of the directions, exact for every round, (T + 1, r_max)."""
    if standard.is_flow:
        return np.asarray(closed_form.flow_trajectory(standard.scenario, name) ** 2)
    return closed_form.energy_trajectory(standard.scenario, name)


def _limit(standard: Standard, name: str) -> CollapsePrediction:
    """Return mean energies and the limit for a rule whose round depends on more than the share.

    Raises:
        InputError: for hetlora, whose weights are known only in the limit of collapse.
    """
    scenario = standard.scenario
    energy = partition_sums(_trajectory(standard, name), standard)
    first = [part.start for part in scenario.federation.partitions]
    survival = closed_form.survival(scenario, name)[-1, first]
    values = {
        "late_rate": closed_form.typical_rate(scenario, name)[first],
        "extinct": 1 - survival,
        "rho": energy[-1:, 0] / energy[-1:].sum(-1),
    }
    if rule_form(name).space == "base":  # without dilution the limit is reached at once
        values["rate"] = values["late_rate"]
    path = energy / energy[0] if "rate" in values else None
    numbers = _as_exact(values, standard)
    return CollapsePrediction(f"closed form of {name}", values, of_partitions(numbers), path)


def _declared(standard: Standard, rule: AggregationRule) -> CollapsePrediction:
    multiplier = rule.properties.multiplier
    if multiplier is None:
        return CollapsePrediction(NONE_DECLARED)
    why = _not_applicable(standard, rule)
    if why:
        return CollapsePrediction(NOT_APPLICABLE + why)
    scenario = standard.scenario
    found = walks(
        scenario.federation,
        _as_function(multiplier),
        scenario.rounds,
        carries=rule.has_empty_partition_policy and scenario.empty_partition == "carry",
    )
    return _walked("declared multiplier", found, standard)


def _not_applicable(standard: Standard, rule: AggregationRule) -> str:
    """Return why a declared multiplier does not determine the rule's result; empty if it does."""
    if rule.properties.coverage != "weights":
        return "it is not one of shares of the clients' weights"
    # a rule that only meets the protocol declares nothing but its properties
    linear = rule.has_spectral_form and not rule.residual_in_base and rule.space != "none"
    if not (linear or isinstance(rule, ExternalRule)):
        return "the rule is more than weights on amplitudes"
    if standard.name not in ("full", "cohorts"):
        return "it speaks of clients that return alike"
    return ""


def _as_function(multiplier: Callable[[Tensor], Tensor]) -> Callable[[Array], Array]:
    return lambda share: multiplier(torch.from_numpy(share.copy())).numpy()


def _walked(source: str, found: list[RandomWalk], standard: Standard) -> CollapsePrediction:
    typical = np.array([walk.typical for walk in found])
    start = partition_sums(standard.scenario.initial_amplitudes[None] ** 2, standard)[0]
    mean = start * np.array([walk.mean for walk in found]) ** standard.scenario.rounds
    values = {
        "rate": typical,
        "extinct": np.array([walk.extinct[-1] for walk in found]),
        "rho": mean[:1] / mean.sum() if mean.any() else np.full(1, np.nan),
    }
    path = np.stack([walk.median for walk in found], axis=-1)
    return CollapsePrediction(source, values, of_partitions(_as_exact(values, standard)), path)


def _as_exact(values: dict[str, Array], standard: Standard) -> Numbers:
    """Return the deciding part of the prediction, as if measured without error."""
    # a walk does not change in the second half: without its own rate, the rate applies
    late, extinct = values.get("late_rate", values.get("rate")), values["extinct"]
    assert late is not None
    with np.errstate(divide="ignore", invalid="ignore"):  # the shared partition may be lost at once
        relative = late / late[0]
    left = np.minimum(relative, 1.0) ** standard.late[1]
    numbers = {"relative_late": relative, "left": left, "extinct": extinct}
    return {name: Measurement(x, x, x, 1) for name, x in numbers.items()}


def _read(source: str, energy: Array, standard: Standard) -> CollapsePrediction:
    """Return the measures of a predicted trajectory, computed as for runs."""
    numbers = measure(energy[None], standard, FAMILY_ERROR)
    values = {name: numbers[name].value for name in standard.predicted}
    known = {name: x for name, x in values.items() if not np.isnan(x).all()}
    return CollapsePrediction(source, known, of_partitions(numbers), energy / energy[0])


def _by_threshold(standard: Standard, name: str) -> Collapse | None:
    """Return only the verdict, for rules whose training has a threshold but no trajectory."""
    if not standard.is_flow:
        return None
    scenario = standard.scenario
    threshold = closed_form.collapse_threshold(scenario, name)
    held = (threshold[standard.levels[0] :] < scenario.local_time).all()
    return Collapse.KEEPS if held else Collapse.COLLAPSES


def partition_sums(energy: Array, standard: Standard) -> Array:
    """Return the energies of the partitions, (..., M), from those of directions (..., r_max)."""
    parts = standard.scenario.federation.partitions
    return np.stack([energy[..., part].sum(-1) for part in parts], axis=-1)
