"""Matrix fidelity: agreement with the reference, with the spectral one, and its disturbances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from designs import each_value, pairwise
from hypothesis import given
from hypothesis import strategies as st
from simulator_cases import LAWS, RULES, SIGMAS, assert_close, quick

from fedlora_sim import Scenario, simulate
from fedlora_sim.engines import matrix as matrix_run
from fedlora_sim.engines.draws import basis_draws, initial_basis, subspace_mixing, turned
from fedlora_sim.reference.simulators import matrix_reference

SAMPLES = (5, 1, 2, 7, 3)
NOISE = {"gain_std": 0.2, "drift_std": 0.1}
ALL = {**NOISE, "subspace_noise": 0.2, "basis_drift": 0.3}
SEEDS = range(2)


def scenario(law="without_replacement", **changes):
    options = {
        "fidelity": "matrix",
        "d_out": 7,
        "d_in": 9,
        "rounds": 5,
        "num_samples": SAMPLES,
        "sampling": law,
        "cohort_size": None if law == "full" else 2,
    }
    return Scenario("1x2,3x2,4x1", **{**options, **changes})


def assert_reference(run, rule):
    result = simulate(run, rule=rule, seed=SEEDS)
    values, projected = (
        np.stack(side)
        for side in zip(*(matrix_reference(run, rule, seed) for seed in SEEDS), strict=True)
    )
    assert_close(result.energy, values**2, "iteration")
    scale = np.linalg.norm(values**2)
    assert_close(result.projected_energy, projected**2, "iteration", scale=scale)


@pairwise(rule=RULES, law=LAWS, empty_partition=["carry", "zero"])
def test_disturbed_runs_are_the_reference(rule, law, empty_partition):
    assert_reference(scenario(law, empty_partition=empty_partition, **ALL), rule)


@pairwise(
    rule=RULES,
    noise=[{}, NOISE, {"subspace_noise": 0.3}, {"basis_drift": 0.4}],
    heterogeneity=["fresh", "persistent"],
)
def test_every_disturbance_alone_is_the_reference(rule, noise, heterogeneity):
    run = scenario(empty_partition="zero", heterogeneity=heterogeneity, gain_mean=0.9, **noise)
    assert_reference(run, rule)


@each_value(rule=RULES, shape=[(4, 4), (12, 4), (4, 12), (5, 5)])
def test_layers_of_any_shape_are_the_reference(rule, shape):
    assert_reference(scenario(d_out=shape[0], d_in=shape[1], **ALL), rule)


@pytest.mark.slow
def test_it_is_the_reference_where_partitions_are_lost_and_drifts_revive_them():
    run = scenario(empty_partition="zero", cohort_size=1, rounds=10, drift_std=0.3)
    for seed in range(20):
        values, _ = matrix_reference(run, "raflora", seed)
        energy = simulate(run, rule="raflora", seed=seed).energy[0]
        assert_close(energy, values**2, "iteration")


@pairwise(rule=RULES, law=LAWS, empty_partition=["carry", "zero"])
def test_without_noise_it_is_the_spectral_fidelity(rule, law, empty_partition):
    run = scenario(law, empty_partition=empty_partition, spectrum_decay=0.5)
    matrix = simulate(run, rule=rule, seed=SEEDS)
    spectral = simulate(run.replace(fidelity="spectral"), rule=rule, seed=SEEDS)
    assert_close(matrix.projected_energy, spectral.energy, "iteration")
    assert_close(matrix.energy, spectral.energy, "iteration")
    assert_close(matrix.rho, spectral.rho, "iteration")


def test_gains_and_drifts_stay_on_the_basis():
    run = Scenario("3x4", fidelity="matrix", d_out=7, d_in=9, rounds=6, **NOISE)
    result = simulate(run, rule="fedavg", seed=SEEDS)
    np.testing.assert_array_equal(np.sort(result.energy)[..., ::-1], result.energy)
    total = result.energy.sum("direction")
    assert_close(result.projected_energy.sum("direction"), total, "iteration")
    turned = simulate(run.replace(basis_drift=0.2), rule="fedavg", seed=SEEDS)
    lost = turned.energy - turned.projected_energy
    assert (lost.sum("direction").isel(round=slice(1, None)) > 0).all()


def test_the_initial_update_is_the_stated_spectrum_on_an_orthonormal_basis():
    run = scenario(initial_amplitude=2.0, spectrum_decay=0.5)
    u, v = initial_basis(run, 0)
    assert_close(u.T @ u, np.eye(4), "factorization")
    assert_close(v.T @ v, np.eye(4), "factorization")
    energy = simulate(run).energy[0, 0]
    assert_close(energy, [4.0, 1.0, 0.25, 0.0625], "factorization")


@quick
@given(d=st.integers(1, 9), angle=st.floats(-3, 3), seed=st.integers(0, 9))
def test_the_basis_turns_by_exactly_the_angle(d, angle, seed):
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(d, d + 1, generator=generator, dtype=torch.float64)
    eye = torch.eye(d, dtype=torch.float64)
    turn = turned(eye, eye, gaussian, angle).numpy()
    assert_close(turn @ turn.T, np.eye(d), "factorization")
    assert_close(np.linalg.det(turn), 1.0, "factorization")
    # Every vector of an even-dimensional space; in an odd one a single axis is fixed.
    eigenvalues = np.full(d, np.cos(angle))
    if d % 2:
        eigenvalues[-1] = 1.0
    symmetric = np.linalg.eigvalsh((turn + turn.T) / 2)
    assert_close(symmetric, np.sort(eigenvalues), "factorization", scale=d)


def test_one_turned_client_keeps_the_cosines_of_its_angle():
    run = Scenario("1x1", fidelity="matrix", d_out=6, d_in=8, rounds=1, basis_drift=0.3)
    result = simulate(run, rule="raflora", seed=SEEDS)
    assert_close(result.energy, np.ones((2, 2, 1)), "factorization")
    wanted = np.full((2, 1), np.cos(run.basis_drift) ** 4)
    assert_close(result.projected_energy[:, 1], wanted, "factorization")


@quick
@given(d=st.integers(2, 12), r=st.integers(1, 6), seed=st.integers(0, 9))
def test_columns_of_zeros_and_other_columns_do_not_change_a_rotation(d, r, seed):
    """The same planes turn whatever is turned in them, and lengths and angles are kept."""
    generator = torch.Generator().manual_seed(seed)
    span = torch.randn(d, r, generator=generator, dtype=torch.float64)
    gaussian = torch.randn(d, r + 1, generator=generator, dtype=torch.float64)
    mixed = span @ torch.randn(r, r, generator=generator, dtype=torch.float64)
    found = turned(mixed, span, gaussian, 0.4)
    assert_close(found.mT @ found, mixed.mT @ mixed, "iteration")
    with_zeros = torch.zeros(d, 2 * r, dtype=torch.float64)
    with_zeros[:, 1::2] = span
    more = torch.cat([gaussian[:, :r], gaussian], dim=1)
    assert_close(turned(mixed, with_zeros, more, 0.4), found, "iteration")


def test_disturbances_are_drawn_per_client_round_and_seed():
    run = scenario(**ALL)
    carried = torch.ones(2, 2, 4, dtype=torch.bool)
    for draw in (
        lambda *at: basis_draws(run, *at),
        lambda *at: subspace_mixing(run, *at, carried[: len(at[0])]),
    ):
        drawn = [x for t in (0, 1) for x in draw([0, 1], t)]
        first = torch.stack([x[..., 0, 0] for x in drawn]).flatten()
        assert len(set(first.tolist())) == len(first) == 16
        for whole, alone in zip(draw([0, 1], 1), draw([1], 1), strict=True):
            assert torch.equal(whole[1:], alone)


def test_subspace_noise_has_the_stated_variance():
    run = scenario(subspace_noise=0.5)
    carried = torch.tensor([True, True, False, True]).expand(500, 2, 4)
    for on in subspace_mixing(run, range(500), 0, carried):
        noise = (on - torch.eye(4)).numpy()
        assert not noise[..., 2, :].any()
        assert not noise[..., 2].any()
        drawn = noise[..., [0, 1, 3], :][..., [0, 1, 3]]
        # A sum of squared normals: its relative standard error is sqrt(2 / n).
        variance = run.subspace_noise**2 / 3
        assert abs(np.mean(drawn**2) / variance - 1) <= SIGMAS * np.sqrt(2 / drawn.size)


@each_value(rule=RULES, law=LAWS)
def test_a_run_is_the_same_alone_and_among_others(rule, law):
    run = scenario(law, empty_partition="zero", **ALL)
    among = simulate(run, rule=rule, seed=range(6)).energy
    for seed in (0, 5):
        alone = simulate(run, rule=rule, seed=seed).energy[0]
        assert_close(alone, among[seed], "iteration")


@pytest.mark.parametrize("rule", RULES)
def test_batches_change_nothing(rule, monkeypatch):
    run = scenario(**ALL)
    whole = simulate(run, rule=rule, seed=range(5)).energy
    monkeypatch.setattr(matrix_run, "BATCH_ELEMENTS", 1)
    assert_close(simulate(run, rule=rule, seed=range(5)).energy, whole, "iteration")


@pytest.mark.parametrize("rule", RULES)
def test_float32_follows_float64(rule):
    run = scenario(**ALL)
    double = simulate(run, rule=rule, seed=SEEDS)
    single = simulate(run.replace(dtype="float32"), rule=rule, seed=SEEDS)
    assert_close(single.energy, double.energy, "iteration", torch.float32)
