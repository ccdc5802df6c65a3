"""Every value of `predict` and `design` agrees with 2,000 simulated runs.

Scenarios are drawn from seeds, so that the tests are reproducible. A prediction is refuted if it is
more than `SIGMAS` standard errors from the mean over runs: in some thousand comparisons the
probability of a false alarm is below 1e-3, including the skewness of the energies.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pytest
from hypothesis_profiles import examples

from analysis import closed_form
from analysis.closed_form.setting import RULES, rule_form
from analysis.design import Design, design
from analysis.predict import RulePrediction, compare, predict, with_training
from fedlora_sim import Scenario
from fedlora_sim.engines.spectral import run_spectral
from fedlora_sim.federation import SAMPLINGS
from fedlora_sim.randomness import stream
from fedlora_sim.rules import get_rule
from fedlora_sim.tolerances import relative

RUNS, SIGMAS, FEW = 2_000, 6.0, 30
LEVELS, TOP = (1, 2, 4), 12  # number of runs of designs
LONG = 2_000  # rounds after which closed forms have settled
TINY = 1e-7  # amplitude at which training grows exponentially
SETTLED = relative("training") ** 0.5


def random_question(number: int) -> tuple[Scenario, float | None]:
    """Draw a small federation with or without spread and drift, and perhaps a local time."""
    rng = stream(number, "random_case")
    K = int(rng.integers(2, 7))
    ranks = tuple(int(r) for r in rng.choice([1, 2, 4], size=K))
    sampling = str(rng.choice(SAMPLINGS))
    some = rng.random(5) < 0.5
    scenario = Scenario(
        ranks,
        rounds=int(rng.integers(2, 6)),
        cohort_size=None if sampling == "full" else int(rng.integers(1, K + 1)),
        num_samples=tuple(rng.integers(1, 5, size=K).tolist()) if some[0] else None,
        sampling=sampling,
        allocation="random" if rng.random() < 0.25 else "svd",
        gain_mean=float(rng.choice([1.0, rng.uniform(0.7, 1.1)])),
        gain_std=float(some[1] * rng.uniform(0.05, 0.3)),
        drift_mean=float(some[2] * rng.uniform(-0.1, 0.2)),
        drift_std=float(some[3] * rng.uniform(0.02, 0.2)),
        initial_amplitude=float(rng.uniform(0.5, 2.0)),
        spectrum_decay=float(rng.uniform(0.6, 1.0)),
        target_amplitude=float(rng.uniform(0.5, 1.5)),
    )
    return scenario, float(rng.uniform(0.2, 2.0)) if some[4] else None


NO_DRIFT = {"drift_mean": 0.0, "drift_std": 0.0}
NO_CHANGE = {"gain_mean": 1.0, "gain_std": 0.0, **NO_DRIFT}


class Runs:
    """Simulated runs of a scenario under one rule, and training in its place."""

    def __init__(self, scenario: Scenario, rule: str, local_time: float | None = None) -> None:
        self.scenario, self.rule = scenario, rule
        self.local_time = local_time
        self.first = [part.start for part in scenario.federation.partitions]

    def amplitudes(self, runs: int = RUNS, **changes: object) -> np.ndarray:
        """Return amplitudes (runs, rounds + 1, r_max) of the scenario with other fields."""
        scenario = self.scenario.replace(**changes)
        return run_spectral([scenario], get_rule(self.rule), range(runs))[0]

    @cached_property
    def all(self) -> np.ndarray:
        return self.amplitudes()

    @cached_property
    def still(self) -> np.ndarray:
        """The same without drift."""
        drifts = self.scenario.drift_mean or self.scenario.drift_std
        return self.amplitudes(**NO_DRIFT) if drifts else self.all

    @cached_property
    def collapsed(self) -> np.ndarray:
        """One round from the limit in which the shared directions have all the energy."""
        return self.amplitudes(**NO_DRIFT, rounds=1, spectrum_decay=TINY)

    def fitting(self, local_time: float) -> Scenario:
        return self.scenario.replace(**NO_CHANGE, local_loss="quadratic", local_time=local_time)

    def training(self, local_time: float, **changes: object) -> np.ndarray:
        fitting = self.fitting(local_time).replace(**changes)
        return run_spectral([fitting], get_rule(self.rule), range(RUNS))[0]


def assert_mean(samples, predicted, what) -> None:
    """Check that the mean over runs agrees with the prediction.

    Not checked if fewer than `FEW` runs cause the variance, because rarer events may have no run.
    """
    apart = (samples - np.median(samples)) ** 2
    if 0 < apart.sum() ** 2 < FEW * (apart**2).sum():
        return
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    rounding = relative("iteration") * max(1.0, abs(predicted))
    distance = abs(samples.mean() - predicted)
    assert distance <= SIGMAS * error + rounding, (what, samples.mean(), predicted, error)


def assert_share(found, predicted, what) -> None:
    """Check that a number of runs agrees with a probability."""
    error = np.sqrt(predicted * (1 - predicted) / RUNS)
    assert abs(found - predicted) <= SIGMAS * error + SIGMAS**2 / RUNS * (error > 0), (what, found)


def check_energy(runs: Runs, values) -> None:
    for h, part in enumerate(runs.scenario.federation.partitions):
        for t in range(runs.scenario.rounds + 1):
            energy = (runs.all[:, t, part] ** 2).mean(axis=-1)
            assert_mean(energy, values["energy"][t, h], ("energy", t, h))
    np.testing.assert_array_equal(
        values["relative_energy"], values["energy"][-1] / values["energy"][0]
    )


def check_energy_rate(runs: Runs, values) -> None:
    start, form = runs.still[:, 0, runs.first] ** 2, rule_form(runs.rule)
    for h, rate in enumerate(values["energy_rate"]):
        if form.space == "residual":  # a limit
            late = runs.scenario.replace(rounds=LONG, **NO_DRIFT)
            energy = predict(late, runs.rule).energy.values[:, runs.first[h]]
            late = energy[-1] / energy[-2] if energy[-1] > 0 else rate
            assert late == pytest.approx(rate, rel=SETTLED)
        elif form.norm_weighted:
            after = (
                runs.collapsed[:, 1, runs.first[h]] ** 2 / runs.collapsed[0, 0, runs.first[h]] ** 2
            )
            assert_mean(after, rate, ("energy_rate", h))
        else:
            for t in range(1, runs.scenario.rounds + 1):
                kept = runs.still[:, t, runs.first[h]] ** 2 / start[:, h]
                assert_mean(kept, rate**t, ("energy_rate", t, h))


def check_typical_rate(runs: Runs, values) -> None:
    form = rule_form(runs.rule)
    for h, i in enumerate(runs.first):
        rate = values["typical_rate"][h]
        if form.space == "residual":
            late = runs.amplitudes(1, rounds=200)[0, -2:, i] ** 2
            assert late[1] / late[0] == pytest.approx(rate, rel=SETTLED)
            continue
        x = runs.collapsed if form.norm_weighted else runs.all
        alive = x[:, -1, i] != 0
        if alive.sum() > 1:
            walk = np.log((x[alive, -1, i] / x[alive, 0, i]) ** 2) / (x.shape[1] - 1)
            assert_mean(walk, np.log(rate), ("typical_rate", h))


def check_survival(runs: Runs, values) -> None:
    for h, i in enumerate(runs.first):
        # the base of fedex keeps the rounding of square roots of gains
        alive = np.abs(runs.all[:, -1, i]) > relative("factorization") * runs.all[:, 0, i]
        assert_share(alive.mean(), values["survival"][h], ("survival", h))


def check_half_lives(runs: Runs, values) -> None:
    for name, of in (("half_life", "energy_rate"), ("typical_half_life", "typical_rate")):
        if name in values:
            rate, rounds = values[of], values[name]
            falls = (rate > 0) & (rate < 1)
            np.testing.assert_allclose(rate[falls] ** rounds[falls], 0.5, relative("iteration"))
            np.testing.assert_array_equal(rounds[~falls], np.where(rate[~falls] > 0, np.inf, 0))


def check_floor(runs: Runs, values) -> None:
    """Check that the energies settle at the floor, or do not settle without one."""
    long = with_training(runs.scenario.replace(rounds=LONG), runs.rule)
    energy = long.of("energy")
    for h, floor in enumerate(values["energy_floor"]):
        if np.isfinite(floor):
            scale = max(floor, energy[0, h])
            late = values["energy_rate"][h] ** LONG  # what is left of the start
            assert abs(energy[-1, h] - floor) <= (late + SETTLED) * scale, ("floor", h)
        else:
            assert values["energy_rate"][h] >= 1
            assert energy[-1, h] >= energy[-2, h] * (1 - SETTLED)


def check_training(runs: Runs, values) -> None:
    rule, rounds = runs.rule, runs.scenario.rounds
    if "flow_rate" in values:
        assert runs.local_time is not None
        fitting = runs.fitting(runs.local_time)
        path = closed_form.flow_trajectory(fitting.replace(rounds=LONG), rule)[:, runs.first]
        x = runs.training(runs.local_time)[:, rounds, :][:, runs.first]
        for h in range(len(runs.first)):
            end = path[rounds, h]
            own = x[:, h] if rule == "ffa" else 1 / x[x[:, h] > 0, h]
            if own.size > 1:
                assert_mean(own, end if rule == "ffa" else 1 / end, ("flow", h))
            floor, rate = values["flow_floor"][h], values["flow_rate"][h]
            if abs(np.log(rate)) * LONG > 40:
                assert path[-1, h] == pytest.approx(floor, rel=SETTLED, abs=SETTLED)
                value = path[:, h] if rule == "ffa" or floor == 0 else 1 / path[:, h]
                rest = floor if rule == "ffa" or floor == 0 else 1 / floor
                gap = np.abs(value - rest)
                late = np.flatnonzero(gap > SETTLED * gap[0])[-1]
                if late > 2 and gap[0] > SETTLED:
                    found = gap[late] / gap[late - 1]
                    assert found == pytest.approx(rate, rel=0.05), ("flow_rate", h)
    threshold = values.get("collapse_threshold")
    if threshold is None or rule in ("ffa", "flora", "fedex"):
        assert threshold is None or (threshold == 0).all()
        return
    # a start with exponential growth; under hetlora with equal weights
    start = {"initial_amplitude": TINY, "spectrum_decay": 1.0}
    if rule == "hetlora":
        start = {"initial_amplitude": 1.0, "spectrum_decay": TINY}
    for h, i in enumerate(runs.first):
        if not 0 < threshold[h] < 20:
            continue
        x = runs.training(float(threshold[h]), rounds=1, **start)
        alive = x[:, 1, i] > 0
        growth = np.log(x[alive, 1, i] / x[alive, 0, i])
        distance = abs(growth.mean())
        error = growth.std() / np.sqrt(max(alive.sum(), 1))
        assert distance <= SIGMAS * error + SETTLED, ("collapse_threshold", h)


CHECKS = {
    "energy": check_energy,
    "energy_rate": check_energy_rate,
    "typical_rate": check_typical_rate,
    "survival": check_survival,
    "energy_floor": check_floor,
}


def values_of(row: RulePrediction) -> dict[str, np.ndarray]:
    """Return the quantities that have values, by partition."""
    return {name: row.of(name) for name in row.quantities if row.of(name) is not None}


def check_all(scenario: Scenario, rules=RULES, local_time: float | None = None) -> None:
    """Compare every value of a prediction with runs."""
    for row in compare(scenario, rules, local_time=local_time):
        runs, values = Runs(row.scenario, row.rule, local_time), values_of(row)
        for name, check in CHECKS.items():
            if name in values:
                check(runs, values)
        check_half_lives(runs, values)
        check_training(runs, values)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(examples(3)))
def test_every_value_of_a_prediction_agrees_with_runs(number):
    rules = stream(number, "rules").choice(RULES, size=3, replace=False)
    scenario, local_time = random_question(number)
    check_all(scenario, rules.tolist(), local_time)


@pytest.mark.parametrize("wrong", [{"gain_mean": 0.97}, {"drift_mean": 0.03}, {"cohort_size": 2}])
def test_runs_of_a_slightly_different_scenario_refute_a_prediction(wrong):
    scenario = Scenario((1, 2, 2), rounds=3, cohort_size=3, gain_std=0.1, drift_std=0.1)
    values = values_of(with_training(scenario, "fedavg"))
    check_energy(Runs(scenario, "fedavg"), values)
    with pytest.raises(AssertionError, match="energy"):
        check_energy(Runs(scenario.replace(**wrong), "fedavg"), values)


def designed(number: int) -> tuple[Scenario, list[Design]]:
    """Draw a budget and the law of the clients, and return the scenario and the designs."""
    rng = stream(number, "random_design")
    clients = int(rng.integers(2, 7))
    sampling = str(rng.choice(SAMPLINGS))
    some = rng.random(2) < 0.5
    asked = {
        "ranks": (1,) * clients,
        "rounds": int(rng.integers(2, 6)),
        "cohort_size": None if sampling == "full" else int(rng.integers(1, clients + 1)),
        "sampling": sampling,
        "gain_mean": float(rng.choice([1.0, rng.uniform(0.7, 1.1)])),
        "gain_std": float(some[0] * rng.uniform(0.05, 0.3)),
        "drift_std": float(some[1] * rng.uniform(0.02, 0.2)),
        "initial_amplitude": float(rng.uniform(0.5, 2.0)),
        "spectrum_decay": float(rng.uniform(0.6, 1.0)),
    }
    scenario = Scenario(**asked)
    return scenario, design(scenario, total_rank=4 * clients, levels=LEVELS, distinct=2, top=TOP)


def check_design(asked: Scenario, found: Design) -> None:
    """Compare signal, noise, score, loss and rate of a design with runs."""
    # A direction without carriers is lost and not simulated.
    start = asked.initial_amplitude * asked.spectrum_decay ** np.arange(max(LEVELS))
    policy = found.empty_partition or asked.empty_partition
    scenario = asked.replace(ranks=found.ranks, empty_partition=policy)
    rule = get_rule(found.rule)
    x = run_spectral([scenario], rule, range(RUNS))[0]
    whole = (start**2).sum()
    first = x[:, -1]
    mean, energy = first.mean(0), (first**2).sum(1) / whole
    # E[x]^2 and its error from the errors of the means; directions share cohorts, so errors add.
    signal, error = (mean**2).sum() / whole, first.std(0, ddof=1) / np.sqrt(RUNS)
    spread = (2 * np.abs(mean) * error + SIGMAS * error**2).sum() / whole
    rounding = relative("iteration")
    assert abs(signal - found.signal) <= SIGMAS * spread + rounding, ("signal", found)
    assert_mean(energy, found.signal + found.noise, ("noise", found))
    assert found.score == found.signal - found.noise
    carried = scenario.federation.r_max
    assert found.lost == pytest.approx((start[carried:] ** 2).sum() / whole, rel=rounding)
    assert found.top_coverage == scenario.ranks.count(carried) / len(scenario.ranks)
    assert found.total_rank == sum(scenario.ranks)
    if found.worst_rate is None:
        assert found.reasons["worst_rate"]
        return
    still = run_spectral([scenario.replace(drift_std=0.0)], rule, range(RUNS))[0]
    kept = (still[:, -1] / still[:, 0]) ** 2
    worst = kept[:, int(kept.mean(0).argmin())]
    assert_mean(worst, found.worst_rate**scenario.rounds, ("worst_rate", found))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(examples(3)))
def test_every_value_of_a_design_agrees_with_runs(number):
    asked, designs = designed(number)
    for found in designs:
        check_design(asked, found)


def test_runs_of_a_slightly_different_design_refute_it():
    asked, (found, *_) = designed(0)
    check_design(asked, found)
    with pytest.raises(AssertionError):
        check_design(asked.replace(gain_mean=0.97 * asked.gain_mean), found)
