"""`simulate` and `simulate_many`: seeds, bits, progress, policies, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from simulator_cases import RULES, differs

from fedlora_sim import Scenario, simulate, simulate_many
from fedlora_sim.engines import spectral as spectral_run
from fedlora_sim.errors import InputError
from fedlora_sim.rules import FedAvg

NOISE = {"gain_std": 0.2, "drift_std": 0.1}
SPECTRAL = Scenario("1x3,3x2", rounds=6, cohort_size=2, num_samples=(1, 2, 3, 4, 5), **NOISE)
MATRIX = SPECTRAL.replace(fidelity="matrix", d_in=6, d_out=5, basis_drift=0.2)
MANY = (
    SPECTRAL,
    MATRIX,
    SPECTRAL.replace(rounds=4),
    SPECTRAL.replace(gain_mean=0.7),
    SPECTRAL.replace(heterogeneity="persistent"),
    SPECTRAL.replace(ranks="2x2,5x3"),
    SPECTRAL.replace(dtype="float32"),
    SPECTRAL.replace(gain_std=0, drift_std=0, sampling="full", cohort_size=None),
)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("run", [SPECTRAL, MATRIX], ids=["spectral", "matrix"])
def test_a_seed_is_a_run(run, rule):
    first, again = (simulate(run, rule=rule, seed=[3, 5]) for _ in range(2))
    xr.testing.assert_identical(first, again)
    assert differs(first.energy.values[0], first.energy.values[1])
    swapped = simulate(run, rule=rule, seed=[5, 3])
    np.testing.assert_array_equal(swapped.seed, [5, 3])
    np.testing.assert_array_equal(swapped.energy[::-1], first.energy)


@pytest.mark.parametrize("rule", RULES)
def test_many_scenarios_equal_each_one_alone(rule):
    together = simulate_many(MANY, rule=rule, seed=range(5))
    assert len(together) == len(MANY)
    for scenario, dataset in zip(MANY, together, strict=True):
        xr.testing.assert_identical(dataset, simulate(scenario, rule, seed=range(5)))


def test_many_scenarios_in_small_batches(monkeypatch):
    together = simulate_many(MANY, rule="fedavg", seed=range(5))
    monkeypatch.setattr(spectral_run, "BATCH_ELEMENTS", 40)
    for whole, cut in zip(together, simulate_many(MANY, rule="fedavg", seed=range(5)), strict=True):
        xr.testing.assert_identical(whole, cut)


def test_no_scenarios_give_no_datasets():
    assert simulate_many([], seed=range(3)) == []


def test_rules_on_one_seed_are_paired():
    """With equal ranks and the same draws raFLoRA equals FedAvg."""
    run = SPECTRAL.replace(ranks="3x5")
    fedavg, raflora = (simulate(run, rule=rule, seed=range(4)) for rule in ("fedavg", "raflora"))
    assert not differs(raflora.energy, fedavg.energy)


@pytest.mark.parametrize("run", [SPECTRAL, MATRIX], ids=["spectral", "matrix"])
@pytest.mark.parametrize("rule", ["fedavg", "zero_pad"])
def test_progress_counts_every_run_once(run, rule):
    counted = []
    simulate(run, rule=rule, seed=range(7), on_progress=counted.append)
    assert sum(counted) == 7


def test_a_progress_bar_changes_nothing(capsys):
    shown = simulate(SPECTRAL, seed=range(3), progress=True)
    xr.testing.assert_identical(shown, simulate(SPECTRAL, seed=range(3)))
    assert "raflora" in capsys.readouterr().err


@pytest.mark.parametrize("run", [SPECTRAL, MATRIX], ids=["spectral", "matrix"])
def test_an_empty_partition_can_be_refused(run):
    with pytest.raises(InputError, match="empty_partition='error'"):
        simulate(run.replace(empty_partition="error"), rule="raflora", seed=range(5))
    full = run.replace(empty_partition="error", sampling="full", cohort_size=None)
    carried = simulate(full.replace(empty_partition="carry"), rule="raflora")
    np.testing.assert_array_equal(simulate(full, rule="raflora").energy, carried.energy)
    agnostic = simulate(run.replace(empty_partition="error"), rule="fedavg")
    np.testing.assert_array_equal(agnostic.energy, simulate(run, rule="fedavg").energy)


def test_a_rule_object_is_taken():
    named = simulate(SPECTRAL, rule="fedavg", seed=1)
    xr.testing.assert_identical(simulate(SPECTRAL, rule=FedAvg(), seed=1), named)


def test_the_default_rule_is_raflora():
    assert simulate(SPECTRAL).attrs["rule"] == "raflora"


def test_an_unknown_rule_is_named():
    with pytest.raises(InputError, match=r"rule='fedvag'.*'fedavg'"):
        simulate(SPECTRAL, rule="fedvag")


@pytest.mark.parametrize("seed", [np.int64(3), np.uint32(3), [np.int64(3)], range(3, 4), (3,)])
def test_whole_numbers_of_any_kind_are_seeds(seed):
    xr.testing.assert_identical(simulate(SPECTRAL, seed=seed), simulate(SPECTRAL, seed=3))


@pytest.mark.parametrize(
    "seed", [-1, [0, -1], [], [1, 1], 1.5, [1.5], "12", None, [None], float("nan"), 2**63]
)
def test_anything_else_is_refused(seed):
    with pytest.raises(InputError, match="seed="):
        simulate(SPECTRAL, seed=seed)


def test_large_seeds_are_different():
    dataset = simulate(SPECTRAL, seed=[2**60, 2**60 + 1])
    assert differs(dataset.energy.values[0], dataset.energy.values[1])
    np.testing.assert_array_equal(dataset.seed, [2**60, 2**60 + 1])
