"""What every rule does to one direction, and what the gauge of the factors does to raFLoRA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.claim import Claim, Context, Control
from analysis.claims.predicted import IDENTICAL
from analysis.stats.intervals import every_run
from analysis.stats.verdicts import Prediction
from fedlora_sim import Federation, LoRAFactors, aggregate
from fedlora_sim.randomness import stream
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.runtime import resolve_device

Array = NDArray[np.float64]

RULES = ("fedavg", "zero_pad", "hetlora", "flora", "ffa", "fedex", "rbla", "raflora")
RANKS = (2, 4, 4, 7, 7)
D_OUT, D_IN = 20, 24


def multiplier_error(
    numbers: Sequence[int], context: Context, instead: str | None = None, off: float = 0.0
) -> Array:
    """Relative distance of measured amplitudes from the declared multiplier times what was sent.

    Every client returns its directions of one basis with common amplitudes, in random scalings.

    Args:
        numbers: one round per number.
        context: seeds and device.
        instead: a rule whose declaration is taken for all, for the negative control.
        off: share by which the amplitudes sent exceed what is declared, for the near control.

    Returns:
        One row per round, one column per rule.
    """
    rows = []
    for seed in context.seeds(numbers):
        rng = stream(seed, "multipliers")
        u, v = (_orthonormal(rng, d, max(RANKS), context) for d in (D_OUT, D_IN))
        sent = torch.from_numpy(rng.uniform(0.5, 2.0, size=max(RANKS))).to(u)
        samples = torch.from_numpy(rng.integers(1, 50, size=len(RANKS))).to(u)
        scalings = rng.uniform(0.5, 2.0, size=len(RANKS))
        errors = []
        for name in RULES:
            rule = get_rule(name)
            updates = [
                _shared(u, v, sent * (1 + off), r, float(s), rule.frozen_a)
                for r, s in zip(RANKS, scalings, strict=True)
            ]
            total = aggregate(updates, samples.tolist(), rule).delta()
            measured = torch.einsum("ir,ij,jr->r", u, total, v)
            declared = (rule if instead is None else get_rule(instead)).multiplier(
                _coverage(rule, updates, samples)
            )
            expected = declared * sent
            errors.append(float((measured - expected).norm() / expected.norm()))
        rows.append(errors)
        context.on_progress(1)
    return np.array(rows)


def _orthonormal(rng: np.random.Generator, d: int, q: int, context: Context) -> Tensor:
    basis = torch.from_numpy(np.linalg.qr(rng.standard_normal((d, q)))[0])
    return basis.to(resolve_device(context.device, torch.float64))


def _shared(
    u: Tensor, v: Tensor, sent: Tensor, rank: int, scaling: float, frozen_a: bool
) -> LoRAFactors:
    """A client's first directions of the basis; A is the basis itself where it is frozen."""
    on_b = sent if frozen_a else sent.sqrt()
    on_a = torch.ones_like(sent) if frozen_a else sent.sqrt()
    share = scaling if frozen_a else scaling**0.5
    whole = LoRAFactors(
        (v * on_a).mT / (1.0 if frozen_a else share), u * on_b / share, scaling=scaling
    )
    return whole.truncate(rank)


def _coverage(rule: AggregationRule, updates: Sequence[LoRAFactors], samples: Tensor) -> Tensor:
    """Weight share of the contributors to every direction, by the weights that the rule uses."""
    weights = samples
    if rule.weights_from_norms:
        weights = torch.stack([update.norm() for update in updates])
    return torch.from_numpy(Federation(RANKS).carried_shares(weights.cpu())).to(weights)


def gauge_distance(rule: str, numbers: Sequence[int], context: Context, off: float = 0.0) -> Array:
    """Relative change of the global update when clients write their updates in another gauge.

    Every client's factors become `B G, G^{-1} A` with a random invertible G of condition number 4:
    the same update, but for a factor 1 + `off` of the near control.
    """
    device = resolve_device(context.device, torch.float64)
    distances = []
    for seed in context.seeds(numbers):
        rng = stream(seed, "gauge")
        updates, turned = [], []
        for r in RANKS:
            a, b = (
                torch.from_numpy(rng.standard_normal(shape)) for shape in ((r, D_IN), (D_OUT, r))
            )
            left, right = (np.linalg.qr(rng.standard_normal((r, r)))[0] for _ in range(2))
            g = torch.from_numpy(left @ np.diag(np.linspace(0.5, 2.0, r)) @ right)
            updates.append(LoRAFactors(a.to(device), b.to(device)))
            inverse = torch.linalg.inv(g) * (1 + off)
            turned.append(LoRAFactors((inverse @ a).to(device), (b @ g).to(device)))
        samples = rng.integers(1, 50, size=len(RANKS)).tolist()
        before, after = (aggregate(x, samples, rule).delta() for x in (updates, turned))
        distances.append(float((after - before).norm() / before.norm()))
        context.on_progress(1)
    return np.array(distances)[:, None]


CLAIMS = (
    Claim(
        id="declared-multipliers",
        statement="Every rule multiplies a direction that all contributors return alike by what "
        "it declares.",
        source="the rules' papers; arXiv 2602.13486, Sec. 4",
        assumptions="fixed basis, common amplitudes, any sample counts and scalings, one round",
        fidelity="matrix",
        statistic="distance of the amplitudes from multiplier times what was sent",
        quantities=tuple(f"relative error, {name}" for name in RULES),
        predict=partial(Prediction.near, [0.0] * len(RULES), IDENTICAL),
        estimator=every_run,
        experiment=multiplier_error,
        control=Control(
            "the multiplier of FedAvg for all",
            experiment=partial(multiplier_error, instead="fedavg"),
        ),
        near=Control(
            "amplitudes 3.4e-10 larger than declared",
            experiment=partial(multiplier_error, off=3.4e-10),
        ),
        first=20,
        cap=20,
    ),
    Claim(
        id="canonical-gauge",
        statement="raFLoRA on canonical factors does not depend on how updates are written.",
        source="ours",
        assumptions="any factors, any invertible change of gauge",
        fidelity="matrix",
        statistic="Frobenius distance of the updates in two gauges over their norm",
        quantities=("relative change of the global update",),
        predict=partial(Prediction.near, 0.0, IDENTICAL),
        estimator=every_run,
        experiment=partial(gauge_distance, "raflora:canonicalize=true"),
        control=Control(
            "plain raFLoRA, which partitions the factors as they are",
            experiment=partial(gauge_distance, "raflora"),
        ),
        near=Control(
            "an inverse of the gauge that is off by 3.4e-10",
            experiment=partial(gauge_distance, "raflora:canonicalize=true", off=3.4e-10),
        ),
        first=20,
        cap=20,
    ),
)
