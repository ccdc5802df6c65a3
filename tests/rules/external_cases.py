"""External rules, and rounds and scenarios for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from simulator_cases import random_factors

from fedlora_sim import Scenario
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import LowRankProduct
from fedlora_sim.rules import Aggregated, Properties


def mean_of(updates, weights):
    pairs = zip(updates, weights, strict=True)
    return torch.stack([w / sum(weights) * update.delta() for update, w in pairs]).sum(0)


@dataclass(frozen=True)
class DenseFedAvg:
    """FedAvg by dense matrices, through the protocol alone."""

    name: ClassVar[str] = "dense_fedavg"
    source: ClassVar[str] = "a test"
    properties: ClassVar[Properties] = Properties(linear=True, exact=True)

    def step(self, updates, weights, context, state):
        mean = mean_of(updates, weights)
        return Aggregated(LoRAFactors.from_delta(mean, context.r_max)), {}


@dataclass(frozen=True)
class Moving(DenseFedAvg):
    """FedAvg with a velocity and a count of rounds, a number without dimensions."""

    beta: float = 0.5
    name: ClassVar[str] = "moving"

    def step(self, updates, weights, context, state):
        mean, last = mean_of(updates, weights), context.previous.delta()
        velocity, rounds = mean - last, torch.zeros((), dtype=mean.dtype)
        if state:
            velocity, rounds = velocity + self.beta * state["velocity"], state["rounds"] + 1
        adapter = LoRAFactors.from_delta(last + velocity, context.r_max)
        return Aggregated(adapter), {"velocity": velocity, "rounds": rounds}


@dataclass(frozen=True)
class DenseFedEx(DenseFedAvg):
    """FedEx: averaged factors, and the residual in as many columns as necessary."""

    name: ClassVar[str] = "dense_fedex"
    space: ClassVar[str] = "factor"

    def step(self, updates, weights, context, state):
        r, total = context.r_max, sum(weights)
        lora_a = updates[0].lora_A.new_zeros(r, updates[0].d_in)
        lora_b = updates[0].lora_B.new_zeros(updates[0].d_out, r)
        held = context.positions or [range(update.rank) for update in updates]
        for update, weight, own in zip(updates, weights, held, strict=True):
            at, root = list(own), abs(update.scaling) ** 0.5
            lora_a[at] += weight / total * root * update.lora_A
            lora_b[:, at] += weight / total * root * update.lora_B
        missed = mean_of(updates, weights) - lora_b @ lora_a
        u, s, vh = torch.linalg.svd(missed, full_matrices=False)
        kept = s > 1e-13 * s[0]
        base = LowRankProduct([(u[:, kept], vh[kept])], s[kept])
        return Aggregated(LoRAFactors(lora_a, lora_b), base), {}


def scenario(**changes) -> Scenario:
    given = {"fidelity": "matrix", "rounds": 4, "gain_std": 0.1, "drift_std": 0.05}
    return Scenario("2x3,4x2,7x1", **{**given, "subspace_noise": 0.1, **changes})


def cohort(seed=0, batch=(), dtype=torch.float64, scaling=1.0):
    rng = np.random.default_rng(seed)
    return [random_factors(rng, 6, 5, r, scaling, dtype, batch) for r in (1, 2, 3)]
