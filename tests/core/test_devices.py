"""Devices: the choice of `auto`, refusals, precision, and too little memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from simulator_cases import assert_close, random_factors

from fedlora_sim import Scenario, aggregate, runtime, simulate
from fedlora_sim.engines import matrix, spectral
from fedlora_sim.errors import InputError
from fedlora_sim.runtime import full_precision, in_parts, is_on, resolve_device


@pytest.fixture
def machine(monkeypatch):
    def pretend(*, cuda, mps):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "mps", "dtype", "chosen"),
    [
        (True, True, torch.float64, "cuda"),
        (True, False, torch.float32, "cuda"),
        (False, True, torch.float32, "mps"),
        (False, True, torch.float64, "cpu"),
        (False, False, torch.float32, "cpu"),
    ],
)
def test_auto_takes_the_fastest_that_can_compute(machine, cuda, mps, dtype, chosen):
    machine(cuda=cuda, mps=mps)
    assert resolve_device("auto", dtype, "training").type == chosen
    assert resolve_device("auto", dtype, "aggregation").type == chosen
    assert resolve_device("CPU", dtype, "training").type == "cpu"


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("cuda", torch.float32, "device='cuda'"),
        ("mps", torch.float32, "device='mps'"),
        ("cud", torch.float32, "device='cud'.*'cuda'"),
        (None, torch.float32, "device=None"),
    ],
)
def test_absent_and_unknown_devices_are_named(machine, device, dtype, message):
    machine(cuda=False, mps=False)
    with pytest.raises(InputError, match=message):
        resolve_device(device, dtype, "training")


def test_mps_cannot_compute_in_float64(machine):
    machine(cuda=False, mps=True)
    assert resolve_device("mps", torch.float32, "matrix").type == "mps"
    with pytest.raises(InputError, match="dtype='float64'"):
        resolve_device("mps", torch.float64, "matrix")


@pytest.mark.parametrize("fidelity", ["spectral", "matrix"])
def test_a_simulation_refuses_an_absent_device(machine, fidelity):
    machine(cuda=False, mps=False)
    run = Scenario("2x2", fidelity=fidelity, rounds=1, device="cuda")
    with pytest.raises(InputError, match="device='cuda'"):
        simulate(run)


@pytest.mark.parametrize("work", ["spectral", "matrix"])
def test_auto_takes_the_cpu_for_work_that_gains_nothing(machine, work):
    machine(cuda=True, mps=True)
    assert resolve_device("auto", torch.float32, work).type == "cpu"
    assert resolve_device("cuda", torch.float32, work).type == "cuda"


def test_auto_takes_the_cpu_in_worker_processes_that_would_share_a_device(machine, monkeypatch):
    machine(cuda=True, mps=False)
    monkeypatch.setattr(runtime, "_is_worker", True)
    assert resolve_device("auto", torch.float32, "training").type == "cpu"
    assert resolve_device("cuda", torch.float32, "training").type == "cuda"


@pytest.mark.slow
def test_workers_know_that_they_are_workers():
    (found,) = runtime.in_processes(_place_of_training, [()], 2)
    assert found == "cpu"


def _place_of_training():
    torch.cuda.is_available = lambda: True
    return resolve_device("auto", torch.float32, "training").type


def test_a_device_without_an_index_is_the_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    cuda = torch.device("cuda")
    assert is_on(torch.device("cuda:1"), cuda)
    assert not is_on(torch.device("cuda:0"), cuda)
    assert is_on(torch.device("cuda:0"), torch.device("cuda:0"))
    assert not is_on(torch.device("cpu"), cuda)
    assert is_on(torch.device("mps:0"), torch.device("mps"))


PRECISIONS = {
    "matmul": lambda: torch.backends.mkldnn.matmul.fp32_precision,
    "cuda": lambda: torch.backends.cuda.matmul.fp32_precision,
    "convolution": lambda: torch.backends.cudnn.conv.fp32_precision,
}


@pytest.fixture
def fast_matmul():
    """Allow TF32 as many training scripts do."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("fast_matmul")
def test_full_precision_is_for_the_block_alone():
    before = {name: read() for name, read in PRECISIONS.items()}
    assert before["cuda"] == before["convolution"] == "tf32"
    with full_precision():
        assert {name: read() for name, read in PRECISIONS.items()} == dict.fromkeys(before, "ieee")
        with full_precision():
            pass
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert {name: read() for name, read in PRECISIONS.items()} == before
    assert torch.get_float32_matmul_precision() == "high"
    with pytest.raises(ZeroDivisionError), full_precision():
        1 / 0  # noqa: B018
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("rule", ["fedavg", "zero_pad"])
def test_an_aggregate_within_autocast_is_the_same(rule):
    """As in a training script that aggregates within its own mixed precision."""
    rng = np.random.default_rng(3)
    updates = [random_factors(rng, 9, 8, r, dtype=torch.float32) for r in (2, 4)]
    wanted = aggregate(updates, None, rule).adapter
    with torch.autocast("cpu", torch.bfloat16):
        assert (updates[0].lora_B @ updates[0].lora_A).dtype == torch.bfloat16
        found = aggregate(updates, None, rule).adapter
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found.lora_A, wanted.lora_A)
    assert torch.equal(found.lora_B, wanted.lora_B)


def out_of_memory_above(most, function):
    """Return a function of a batch that fails like a device with memory for `most` items."""

    def limited(*arguments):
        if max(len(x) for x in arguments if isinstance(x, range | list | tuple)) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")
        return function(*arguments)

    return limited


def test_batches_that_do_not_fit_into_memory_are_halved():
    double = out_of_memory_above(3, lambda batch: [2 * x for x in batch])
    assert in_parts(double, list(range(8))) == [[0, 2], [4, 6], [8, 10], [12, 14]]
    assert in_parts(double, [5]) == [[10]]
    with pytest.raises(MemoryError, match="a batch of one: CUDA out of memory"):
        in_parts(out_of_memory_above(0, list), [1, 2])


@pytest.mark.parametrize("rule", ["fedavg", "hetlora"])
@pytest.mark.parametrize(
    ("fidelity", "engine", "step"),
    [("spectral", spectral, "_recursion"), ("matrix", matrix, "_in_range")],
)
def test_a_run_that_does_not_fit_into_memory_gives_the_same_numbers(
    monkeypatch, fidelity, engine, step, rule
):
    run = Scenario("2x2,4x2", fidelity=fidelity, cohort_size=2, rounds=3, d_in=8, d_out=8)
    wanted = simulate(run, rule, seed=range(5))
    name = "_run_clients" if (fidelity, rule) == ("spectral", "hetlora") else step
    monkeypatch.setattr(engine, name, out_of_memory_above(2, getattr(engine, name)))
    found = simulate(run, rule, seed=range(5))
    assert_close(found.energy, wanted.energy)
