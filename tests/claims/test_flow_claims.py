"""Claims on training: their federations are on the right side of the threshold."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import closed_form
from analysis.claims import flow
from analysis.claims.base import RunContext, ideal
from analysis.claims.flow import dilution, flow_floor, threshold
from analysis.paper.phase import COLLAPSED, PHASE, gather_phase
from fedlora_sim import Scenario
from fedlora_sim.engines.draws import client_targets
from fedlora_sim.tolerances import relative

SEEDS = range(8)
CLOSE = relative("iteration")

pytestmark = pytest.mark.usefixtures("one_thread")


def growth(scenario: Scenario, rule: str) -> np.ndarray:
    gain = np.exp(2 * scenario.target_amplitude * scenario.local_time)
    return np.asarray(dilution(scenario, rule) * gain)


@pytest.mark.parametrize("rule", ["fedavg", "zero_pad", "raflora"])
def test_above_every_partition_is_held(rule: str) -> None:
    for seed in SEEDS:
        scenario = flow.above(rule, seed)
        assert len(scenario.federation.levels) == 3
        assert 1.7 <= growth(scenario, rule)[-1] <= 2.2
        assert (flow_floor(scenario, rule) > 0).all()


@pytest.mark.parametrize("rule", ["fedavg", "zero_pad"])
def test_below_all_but_the_shared_partition_collapse(rule: str) -> None:
    for seed in SEEDS:
        scenario = flow.below(rule, seed)
        assert 0.7 <= growth(scenario, rule)[1] <= 0.9
        assert growth(scenario, rule)[2] < growth(scenario, rule)[1]
        assert flow_floor(scenario, rule)[1:].tolist() == [0, 0]


def test_critical_is_on_the_threshold_and_its_control_is_not() -> None:
    for share, sign in ((1.0, 0), (0.9, -1)):
        excess = growth(flow.critical(share, "fedavg", 1), "fedavg")[1] - 1
        assert (abs(excess) > CLOSE) * np.sign(excess) == sign


def test_federations_of_runs_differ_and_stay_themselves() -> None:
    scenarios = [flow.above("fedavg", seed) for seed in SEEDS]
    assert len({s.local_time for s in scenarios}) == len(scenarios)
    assert flow.above("fedavg", 0) == scenarios[0]


@pytest.mark.slow
def test_the_search_finds_an_unknown_threshold() -> None:
    scenario = flow.alike(2)
    bracket = flow._search(scenario, "fedavg", 2).bracket.values
    predicted = threshold(scenario, "fedavg")[1:]
    assert bracket.shape == (2, 2)
    assert (bracket[:, 1] / bracket[:, 0] < 1.01).all()
    np.testing.assert_allclose(bracket.mean(axis=1), predicted, rtol=0.02)


def test_the_search_covers_every_threshold_of_the_claims() -> None:
    low, high = flow.SEARCHED
    for seed in SEEDS:
        for rule, draw, predict in (
            ("zero_pad", flow.alike, flow._threshold_alike),
            ("fedavg", flow.unlike, flow.threshold_of_each),
        ):
            scenario = draw(seed)
            times = predict(scenario, rule, seed)[1:] * scenario.target_amplitude
            assert (low < times).all()
            assert (times < high).all()


def test_unlike_targets_lower_the_threshold_on_the_same_mean() -> None:
    for seed in SEEDS:
        scenario = flow.unlike(seed)
        each, mean = (
            predict(scenario, "fedavg", seed)[1:]
            for predict in (flow.threshold_of_each, flow.threshold_of_mean)
        )
        assert (each < mean).all()


@pytest.mark.slow
def test_a_control_takes_the_runs_of_its_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    context = RunContext(seed=1)
    right = flow.held("raflora", "raflora")(range(2), context)
    assert list(context._runs) == ["flow-above-raflora-0", "flow-above-raflora-1"]
    monkeypatch.setattr(flow, "simulate", None)
    wrong = flow.held("raflora", "fedavg")(range(2), context)
    assert (wrong[:, 1:] < right[:, 1:]).all()


@pytest.mark.slow
def test_critical_runs_and_runs_next_to_them_have_different_names() -> None:
    context = RunContext(seed=1)
    on, off = (flow.critical_slope("fedavg", share)(range(1), context) for share in (1.0, 0.9))
    assert len(context._runs) == 2
    assert (off > on).all()


def test_lower_ranks_get_the_larger_targets() -> None:
    for seed in SEEDS:
        scenario = flow.own_targets("fedavg", seed)
        targets = client_targets(scenario, seed)[:, 0]
        order = np.argsort(-targets)
        assert (np.diff(np.array(scenario.ranks)[order]) >= 0).all()


def test_no_cohort_of_the_harmonic_mean_is_without_contributor() -> None:
    for scenario in flow.COHORTS.values():
        lost = closed_form.extinction_probability(scenario)
        assert lost.tolist() == [0] * len(lost)


def test_mean_coverage_is_another_prediction() -> None:
    right = flow.harmonic_mean("fedavg", flow.COHORTS["fedavg"].cohort_size)
    wrong = flow.harmonic_mean("fedavg", None)
    # By Jensen: 1/omega is convex, so random cohorts hold the harmonic mean lower.
    assert (right < wrong * (1 - flow.COHORT_MARGIN)).any()
    assert (right <= wrong).all()


@pytest.mark.slow
def test_phase_measures_what_it_predicts_off_the_threshold() -> None:
    data = gather_phase(RunContext(seed=1))
    assert data.floor.shape == (2, 50, 81)
    for rule in data.rule.values:
        for time in data.measured_time.values:
            measured = data.measured.sel(rule=rule, measured_time=time).values
            scenario = ideal(PHASE).replace(local_time=float(time))
            predicted = closed_form.flow_floor(scenario, str(rule))
            at = closed_form.collapse_threshold(scenario, str(rule))
            far = np.abs(time - at) > 0.2
            np.testing.assert_allclose(measured[far], predicted[far], atol=COLLAPSED)
