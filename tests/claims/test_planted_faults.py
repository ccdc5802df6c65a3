"""Faults planted in the product that the quick claims must detect."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from analysis.claims import select
from analysis.claims.base import RunContext
from analysis.claims.verify import run_claim
from analysis.closed_form import persistent, round_map
from fedlora_sim import LoRAFactors
from fedlora_sim.engines import matrix, spectral
from fedlora_sim.randomness import normals

pytestmark = pytest.mark.usefixtures("one_thread")


def verdict(name: str, **changes: Any) -> str:
    (claim,) = select([name], quick=True)
    return str(run_claim(dataclasses.replace(claim, **changes), RunContext(quick=True))["verdict"])


def test_half_a_cross_term_in_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    right = round_map.affine_map

    def wrong(*args: object) -> round_map.RoundMap:
        found = right(*args)  # type: ignore[arg-type]
        return dataclasses.replace(found, cross=found.cross / 2)

    monkeypatch.setattr(round_map, "affine_map", wrong)
    assert verdict("floor-drift-mean") == "refuted"


@pytest.mark.slow
def test_noise_that_neighboring_runs_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(seeds: Sequence[int], *drawn: object) -> torch.Tensor:
        return normals([seed // 2 for seed in seeds], *drawn)  # type: ignore[arg-type]

    monkeypatch.setattr(spectral, "normals", shared)
    assert verdict("independent-runs", first=4_000, cap=4_000) == "refuted"


@pytest.mark.slow
def test_adam_without_bias_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncorrected(gradient: torch.Tensor, moments: list[torch.Tensor], step: int) -> torch.Tensor:
        first, second = moments
        first.lerp_(gradient, 1 - matrix.BETAS[0])
        second.mul_(matrix.BETAS[1]).addcmul_(gradient, gradient, value=1 - matrix.BETAS[1])
        return first / (second.sqrt() + matrix.EPSILON)

    monkeypatch.setattr(matrix, "_adam", uncorrected)
    assert verdict("adam-identity") == "refuted"


@pytest.mark.slow
def test_wrong_moments_of_gains_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    right = persistent._full_trajectory

    def wrong(setting, clients, start, rounds):  # type: ignore[no-untyped-def]
        fewer = dataclasses.replace(clients, gain_std=0.9 * clients.gain_std)
        return right(setting, fewer, start, rounds)

    monkeypatch.setattr(persistent, "_full_trajectory", wrong)
    assert verdict("persistent-full") == "refuted"


@pytest.mark.slow
def test_canonical_factors_that_lose_their_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    right = LoRAFactors.canonical

    def wrong(factors: LoRAFactors) -> LoRAFactors:
        return right(dataclasses.replace(factors, scaling=1.0))

    monkeypatch.setattr(LoRAFactors, "canonical", wrong)
    assert verdict("equal-ranks-identity") == "refuted"
