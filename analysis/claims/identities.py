"""Identities between rules, on real factors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from analysis.claim import Claim, Context, NegativeControl
from analysis.inference.verdict import Prediction
from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.devices import resolve_device
from fedlora_sim.randomness import stream

Array = NDArray[np.float64]

EXACT = 1e-10
EQUAL, UNEQUAL = (6, 6, 6, 6), (2, 4, 6, 6)


def product_distance(ranks: tuple[int, ...], numbers: Sequence[int], context: Context) -> Array:
    """Relative distance of raFLoRA's product from FedAvg's, on random factors and scalings.

    FedAvg's is the best approximation of the dense weighted mean: no code in common with the rule.
    """
    distances = []
    device = resolve_device(context.device, torch.float64)
    for seed in context.seeds(numbers):
        rng = stream(seed, "identity")
        updates = [
            LoRAFactors(
                torch.from_numpy(rng.standard_normal((r, 24))).to(device),
                torch.from_numpy(rng.standard_normal((20, r))).to(device),
                scaling=rng.uniform(0.5, 2.0),
            )
            for r in ranks
        ]
        samples = rng.integers(1, 50, size=len(ranks)).tolist()
        raflora = aggregate(updates, samples, "raflora").delta()
        shares = [n / sum(samples) for n in samples]
        dense = torch.stack([p * u.delta() for p, u in zip(shares, updates, strict=True)]).sum(0)
        fedavg = LoRAFactors.from_delta(dense, max(ranks)).delta()
        distances.append(float((raflora - fedavg).norm() / fedavg.norm()))
        context.on_progress(1)
    return np.array(distances)[:, None]


CLAIMS = (
    Claim(
        id="equal-ranks-identity",
        statement="With equal ranks raFLoRA and FedAvg are the same rule.",
        source="arXiv 2602.13486, Sec. 5",
        assumptions="any factors, any sample counts, any scalings",
        fidelity="matrix",
        statistic="Frobenius distance of the two products over the norm of FedAvg's, mean of runs",
        quantities=("relative distance of the products",),
        predict=partial(Prediction.at_most, EXACT),
        experiment=partial(product_distance, EQUAL),
        control=NegativeControl("unequal ranks", experiment=partial(product_distance, UNEQUAL)),
        first=20,
        cap=20,
        quick=(20, 20),
    ),
)
