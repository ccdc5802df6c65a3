"""The quadratic loss at matrix fidelity: descent on factors, against the reference and the flow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from designs import each_value, pairwise
from simulator_cases import LAWS, assert_close, differs

from fedlora_sim import Scenario, simulate, simulate_many
from fedlora_sim.engines import matrix as matrix_run
from fedlora_sim.engines.cohort_draws import cohort_counts
from fedlora_sim.engines.draws import client_targets, target_rotation
from fedlora_sim.errors import InputError
from fedlora_sim.reference.simulators import matrix_reference
from fedlora_sim.storage import load_dataset, save_dataset
from fedlora_sim.tolerances import relative

RULES = (
    *("fedavg", "raflora", "raflora:canonicalize=true", "zero_pad", "rbla", "hetlora", "ffa"),
    *("flora", "fedex", "fedex:residual_rank=1"),
)
WITH_MAP = ("fedavg", "raflora", "zero_pad", "rbla", "hetlora", "ffa")
SEEDS = range(2)
# Each direction is weaker than the previous one, at the start and in the limit, so that none swap.
# None starts at its target, where Adam would divide rounding by rounding.
FITTING = {
    "local_loss": "quadratic",
    "spectrum_decay": 0.6,
    "target_amplitude": 1.5,
    "target_decay": 0.7,
}
UNALIKE = {"target_std": 0.2, "target_angle": 0.3}
DISTURBED = {"subspace_noise": 0.1, "basis_drift": 0.2}


def scenario(law="without_replacement", **changes):
    options = {
        "fidelity": "matrix",
        "d_out": 7,
        "d_in": 9,
        "rounds": 4,
        "local_steps": 6,
        "num_samples": (5, 1, 2, 7, 3),
        "sampling": law,
        "cohort_size": None if law == "full" else 2,
        **FITTING,
    }
    return Scenario("1x2,3x2,4x1", **{**options, **changes})


def assert_reference(run, rule, kind="iteration"):
    result = simulate(run, rule=rule, seed=SEEDS)
    values, projected = (
        np.stack(side)
        for side in zip(*(matrix_reference(run, rule, seed) for seed in SEEDS), strict=True)
    )
    assert_close(result.energy, values**2, kind)
    scale = np.linalg.norm(values**2)
    assert_close(result.projected_energy, projected**2, kind, scale=scale)


@pytest.mark.slow
@pairwise(rule=RULES, law=LAWS, empty_partition=["carry", "zero"])
def test_it_is_the_reference(rule, law, empty_partition):
    assert_reference(scenario(law, empty_partition=empty_partition, **UNALIKE), rule)


@pytest.mark.slow
@pairwise(
    rule=RULES,
    changes=[{}, UNALIKE, DISTURBED, {**UNALIKE, **DISTURBED}],
    optimizer=["sgd", "adam"],
)
def test_every_optimizer_under_every_disturbance_is_the_reference(rule, changes, optimizer):
    kind = "training" if optimizer == "adam" else "iteration"
    assert_reference(scenario(optimizer=optimizer, **changes), rule, kind)


@each_value(rule=[r for r in RULES if "canonicalize" not in r], allocation=["random", "importance"])
def test_it_is_the_reference_for_any_carried_directions(rule, allocation):
    assert_reference(scenario(allocation=allocation, **UNALIKE), rule)


@each_value(rule=RULES, shape=[(4, 4), (12, 4), (4, 12), (5, 5)])
def test_layers_of_any_shape_are_the_reference(rule, shape):
    assert_reference(scenario(d_out=shape[0], d_in=shape[1], **UNALIKE), rule)


def errors(run, rule, steps):
    """Return largest error of the amplitudes against the flow, for each number of local steps."""
    exact = simulate(run.replace(fidelity="spectral"), rule=rule, seed=SEEDS).energy
    found = []
    for count in steps:
        result = simulate(run.replace(local_steps=count), rule=rule, seed=SEEDS)
        found.append(float(np.abs(result.projected_energy - exact).max()))
    return np.array(found)


def allowed(run, steps):
    """Return a bound of the error: a step, times the square of the largest target relative to m.

    The flow's second derivative is its rate, which grows with the target, times its amplitude.
    """
    largest = max(client_targets(run, seed).max() for seed in SEEDS)
    return (largest / run.target_amplitude) ** 2 * run.local_time / steps


@pytest.mark.slow
@pairwise(rule=WITH_MAP, law=["full", "without_replacement", "bernoulli"], target_std=[0.0, 0.2])
def test_the_error_against_the_flow_falls_with_the_step(rule, law, target_std):
    """Euler's method has order one; the next order changes the slope by about one step."""
    run = scenario(law, rounds=6, target_std=target_std)
    steps = np.array([25, 50, 100])
    found = errors(run, rule, steps)
    slope = np.polyfit(np.log(steps), np.log(found), 1)[0]
    assert abs(slope + 1) <= 1 / steps[0]
    assert found[-1] <= allowed(run, steps[-1])


def test_importance_picks_as_the_flow_does():
    run = scenario("full", allocation="importance", target_std=0.2)
    assert errors(run, "fedavg", [100])[0] <= allowed(run, 100)


@pytest.mark.slow
def test_the_threshold_lies_where_the_flow_has_it():
    """A small amplitude that half of the clients carry, just above and below `w G = 1`."""
    critical = np.log(2) / 2
    for side in (0.9, 1.1):
        run = Scenario(
            "1x1,2x1",
            fidelity="matrix",
            d_in=4,
            d_out=4,
            rounds=60,
            local_time=side * critical,
            local_steps=200,
            spectrum_decay=1e-3,
            local_loss="quadratic",
        )
        energy = simulate(run, rule="fedavg").energy[0, :, 1]
        assert (energy[-1] > energy[0]) == (side > 1)
        flow = simulate(run.replace(fidelity="spectral"), rule="fedavg").energy[0, :, 1]
        apart = np.abs(np.log(energy / flow))
        assert (apart <= run.rounds * run.local_time / run.local_steps).all()


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["raflora", "fedavg", "zero_pad"])
def test_directions_without_contributor_are_lost_permanently(rule):
    run = scenario(empty_partition="zero", rounds=12, cohort_size=1)
    members = run.federation.members
    for seed in range(4):
        brought = cohort_counts(run, seed) @ members > 0
        lost = ~np.vstack([np.ones(4, bool), np.logical_and.accumulate(brought)])
        result = simulate(run, rule=rule, seed=seed)
        assert lost.any()
        energy = result.projected_energy[0].values
        assert (energy[lost] <= relative("factorization") ** 2).all()
        assert (energy[~lost] > relative("factorization")).all()
        frozen = simulate(run, rule="ffa", seed=seed).energy[0].values
        assert (frozen[1:][brought] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["raflora", "flora"])
def test_undiluted_rules_reach_the_target(rule):
    run = scenario("full", rounds=300, local_time=0.8)
    result = simulate(run, rule=rule)
    assert_close(result.energy[0, -1], run.target_amplitudes**2, "iteration")


@pytest.mark.slow
def test_the_base_of_fedex_grows_until_dilution_outweighs_the_adapters_growth():
    """Small amplitudes grow by `W**2 (1 + eta (m - z))**(2 n)` per round, finally by at most 1."""
    run = scenario("full", rounds=300, local_steps=40, local_time=4.0)
    total = np.sqrt(simulate(run, rule="fedex").projected_energy[0].values)
    assert_close(total[-1], total[-2], "iteration")
    left, coverage = run.target_amplitudes - total[-1], run.federation.coverage()
    growth = coverage**2 * (1 + run.local_time / run.local_steps * left) ** (2 * run.local_steps)
    partly = coverage < 1
    assert (growth[partly] < 1).all()
    assert (left[partly] > 0).all()
    assert_close(left[~partly], [0.0], "iteration", scale=1.0)


def test_targets_are_turned_by_the_angle_once_per_client():
    run = scenario(d_out=8, d_in=8, **UNALIKE)
    for seed, k in ((0, 0), (0, 1), (1, 0)):
        for turn in target_rotation(run, seed, k):
            assert_close(turn @ turn.T, np.eye(8), "factorization")
            assert_close((turn + turn.T) / 2, np.cos(0.3) * np.eye(8), "factorization")
        np.testing.assert_array_equal(
            target_rotation(run, seed, k), target_rotation(run.replace(rounds=9), seed, k)
        )
    first = [target_rotation(run, *at)[0][0, 1] for at in ((0, 0), (0, 1), (1, 0))]
    assert len(set(first)) == 3
    straight = simulate(run.replace(target_angle=0.0), rule="fedavg").energy
    assert differs(simulate(run, rule="fedavg").energy, straight)


@pytest.mark.slow
@each_value(optimizer=["sgd", "adam"], rule=RULES)
def test_a_run_is_the_same_alone_and_among_others(rule, optimizer, monkeypatch):
    run = scenario(optimizer=optimizer, **UNALIKE, **DISTURBED)
    kind = "training" if optimizer == "adam" else "iteration"
    among = simulate(run, rule=rule, seed=range(5)).energy
    np.testing.assert_array_equal(simulate(run, rule=rule, seed=range(5)).energy, among)
    for seed in (0, 4):
        assert_close(simulate(run, rule=rule, seed=seed).energy[0], among[seed], kind)
    monkeypatch.setattr(matrix_run, "BATCH_ELEMENTS", 1)
    assert_close(simulate(run, rule=rule, seed=range(5)).energy, among, kind)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_float32_follows_float64(rule):
    run = scenario(**UNALIKE, **DISTURBED)
    double = simulate(run, rule=rule, seed=SEEDS)
    single = simulate(run.replace(dtype="float32"), rule=rule, seed=SEEDS)
    assert_close(single.energy, double.energy, "iteration", torch.float32)


def test_a_file_states_its_scenario(tmp_path):
    run = scenario(optimizer="adam", **UNALIKE)
    path = save_dataset(simulate(run, rule="raflora", seed=SEEDS), tmp_path / "run.nc")
    attrs = load_dataset(path).attrs
    assert (attrs["local_loss"], attrs["target_std"], attrs["rule"]) == (
        "quadratic",
        0.2,
        "raflora",
    )
    assert Scenario.from_attrs(attrs) == run


def test_many_scenarios_equal_each_one_alone():
    matrix = scenario(**UNALIKE)
    alike = scenario(fidelity="spectral")
    several = [matrix, alike, alike.replace(target_std=0.1), alike.replace(local_loss="none")]
    together = simulate_many(several, rule="zero_pad", seed=SEEDS)
    for run, result in zip(several, together, strict=True):
        np.testing.assert_array_equal(
            result.energy, simulate(run, rule="zero_pad", seed=SEEDS).energy
        )
    with pytest.raises(InputError, match="rule='fedex'"):
        simulate_many(several, rule="fedex", seed=SEEDS)


def test_steps_that_are_too_long_are_refused():
    with pytest.raises(InputError, match=r"local_time=400\.0.*local_steps"):
        simulate(scenario(local_time=400.0), rule="fedavg")
