"""Devices by name: the choice of `auto`, and refusals."""

from __future__ import annotations

import pytest
import torch

from fedlora_sim import Scenario, simulate
from fedlora_sim.errors import InputError
from fedlora_sim.runtime import resolve_device


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
    assert resolve_device("auto", dtype).type == chosen
    assert resolve_device("CPU", dtype).type == "cpu"


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
        resolve_device(device, dtype)


def test_mps_cannot_compute_in_float64(machine):
    machine(cuda=False, mps=True)
    assert resolve_device("mps", torch.float32).type == "mps"
    with pytest.raises(InputError, match="dtype='float64'"):
        resolve_device("mps", torch.float64)


@pytest.mark.parametrize("fidelity", ["spectral", "matrix"])
def test_a_simulation_refuses_an_absent_device(machine, fidelity):
    machine(cuda=False, mps=False)
    run = Scenario("2x2", fidelity=fidelity, rounds=1, device="cuda")
    with pytest.raises(InputError, match="device='cuda'"):
        simulate(run)
