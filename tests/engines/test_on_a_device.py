"""Runs on an accelerator: equal to the CPU's, without mixed devices, and within budgets.

`device_cases.StandIn` takes the place of a CUDA device. Budgets are upper bounds of what is done
today, so that an improvement lowers them. Tests marked `gpu` need a real device.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_cases import DEVICE, StandIn
from simulator_cases import ALL_RULES, FACTOR_RULES, assert_close, random_factors, rules_that

from fedlora_sim import LoRAFactors, Scenario, aggregate, simulate
from fedlora_sim.runtime import full_precision
from fedlora_sim.tasks.loading import load_task
from fedlora_sim.tolerances import relative

SPECTRAL_RULES = rules_that(lambda rule: rule.has_spectral_form)
NOISE = {"gain_std": 0.2, "drift_std": 0.1}
SEEDS = range(2)


@pytest.fixture
def device():
    with StandIn() as stand_in:
        yield stand_in


def scenario(**changes):
    usual = {"cohort_size": 3, "rounds": 2, "d_in": 9, "d_out": 8, **NOISE}
    return Scenario("1x2,3x2,4x1", **{**usual, **changes})


def assert_same_on(name, run, rule, **options):
    there = simulate(run.replace(device=name), rule, seed=SEEDS, **options)
    here = simulate(run.replace(device="cpu"), rule, seed=SEEDS, **options)
    for variable in here.data_vars:
        if np.issubdtype(here[variable].dtype, np.floating):
            wanted = here[variable].values
            assert_close(np.nan_to_num(there[variable]), np.nan_to_num(wanted), "iteration")


def cohort_on(device, dtype=torch.float64, ranks=(1, 3, 4), d=12):
    rng = np.random.default_rng(5)
    updates = [random_factors(rng, d, d, r, dtype=dtype) for r in ranks]
    shared = updates[-1].lora_A  # FFA-LoRA's clients hold the first rows of one A
    return {
        "own": [LoRAFactors(x.lora_A.to(device), x.lora_B.to(device)) for x in updates],
        "shared": [LoRAFactors(shared[: x.rank].to(device), x.lora_B.to(device)) for x in updates],
    }


def aggregated(rule, device, dtype=torch.float64):
    updates = cohort_on(device, dtype)["shared" if rule == "ffa" else "own"]
    return aggregate(updates, [3, 2, 1], rule).delta()


# The stand-in itself


def test_the_stand_in_refuses_what_cuda_refuses(device):
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert there.device == DEVICE
    assert here.device.type == "cpu"
    for mixed in (
        lambda: there + here,
        lambda: torch.stack([here, there]),
        lambda: here[there > 0],
    ):
        with pytest.raises(RuntimeError, match=r"on the CPU|same device"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(there)
    assert (there + 1 + torch.tensor(1.0)).device == DEVICE
    assert there.mul_(2) is there
    assert there.cpu().tolist() == [2, 2, 2]


def test_the_stand_in_counts(device):
    x = torch.arange(6.0).reshape(2, 3).to("cuda")
    assert device.counts == {"copies": 1}
    y = (x @ x.mT).sum()
    assert (device.counts["kernels"], device.counts["waits"]) == (2, 0)
    assert float(y) > 0
    x[torch.tensor([0])]
    assert (device.counts["copies"], device.counts["waits"]) == (2, 1)
    torch.linalg.eigh((x @ x.mT).expand(5, 2, 2))
    assert device.solved == [("linalg_eigh", (5, 2, 2))]
    layer = torch.nn.Linear(3, 2).to("cuda")
    assert layer.weight.device == DEVICE
    layer(x).sum().backward()
    assert layer.weight.grad.device == DEVICE


# Every rule and fidelity


@pytest.mark.parametrize("rule", ALL_RULES)
def test_aggregation_is_that_of_the_cpu(device, rule):
    there = aggregated(rule, "cuda")
    assert there.device == DEVICE
    assert_close(there.cpu(), aggregated(rule, "cpu"), "factorization")


@pytest.mark.parametrize("rule", SPECTRAL_RULES)
def test_spectral_runs_are_those_of_the_cpu(device, rule):
    assert_same_on("cuda", scenario(dtype="float64"), rule, ledger=True)
    assert device.counts["kernels"]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ALL_RULES)
def test_matrix_runs_are_those_of_the_cpu(device, rule):
    run = scenario(fidelity="matrix", dtype="float64", subspace_noise=0.1, basis_drift=0.1)
    assert_same_on("cuda", run, rule)
    assert device.counts["kernels"]


@pytest.mark.slow
def test_training_is_that_of_the_cpu(device):
    small = {"local_steps": 1, "max_train": 60, "max_test": 40}
    run = Scenario("2x1,4x1", fidelity="training", rounds=1, device="cuda", **small)
    task = load_task(run)
    assert task.device == DEVICE
    assert task.to(torch.device("cuda"), task.dtype) is task  # not a copy for every run
    device.counts.clear()
    assert_same_on("cuda", run, "raflora")
    assert device.counts["waits"] <= 650 * len(SEEDS)


def test_mixed_devices_are_refused(device):
    updates = [*cohort_on("cuda")["own"], *cohort_on("cpu")["own"]]
    with pytest.raises(ValueError, match="cuda:0"):
        aggregate(updates, None)
    with pytest.raises(ValueError, match="cuda:0"):
        LoRAFactors(torch.ones(1, 2, device="cuda"), torch.ones(2, 1))


def test_auto_leaves_a_small_run_on_the_cpu(device):
    simulate(scenario(), "raflora", seed=0)
    simulate(scenario(fidelity="matrix"), "raflora", seed=0)
    assert not device.counts


# Budgets


def counts_of(device, run, rule, seeds):
    device.counts.clear()
    simulate(run.replace(device="cuda"), rule, seed=range(seeds))
    return dict(device.counts)


@pytest.mark.parametrize("rule", ["fedavg", "raflora"])
def test_a_spectral_run_waits_once_and_launches_as_much_for_any_number_of_seeds(device, rule):
    run = scenario(rounds=8)
    few, many = (counts_of(device, run, rule, seeds) for seeds in (2, 9))
    assert few == many
    assert few["waits"] == 1
    more = counts_of(device, run.replace(rounds=16), rule, 2)
    assert more["waits"] == few["waits"]
    assert more["copies"] == few["copies"]
    assert (more["kernels"] - few["kernels"]) / 8 <= 5


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["fedavg", "raflora", "zero_pad"])
def test_kernels_of_a_matrix_round_do_not_depend_on_seeds_and_cohorts(device, rule):
    run = scenario(fidelity="matrix", rounds=3)
    few = counts_of(device, run, rule, 2)
    for other, seeds in ((run, 9), (run.replace(cohort_size=5), 2)):
        many = counts_of(device, other, rule, seeds)
        # Products are split up by their shapes; empty partitions take some operations more.
        assert many["kernels"] <= 1.1 * few["kernels"]
        assert many["copies"] == few["copies"]
        assert many["waits"] <= few["waits"]
    more = counts_of(device, run.replace(rounds=5), rule, 2)
    assert more["copies"] == few["copies"]
    assert (more["kernels"] - few["kernels"]) / 2 <= 125
    assert (more["waits"] - few["waits"]) / 2 <= 5


def test_solvers_see_all_layers_of_an_aggregate_at_once(device):
    rng = np.random.default_rng(1)
    parts = [random_factors(rng, 12, 12, r, dtype=torch.float32, batch=(5,)) for r in (2, 3)]
    updates = [LoRAFactors(x.lora_A.to("cuda"), x.lora_B.to("cuda")) for x in parts]
    device.counts.clear()
    aggregate(updates, None, "raflora")
    assert device.solved
    assert all(shape[0] == 5 for _, shape in device.solved)
    assert device.counts["waits"] <= 24


@pytest.mark.parametrize("rule", ["fedavg", "raflora", "zero_pad"])
def test_an_aggregate_waits_as_often_for_any_number_of_clients(device, rule):
    waits = []
    for clients in (2, 9):
        updates = cohort_on("cuda", torch.float32, ranks=(1,) * clients)["own"]
        device.counts.clear()
        aggregate(updates, None, rule)
        waits.append(device.counts["waits"])
    assert waits[0] == waits[1] <= 8


# TF32


@pytest.fixture
def fast_matmul():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("fast_matmul")
@pytest.mark.parametrize("rule", ["fedavg", "raflora", *FACTOR_RULES])
def test_aggregation_does_not_round_to_tf32(device, rule):
    wanted = aggregated(rule, "cpu", torch.float64)
    found = aggregate(cohort_on("cuda", torch.float32)["own"], [3, 2, 1], rule)
    with full_precision():
        assert_close(found.delta().cpu(), wanted, "factorization", torch.float32)


@pytest.mark.usefixtures("fast_matmul")
def test_tf32_would_exceed_the_tolerance(device):
    x = torch.randn(12, 12, generator=torch.Generator().manual_seed(1))
    error = ((x.to("cuda") @ x.to("cuda")).cpu() - x @ x).norm() / (x @ x).norm()
    assert relative("factorization", "float32") < float(error) < 1e-2


# Real devices


@pytest.mark.gpu
@pytest.mark.parametrize("rule", ALL_RULES)
def test_aggregation_on_a_real_device(rule):
    found = aggregated(rule, "cuda")
    assert_close(found.cpu(), aggregated(rule, "cpu"), "factorization")


@pytest.mark.gpu
@pytest.mark.parametrize("rule", ["fedavg", "raflora", "hetlora", "fedex"])
@pytest.mark.parametrize("fidelity", ["spectral", "matrix"])
def test_runs_on_a_real_device(fidelity, rule):
    assert_same_on("cuda", scenario(fidelity=fidelity, dtype="float64"), rule)
