"""Claims on identities between rules, on real factors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.claims.base import EXACT, IDENTICAL, Claim, Control, RunContext
from analysis.stats.intervals import every_run
from analysis.stats.verdicts import Prediction
from fedlora_sim import Federation, LoRAFactors, Scenario, aggregate
from fedlora_sim.engines.matrix import Targets, descend
from fedlora_sim.randomness import stream
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.runtime import resolve_device

Array = NDArray[np.float64]

EQUAL, UNEQUAL = (6, 6, 6, 6), (2, 4, 6, 6)
FEDERATION = (2, 2, 4, 4, 4, 7, 7, 7)
D_OUT, D_IN = 20, 24
ADAM = Scenario(
    ranks=(3,),
    fidelity="matrix",
    local_loss="quadratic",
    optimizer="adam",
    local_steps=5,
    local_time=0.05,
    d_in=D_IN,
    d_out=D_OUT,
)
FORMS = ("raflora", "raflora:canonicalize=true")


def product_distance(
    ranks: tuple[int, ...], off: float, numbers: Sequence[int], context: RunContext
) -> Array:
    """Return the relative distance of raFLoRA's product from FedAvg's, on random factors.

    FedAvg's product is the best approximation of the dense weighted mean, computed without the code
    of the rule.

    Args:
        ranks: ranks of the clients.
        off: excess of the sum of FedAvg's shares over 1, for the near control.
        numbers: numbers of the runs.
        context: seeds and device.

    Returns:
        One row per run: raFLoRA on the factors as drawn, and on canonical factors.
    """
    distances = []
    device = resolve_device(context.device, torch.float64, "matrix")
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
        shares = [(1 + off) * n / sum(samples) for n in samples]
        dense = torch.stack([p * u.delta() for p, u in zip(shares, updates, strict=True)]).sum(0)
        fedavg = LoRAFactors.from_delta(dense, max(ranks)).delta()
        products = [aggregate(updates, samples, rule).delta() for rule in FORMS]
        distances.append([float((x - fedavg).norm() / fedavg.norm()) for x in products])
        context.on_progress(1)
    return np.array(distances)


def partition_distance(
    power: int, numbers: Sequence[int], context: RunContext, off: float = 0.0
) -> Array:
    """Return relative distance of raFLoRA's product from FedAvg's partitions times `W_h**power`.

    One row per random cohort of `FEDERATION`, with random factors, scalings and sample counts. The
    partitions are summed densely and truncated by an SVD, without the code of the rule. The near
    control also multiplies them by 1 + `off`.
    """
    levels = sorted(set(FEDERATION))
    device = resolve_device(context.device, torch.float64, "matrix")
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
                dense += (1 + off) * share**power * samples[k] / sum(samples) * scalings[k] * part
        u, s, vt = np.linalg.svd(dense)
        best = (u[:, : levels[-1]] * s[: levels[-1]]) @ vt[: levels[-1]]
        measured = result.delta().cpu().numpy()
        distances.append(np.linalg.norm(measured - best) / np.linalg.norm(best))
        context.on_progress(1)
    return np.array(distances)[:, None]


def adam_distance(off: float, numbers: Sequence[int], context: RunContext) -> Array:
    """Return relative distance of a client's factors after local Adam steps from PyTorch's Adam.

    The loss is `0.5 ||B A - M||_F**2`, on random factors of full size; the distance is that of the
    change by the steps.

    Args:
        off: relative excess of PyTorch's learning rate, for the near control.
        numbers: numbers of the runs.
        context: seeds and device.
    """
    rank, steps = 3, ADAM.local_steps
    assert steps is not None
    distances = []
    for seed in context.seeds(numbers):
        rng = stream(seed, "adam")
        a, b, left, right = (
            torch.from_numpy(rng.standard_normal((1, 1, *shape)))
            for shape in ((rank, D_IN), (D_OUT, rank), (D_OUT, rank), (D_IN, rank))
        )
        ours = descend(ADAM, a, b, Targets(left, right), None, frozen_a=False)
        theirs = [x[0, 0].clone().requires_grad_() for x in (a, b)]
        rate = ADAM.local_time / steps * (1 + off)
        optimizer = torch.optim.Adam(theirs, lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (theirs[1] @ theirs[0] - left[0, 0] @ right[0, 0].mT).square().sum() / 2
            torch.autograd.backward(loss)
            optimizer.step()
        moved, apart = (
            torch.stack([(x.detach() - y[0, 0]).norm() for x, y in zip(theirs, other, strict=True)])
            for other in ((a, b), ours)
        )
        distances.append(float(apart.norm() / moved.norm()))
        context.on_progress(1)
    return np.array(distances)[:, None]


IDENTITY_CLAIMS = (
    Claim(
        id="adam-identity",
        statement="Clients that train by Adam at matrix fidelity take the steps of PyTorch's Adam, "
        "its bias correction included.",
        source="Kingma and Ba, arXiv 1412.6980",
        assumptions=f"quadratic loss, random factors and targets, {ADAM.local_steps} local steps",
        fidelity="matrix",
        statistic="distance of the factors after a round relative to their change in the round",
        quantities=("relative distance of the factors",),
        predict=partial(Prediction.near, 0.0, EXACT),
        experiment=partial(adam_distance, 0.0),
        control=Control("a learning rate larger by 1%", experiment=partial(adam_distance, 0.01)),
        near=Control("a learning rate larger by 3.4e-9", experiment=partial(adam_distance, 3.4e-9)),
        estimator=every_run,
        first=20,
        cap=20,
    ),
    Claim(
        id="equal-ranks-identity",
        statement="With equal ranks raFLoRA and FedAvg are the same rule.",
        source="arXiv 2602.13486, Sec. 5",
        assumptions="any factors, any sample counts, any scalings",
        fidelity="matrix",
        statistic="Frobenius distance of the two products relative to the norm of FedAvg's",
        quantities=("relative distance, factors as drawn", "relative distance, canonical factors"),
        predict=partial(Prediction.near, [0.0, 0.0], IDENTICAL),
        experiment=partial(product_distance, EQUAL, 0.0),
        control=Control("unequal ranks", experiment=partial(product_distance, UNEQUAL, 0.0)),
        near=Control(
            "shares of the data that sum to 1 + 3.4e-10",
            experiment=partial(product_distance, EQUAL, 3.4e-10),
        ),
        estimator=every_run,
        first=20,
        cap=20,
    ),
    Claim(
        id="partition-identity",
        statement="raFLoRA is FedAvg with partition $h$ divided by $W_h$, truncated to the highest "
        "rank.",
        source="arXiv 2602.13486, Sec. 5; ours (for any cohort and any scalings)",
        assumptions="none on the basis: any factors, sample counts, scalings and cohorts",
        fidelity="matrix",
        statistic="Frobenius distance of the two products relative to the norm of the latter",
        quantities=("relative distance of the products",),
        predict=partial(Prediction.near, 0.0, IDENTICAL),
        experiment=partial(partition_distance, -1),
        estimator=every_run,
        control=Control(
            "not divided by $W_h$, as in FedAvg", experiment=partial(partition_distance, 0)
        ),
        near=Control(
            "divided by $W_h$ times 1 - 3.4e-10",
            experiment=partial(partition_distance, -1, off=3.4e-10),
        ),
        first=40,
        cap=40,
    ),
)


# Multipliers of single directions, and the effect of a gauge change on raFLoRA

RULES = ("fedavg", "zero_pad", "hetlora", "flora", "ffa", "fedex", "rbla", "raflora")
RANKS = (2, 4, 4, 7, 7)
RULES_D_OUT, RULES_D_IN = 20, 24


def multiplier_error(
    numbers: Sequence[int], context: RunContext, instead: str | None = None, off: float = 0.0
) -> Array:
    """Return the relative distance of measured amplitudes from the declared multiplier.

    Each client returns its directions of one basis with common amplitudes, in random scalings.

    Args:
        numbers: one round per number.
        context: seeds and device.
        instead: a rule whose declaration is used for all, for the negative control.
        off: relative excess of the returned amplitudes, for the near control.

    Returns:
        One row per round, one column per rule.
    """
    rows = []
    for seed in context.seeds(numbers):
        rng = stream(seed, "multipliers")
        u, v = (_orthonormal(rng, d, max(RANKS), context) for d in (RULES_D_OUT, RULES_D_IN))
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


def _orthonormal(rng: np.random.Generator, d: int, q: int, context: RunContext) -> Tensor:
    basis = torch.from_numpy(np.linalg.qr(rng.standard_normal((d, q)))[0])
    return basis.to(resolve_device(context.device, torch.float64, "matrix"))


def _shared(
    u: Tensor, v: Tensor, sent: Tensor, rank: int, scaling: float, frozen_a: bool
) -> LoRAFactors:
    """Return a client's first directions of the basis; a frozen A is the basis itself."""
    on_b = sent if frozen_a else sent.sqrt()
    on_a = torch.ones_like(sent) if frozen_a else sent.sqrt()
    share = scaling if frozen_a else scaling**0.5
    whole = LoRAFactors(
        (v * on_a).mT / (1.0 if frozen_a else share), u * on_b / share, scaling=scaling
    )
    return whole.truncate(rank)


def _coverage(rule: AggregationRule, updates: Sequence[LoRAFactors], samples: Tensor) -> Tensor:
    """Return the weight share of the contributors to each direction, by the rule's own weights."""
    weights = samples
    if rule.weights_from_norms:
        weights = torch.stack([update.norm() for update in updates])
    return torch.from_numpy(Federation(RANKS).carried_shares(weights.cpu())).to(weights)


def gauge_distance(
    rule: str, numbers: Sequence[int], context: RunContext, off: float = 0.0
) -> Array:
    """Return relative change of the global update when clients change the gauge of their updates.

    Each client's factors become `B G, G^{-1} A` with a random invertible G of condition number 4:
    the same update, up to a factor 1 + `off` of the near control.
    """
    device = resolve_device(context.device, torch.float64, "matrix")
    distances = []
    for seed in context.seeds(numbers):
        rng = stream(seed, "gauge")
        updates, turned = [], []
        for r in RANKS:
            a, b = (
                torch.from_numpy(rng.standard_normal(shape))
                for shape in ((r, RULES_D_IN), (RULES_D_OUT, r))
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


MULTIPLIER_CLAIMS = (
    Claim(
        id="declared-multipliers",
        statement="Every rule multiplies a direction that all contributors return alike by the "
        "multiplier that it declares.",
        source="the rules' papers; arXiv 2602.13486, Sec. 4",
        assumptions="fixed basis, common amplitudes, any sample counts and scalings, one round",
        fidelity="matrix",
        statistic="relative distance of the amplitudes from the multiplier times the sent ones",
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
        statement="raFLoRA on canonical factors does not depend on the gauge of the updates.",
        source="ours",
        assumptions="any factors, any invertible change of gauge",
        fidelity="matrix",
        statistic="Frobenius distance of the updates in two gauges relative to their norm",
        quantities=("relative change of the global update",),
        predict=partial(Prediction.near, 0.0, IDENTICAL),
        estimator=every_run,
        experiment=partial(gauge_distance, "raflora:canonicalize=true"),
        control=Control(
            "plain raFLoRA, which partitions the factors as trained",
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
