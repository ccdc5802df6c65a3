"""Identities between rules, on real factors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from analysis.claim import Claim, Context, Control
from analysis.claims.predicted import IDENTICAL
from analysis.inference.verdict import Prediction
from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.devices import resolve_device
from fedlora_sim.randomness import stream

Array = NDArray[np.float64]

EQUAL, UNEQUAL = (6, 6, 6, 6), (2, 4, 6, 6)
FEDERATION = (2, 2, 4, 4, 4, 7, 7, 7)
D_OUT, D_IN = 20, 24


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
                torch.from_numpy(rng.standard_normal((r, D_IN))).to(device),
                torch.from_numpy(rng.standard_normal((D_OUT, r))).to(device),
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


def partition_distance(power: int, numbers: Sequence[int], context: Context) -> Array:
    """Relative distance of raFLoRA's product from FedAvg's partitions times `W_h**power`.

    One row per random cohort of `FEDERATION`, with random factors, scalings and sample counts. The
    partitions are written out densely, summed and cut by an SVD: no code in common with the rule.
    """
    levels, device = sorted(set(FEDERATION)), resolve_device(context.device, torch.float64)
    distances = []
    for seed in context.seeds(numbers):
        rng = stream(seed, "partitions")
        size = int(rng.integers(2, len(FEDERATION) + 1))
        ranks = rng.choice(FEDERATION, size=size, replace=False).tolist()
        a, b = ([rng.standard_normal((r, d)) for r in ranks] for d in (D_IN, D_OUT))
        scalings, samples = rng.uniform(0.5, 2.0, size), rng.integers(1, 50, size)
        updates = [
            LoRAFactors(
                torch.from_numpy(a_k).to(device), torch.from_numpy(b_k.T).to(device), scaling=s_k
            )
            for a_k, b_k, s_k in zip(a, b, scalings.tolist(), strict=True)
        ]
        result = aggregate(
            updates, samples.tolist(), "raflora", rank_levels=levels, empty_partition="zero"
        )
        dense = np.zeros((D_OUT, D_IN))
        for low, high in pairwise((0, *levels)):
            members = [k for k in range(size) if ranks[k] >= high]
            share = sum(samples[members]) / sum(samples)
            for k in members:
                part = b[k][low:high].T @ a[k][low:high]
                dense += share**power * samples[k] / sum(samples) * scalings[k] * part
        u, s, vt = np.linalg.svd(dense)
        best = (u[:, : levels[-1]] * s[: levels[-1]]) @ vt[: levels[-1]]
        measured = result.delta().cpu().numpy()
        distances.append(np.linalg.norm(measured - best) / np.linalg.norm(best))
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
        predict=partial(Prediction.at_most, IDENTICAL),
        experiment=partial(product_distance, EQUAL),
        control=Control("unequal ranks", experiment=partial(product_distance, UNEQUAL)),
        first=20,
        cap=20,
    ),
    Claim(
        id="partition-identity",
        statement="raFLoRA is FedAvg with partition h divided by W_h, cut to the highest rank.",
        source="arXiv 2602.13486, Sec. 5; ours (for any cohort and any scalings)",
        assumptions="none on the basis: any factors, sample counts, scalings and cohorts",
        fidelity="matrix",
        statistic="Frobenius distance of the two products over the latter's norm, mean of runs",
        quantities=("relative distance of the products",),
        predict=partial(Prediction.at_most, IDENTICAL),
        experiment=partial(partition_distance, -1),
        control=Control(
            "not divided by W_h, as in FedAvg", experiment=partial(partition_distance, 0)
        ),
        first=40,
        cap=40,
    ),
)
