"""Reference simulators of the spectral and the matrix fidelity: float64, one client at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from fedlora_sim.engines.cohort_draws import draw_slots, places
from fedlora_sim.engines.draws import (
    ClientDraws,
    allocation_scores,
    basis_draws,
    client_draws,
    client_targets,
    initial_basis,
    subspace_mixing,
    target_rotation,
)
from fedlora_sim.finetune.batches import client_streams, plan_batches
from fedlora_sim.reference.aggregation import (
    AMONG_CONTRIBUTORS,
    FACTOR_AVERAGES,
    Array,
    Factors,
    aggregate_reference,
    held_reference,
)
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks.digits import DigitsTask

# Spectral fidelity, one client and one direction at a time


@dataclass(frozen=True, eq=False)
class _Client:
    """A client's amplitudes, carried directions, weight and draws."""

    y: Array
    held: list[int]
    weight: float


def spectral_reference(scenario: Scenario, rule: str, seed: int) -> Array:
    """Return the amplitudes of one run, (T + 1, r_max).

    Gains and drifts are drawn client by client. Where the fast code draws their sum instead (fresh
    noise in product space) the two agree in distribution, otherwise number by number.
    """
    clients, times = _drawn_cohorts(scenario, seed)
    draws, scores = _unscaled_draws(scenario, seed), allocation_scores(scenario, [seed])[0].numpy()
    nothing, targets = np.zeros(scenario.federation.r_max), client_targets(scenario, seed)
    adapter, base = scenario.initial_amplitudes.copy(), nothing
    if rule == "flora":
        adapter, base = base, adapter
    states = [adapter + base]
    for t in range(scenario.rounds):
        gain, drift = _scheduled(scenario, draws, t, clients[t])
        cohort = []
        for j in np.flatnonzero(times[t]).tolist():
            k = int(clients[t, j])
            reached = [
                _trained(scenario, rule, adapter[i], targets[k, i])
                if scenario.local_loss == "quadratic"
                else gain[j, i] * (adapter[i] + base[i]) + drift[j, i]
                for i in range(len(nothing))
            ]
            cohort.append(_client(scenario, k, times[t, j], reached, scores[t, j], adapter, base))
        adapter, more = _server(rule, cohort, adapter, scenario.empty_partition)
        base = base + more
        states.append(adapter + base)
    return np.stack(states)


def _unscaled_draws(scenario: Scenario, seed: int) -> ClientDraws:
    """Return gains and drifts before the mean drifts of the partitions and the schedule."""
    none = {"drift_levels": None, "learning_rate_schedule": "constant"}
    return client_draws(scenario.replace(**none), [seed])


def _drawn_cohorts(scenario: Scenario, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the client in each place of the cohorts and how often it takes part, each (T, m)."""
    drawn = draw_slots(scenario.federation, scenario.rounds, [seed], torch.device("cpu"))
    clients, times = (x[0].expand(scenario.rounds, -1).numpy() for x in drawn)
    return clients, times


def _scheduled(
    scenario: Scenario, draws: ClientDraws, t: int, clients: NDArray[np.int64]
) -> tuple[Array, Array]:
    """Return gains and drifts of round t, (m, r_max): the training of all rounds, scaled."""
    shape = (len(clients), scenario.federation.r_max)
    drawn = draws.round(t, torch.from_numpy(clients.copy())[None])
    gain, drift = (x[0].expand(shape).clone().numpy() for x in drawn)
    if scenario.drift_levels is not None:
        for i in range(scenario.federation.r_max):
            place = sum(level <= i for level in scenario.federation.levels)
            drift[:, i] += scenario.drift_levels[place]
    scale = scheduled_rate(scenario, t)
    return (gain, drift) if scale == 1 else (gain + (1 - scale) * (1 - gain), scale * drift)


def scheduled_rate(scenario: Scenario, t: int) -> float:
    """Return the learning rate of round t, counted from 0, relative to that of the first."""
    passed = t / scenario.rounds
    return {
        "constant": 1.0,
        "linear": 1 - passed,
        "cosine": math.cos(math.pi * passed / 2) ** 2,
    }[scenario.learning_rate_schedule]


def _trained(scenario: Scenario, rule: str, x: float, m: float) -> float:
    """Return the flow of `0.5 (b a - m)**2` from balanced factors, or with a = 1 frozen."""
    time = scenario.local_time
    if rule == "ffa":
        return m + (x - m) * math.exp(-time)
    if m == 0:
        return x / (1 + 2 * time * x)
    growth = math.exp(2 * m * time)
    return m * growth * x / (m + x * (growth - 1))


def _client(
    scenario: Scenario,
    k: int,
    count: int,
    reached: list[float],
    scores: Array,
    adapter: Array,
    base: Array,
) -> _Client:
    federation, y = scenario.federation, np.zeros(len(adapter))
    assert federation.num_samples is not None  # resolved by the federation
    samples = 1.0 if federation.sampling == "size_weighted" else federation.num_samples[k]
    moved = [abs(reached[i] - (adapter[i] + base[i])) for i in range(len(y))]
    held = held_reference(scenario, federation.ranks[k], scores, moved)
    for i in held:
        y[i] = reached[i] - base[i]
    return _Client(y, held, samples * count)


def _server(
    rule: str, cohort: list[_Client], last: Array, empty_partition: str
) -> tuple[Array, Array]:
    """Return the new adapter and the increment of the base."""
    name, _, option = rule.partition(":")
    adapter, exact = np.zeros(len(last)), np.zeros(len(last))
    for i in range(len(last)):
        shares = _shares(name, option, cohort, i)
        exact[i] = sum(share * c.y[i] for share, c in zip(shares, cohort, strict=True))
        left, right = 0.0, 0.0
        for share, c in zip(shares, cohort, strict=True):
            left += share * math.sqrt(abs(c.y[i]))
            right += share * math.copysign(math.sqrt(abs(c.y[i])), c.y[i])
        adapter[i] = left * right if name in FACTOR_AVERAGES else exact[i]
        if name in AMONG_CONTRIBUTORS and not any(i in c.held for c in cohort):
            adapter[i] = last[i] if empty_partition == "carry" else 0.0
    if name == "flora":
        return np.zeros(len(last)), exact
    if name != "fedex":
        return adapter, np.zeros(len(last))
    residual = exact - adapter
    if option:
        weakest_first = np.argsort(np.abs(residual), kind="stable")
        residual[weakest_first[: -int(option.removeprefix("residual_rank="))]] = 0.0
    return adapter, residual


def _shares(name: str, option: str, cohort: list[_Client], i: int) -> list[float]:
    """Return the weight of each client's amplitude in direction i, zero where not carried."""
    weights = [c.weight for c in cohort]
    if name == "hetlora":
        counted = weights if option == "data_weighted=true" else [1.0] * len(cohort)
        norms = [math.sqrt(sum(y * y for y in c.y)) for c in cohort]
        weights = [n * norm for n, norm in zip(counted, norms, strict=True)]
        weights = weights if sum(weights) > 0 else counted
    elif name in AMONG_CONTRIBUTORS:
        weights = [w if i in c.held else 0.0 for w, c in zip(weights, cohort, strict=True)]
    total = sum(weights)
    return [w / total if i in c.held else 0.0 for w, c in zip(weights, cohort, strict=True)]


# Local training of one client, with gradients through the merged weights.
#
# The client differentiates through `W + s B A`, and its optimizer is written out.

Weights = dict[str, Tensor]
Leaves = dict[tuple[str, str], Tensor]
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults (Kingma and Ba 2015, arXiv 1412.6980)


def local_batches(
    scenario: Scenario, samples: NDArray[np.int64], seed: int, t: int, k: int
) -> list[NDArray[np.int64]]:
    """Return the sample indices of each step of client k in round t."""
    plan = plan_batches(
        [samples],
        client_streams(seed, t, [k]),
        batch_size=scenario.batch_size,
        local_steps=scenario.local_steps,
    )
    return [index[0][real[0]] for index, real in zip(plan.index, plan.real, strict=True)]


def loss_of(task: DigitsTask, weights: Weights, batch: NDArray[np.int64]) -> Tensor:
    """Return the mean cross-entropy on a batch with the given weights."""
    chosen = torch.from_numpy(batch)
    replaced = {f"{name}.weight": weight for name, weight in weights.items()}
    logits = functional_call(task.model, replaced, (task.train.inputs["images"][chosen],))
    return functional.cross_entropy(logits, task.train.labels[chosen])


def merged(weights: Weights, leaves: Leaves, scaling: float) -> Weights:
    """Return `W + s B A` of each module."""
    return {
        name: w + scaling * (leaves[name, "B"] @ leaves[name, "A"]) for name, w in weights.items()
    }


def tail_size(leaves: Leaves, start: int) -> Tensor:
    """Return `sum ||B_tail||_F ||A_tail||_F` over the modules, the tail starting at `start`."""
    size = torch.zeros((), dtype=torch.float64)
    for name, side in leaves:
        if side == "A":
            tail_b, tail_a = leaves[name, "B"][:, start:], leaves[name, "A"][start:]
            size = size + torch.linalg.vector_norm(tail_b) * torch.linalg.vector_norm(tail_a)
    return size


def train_client(
    scenario: Scenario,
    task: DigitsTask,
    weights: Weights,
    received: Mapping[str, Factors],
    scaling: float,
    batches: list[NDArray[np.int64]],
    *,
    frozen_a: bool,
    t: int,
) -> tuple[dict[str, Factors], int]:
    """Train one client for one round, with a new optimizer.

    Args:
        scenario: optimizer, rate and self-pruning; Adam or plain SGD.
        task: model and data.
        weights: weights of the adapted modules, including base corrections.
        received: the factors at the start.
        scaling: its LoRA scaling.
        batches: sample indices of each step.
        frozen_a: train B only.
        t: the round, from 0, for the schedule of the learning rate.

    Returns:
        Its factors, truncated to the rank with which it continues, and that rank.
    """
    leaves = {
        (name, side): torch.from_numpy(factor)
        for name, pair in received.items()
        for side, factor in zip("AB", pair, strict=True)
    }
    rank = len(next(iter(received.values()))[0])
    decay = scenario.pruning_decay
    keep = rank if decay is None else max(1, math.ceil(decay * rank))

    def objective(now: Leaves, batch: NDArray[np.int64]) -> Tensor:
        loss = loss_of(task, merged(weights, now, scaling), batch)
        return loss + scenario.pruning_penalty * tail_size(now, keep) if keep < rank else loss

    moving = [key for key in leaves if key[1] == "B" or not frozen_a]
    before, trained = tail_size(leaves, keep), leaves
    descent = Descent(scenario, t)
    for batch in batches:
        wanted = {key: trained[key].clone().requires_grad_(True) for key in moving}
        loss = objective({**trained, **wanted}, batch)
        gradients = torch.autograd.grad(loss, list(wanted.values()))
        trained = {**trained, **descent.step(trained, dict(zip(moving, gradients, strict=True)))}
    if not tail_size(trained, keep) < before:
        keep = rank
    sent = {
        name: (trained[name, "A"][:keep].numpy(), trained[name, "B"][:, :keep].numpy())
        for name in received
    }
    return sent, keep


class Descent:
    """Adam or SGD over tensors by name, as their papers define them."""

    def __init__(self, scenario: Scenario, t: int = 0) -> None:
        self.scenario, self.count = scenario, 0
        self.rate = scenario.learning_rate * scheduled_rate(scenario, t)
        self.moments: dict[object, tuple[Tensor, Tensor]] = {}

    def step(
        self, values: Mapping[tuple[str, str], Tensor], gradients: Mapping[tuple[str, str], Tensor]
    ) -> Leaves:
        """Return the new values of all tensors that have a gradient."""
        self.count += 1
        return {key: values[key] - self.rate * self._move(key, g) for key, g in gradients.items()}

    def _move(self, key: object, gradient: Tensor) -> Tensor:
        if self.scenario.optimizer == "sgd":
            return gradient
        zero = torch.zeros_like(gradient)
        first, second = self.moments.get(key, (zero, zero))
        first = BETA_1 * first + (1 - BETA_1) * gradient
        second = BETA_2 * second + (1 - BETA_2) * gradient**2
        self.moments[key] = (first, second)
        corrected = (second / (1 - BETA_2**self.count)).sqrt() + EPSILON
        return first / (1 - BETA_1**self.count) / corrected


def importance_reference(
    task: DigitsTask,
    weights: Weights,
    received: Mapping[str, Factors],
    samples: NDArray[np.int64],
    *,
    frozen_a: bool,
) -> dict[str, Array]:
    """Return, by module, the norm of one client's gradient along each global direction."""
    leaves = {
        (name, side): torch.from_numpy(factor).clone().requires_grad_(True)
        for name, pair in received.items()
        for side, factor in zip("AB", pair, strict=True)
    }
    loss_of(task, merged(weights, leaves, 1.0), samples).backward()
    norms = {}
    for name, (lora_a, _) in received.items():
        on_a, on_b = leaves[name, "A"].grad, leaves[name, "B"].grad
        assert on_a is not None  # both are leaves
        assert on_b is not None
        square = [
            float(on_b[:, i].square().sum() + (0.0 if frozen_a else on_a[i].square().sum()))
            for i in range(len(lora_a))
        ]
        norms[name] = np.sqrt(square)
    return norms


# Matrix fidelity, one client at a time, on dense matrices

Direction = tuple[Array, Array, float, float]  # u, v, amplitudes in adapter and base


def matrix_reference(scenario: Scenario, rule: str, seed: int) -> tuple[Array, Array]:
    """Return a run's singular values and amplitudes on the initial basis, each (T + 1, r_max)."""
    federation, (clients, times) = scenario.federation, _drawn_cohorts(scenario, seed)
    draws, basis = _unscaled_draws(scenario, seed), initial_basis(scenario, seed)
    scores = allocation_scores(scenario, [seed])[0].numpy()
    state, base = _initial(scenario, rule, basis)
    rows = [_measure(state, base, basis)]
    for t in range(scenario.rounds):
        gain, drift = _scheduled(scenario, draws, t, clients[t])
        directions = _directions(state, base, basis, rule)
        here, updates, positions = np.flatnonzero(times[t]), [], []
        for j in here.tolist():
            k = int(clients[t, j])
            if scenario.local_loss == "quadratic":
                target = _target(scenario, seed, k, basis)
                held, factors = _fitted(
                    scenario, federation.ranks[k], scores[t, j], directions, target - base, rule
                )
            else:
                held, factors = _returned(
                    scenario, federation.ranks[k], scores[t, j], directions, gain[j], drift[j], rule
                )
            updates.append((*_disturbed(scenario, seed, t, j, held, factors, rule), 1.0))
            positions.append(held)
        weights = federation.cohort_weights(clients[t, here], times[t, here]).tolist()
        lora_a, lora_b, more = aggregate_reference(
            updates, weights, rule, federation.levels, state, scenario.empty_partition, positions
        )
        state, base = (lora_a, lora_b), base + more
        rows.append(_measure(state, base, basis))
    values, projected = zip(*rows, strict=True)
    return np.stack(values), np.stack(projected)


def _initial(scenario: Scenario, rule: str, basis: tuple[Array, Array]) -> tuple[Factors, Array]:
    """Return adapter and base at round 0: FLoRA has merged everything, FFA-LoRA's A is a basis."""
    (u0, v0), x = basis, scenario.initial_amplitudes
    nothing = np.zeros((scenario.d_out, scenario.d_in))
    if rule == "flora":
        return (np.zeros_like(v0.T), np.zeros_like(u0)), u0 * x @ v0.T
    if rule == "ffa":
        return (v0.T.copy(), u0 * x), nothing
    return ((v0 * np.sqrt(x)).T, u0 * np.sqrt(x)), nothing


def _directions(
    state: Factors, base: Array, basis: tuple[Array, Array], rule: str
) -> list[Direction]:
    """Return all column pairs.

    A lost pair takes an initial direction that no other pair has. Columns that an SVD sorted are no
    longer at the position of their initial direction; those of the other rules are.
    """
    lora_a, lora_b = state
    amplitudes = np.linalg.norm(lora_b, axis=0) * np.linalg.norm(lora_a, axis=1)
    rounding = np.finfo(float).eps * max(base.shape)
    living = [i for i, x in enumerate(amplitudes) if x > rounding * amplitudes.max()]
    free = [i for i in range(len(amplitudes)) if i not in living]
    if rule.partition(":")[0] not in (*FACTOR_AVERAGES, "ffa", "flora"):
        units = [lora_b[:, i] / np.linalg.norm(lora_b[:, i]) for i in living]
        taken = [sum(float(u0 @ u) ** 2 for u in units) for u0 in basis[0].T]
        free = sorted(sorted(range(len(taken)), key=lambda j: taken[j])[: len(free)])
    found = []
    for i, x in enumerate(amplitudes):
        if i in living:
            u = lora_b[:, i] / np.linalg.norm(lora_b[:, i])
            v = lora_a[i] / np.linalg.norm(lora_a[i])
        else:
            place = free.pop(0)
            u, v = basis[0][:, place], basis[1][:, place]
        found.append((u, v, float(x) if i in living else 0.0, float(u @ base @ v)))
    return found


def _returned(
    scenario: Scenario,
    rank: int,
    scores: Array,
    directions: list[Direction],
    gain: Array,
    drift: Array,
    rule: str,
) -> tuple[list[int], Factors]:
    """Return carried directions and factors of a client with new amplitudes `a x + b`."""
    reached = [gain[i] * (x + z) + drift[i] for i, (*_, x, z) in enumerate(directions)]
    moved = [abs(y - x - z) for y, (*_, x, z) in zip(reached, directions, strict=True)]
    held = held_reference(scenario, rank, scores, moved)
    return held, _factors([directions[i] for i in held], [reached[i] for i in held], rule)


def _target(scenario: Scenario, seed: int, k: int, basis: tuple[Array, Array]) -> Array:
    """Return the dense `M_k`: the common directions, rotated by the client's own rotations."""
    out, inner = target_rotation(scenario, seed, k)
    dense = np.zeros((scenario.d_out, scenario.d_in))
    for i, m in enumerate(client_targets(scenario, seed)[k]):
        dense += m * np.outer(out @ basis[0][:, i], inner @ basis[1][:, i])
    return dense


def _fitted(
    scenario: Scenario,
    rank: int,
    scores: Array,
    directions: list[Direction],
    target: Array,
    rule: str,
) -> tuple[list[int], Factors]:
    """Return carried directions and factors of a client that fits a dense target."""
    moved = []
    if scenario.allocation == "importance":
        lora_a, lora_b = _descent(scenario, directions, target, rule)
        moved = [abs(float(u @ lora_b @ lora_a @ v) - x) for u, v, x, _ in directions]
    held = held_reference(scenario, rank, scores, moved)
    return held, _descent(scenario, [directions[i] for i in held], target, rule)


def _descent(scenario: Scenario, received: list[Direction], target: Array, rule: str) -> Factors:
    """Run gradient descent on `0.5 ||B A - target||_F**2`, forming the residual each time."""
    rows = [v if rule in ("ffa", "flora") else np.sqrt(x) * v for _, v, x, _ in received]
    columns = [(x if rule in ("ffa", "flora") else np.sqrt(x)) * u for u, _, x, _ in received]
    lora_a, lora_b = np.stack(rows), np.stack(columns, axis=1)
    assert scenario.local_steps is not None  # checked by the scenario
    history_a, history_b = [], []
    for _ in range(scenario.local_steps):
        residual = lora_b @ lora_a - target
        history_a.append(lora_b.T @ residual)
        history_b.append(residual @ lora_a.T)
        if rule != "ffa":
            lora_a = lora_a - _step(scenario, history_a)
        lora_b = lora_b - _step(scenario, history_b)
    return lora_a, lora_b


def _step(scenario: Scenario, gradients: list[Array]) -> Array:
    """Return the step of SGD or Adam for these gradients.

    Adam's moments are sums over all gradients.
    """
    assert scenario.local_steps is not None
    rate, count = scenario.local_time / scenario.local_steps, len(gradients)
    if scenario.optimizer == "sgd":
        return rate * gradients[-1]
    ages = np.arange(count - 1, -1, -1)
    past = np.stack(gradients)
    first = np.tensordot((1 - BETA_1) * BETA_1**ages, past, 1) / (1 - BETA_1**count)
    second = np.tensordot((1 - BETA_2) * BETA_2**ages, past**2, 1) / (1 - BETA_2**count)
    return np.asarray(rate * first / (np.sqrt(second) + EPSILON))


def _factors(held: list[Direction], reached: list[float], rule: str) -> Factors:
    """Return the client's factors: what it reached, minus what the base holds."""
    rows, columns = [], []
    for (u, v, _, z), total in zip(held, reached, strict=True):
        y = total - z
        rows.append(v if rule == "ffa" else np.sqrt(abs(y)) * v)
        columns.append(y * u if rule == "ffa" else np.sign(y) * np.sqrt(abs(y)) * u)
    return np.stack(rows), np.stack(columns, axis=1)


def _disturbed(
    scenario: Scenario, seed: int, t: int, j: int, held: list[int], factors: Factors, rule: str
) -> Factors:
    """Return the factors with mixed directions and rotated basis; a frozen A does not change."""
    lora_a, lora_b = factors
    if scenario.subspace_noise > 0:
        carried = torch.zeros(1, places(scenario.federation), max(scenario.ranks), dtype=torch.bool)
        carried[0, j, held] = True
        on_b, on_a = (
            x[0, j].numpy()[np.ix_(held, held)]
            for x in subspace_mixing(scenario, [seed], t, carried)
        )
        lora_a, lora_b = on_a @ lora_a, lora_b @ on_b
    if scenario.basis_drift != 0:
        out, inner = (x[0, j].numpy() for x in basis_draws(scenario, [seed], t))
        lora_b = _rotation(factors[1], out, scenario.basis_drift) @ lora_b
        lora_a = lora_a @ _rotation(factors[0].T, inner, scenario.basis_drift).T
    return (factors[0] if rule == "ffa" else lora_a), lora_b


def _rotation(columns: Array, gaussian: Array, angle: float) -> Array:
    """Return a rotation as a matrix: exact on the span of the columns, the identity elsewhere."""
    d = len(columns)
    known: list[Array] = []

    def add(x: Array) -> Array:
        for _ in range(2):
            for y in known:
                x = x - (y @ x) * y
        known.append(x / np.linalg.norm(x))
        return known[-1]

    if d % 2:
        add(gaussian[:, -1])
    rotation = np.eye(d)
    live = [column for column in columns.T if column.any()]
    for column, drawn in list(zip(live, gaussian.T, strict=False))[: d // 2]:
        x = add(column / np.linalg.norm(column))
        y = add(drawn)
        rotation += (np.cos(angle) - 1) * (np.outer(x, x) + np.outer(y, y))
        rotation += np.sin(angle) * (np.outer(y, x) - np.outer(x, y))
    return rotation


def _measure(state: Factors, base: Array, basis: tuple[Array, Array]) -> tuple[Array, Array]:
    dense = state[1] @ state[0] + base
    values = np.linalg.svd(dense, compute_uv=False)[: len(state[0])]
    return np.asarray(values, dtype=np.float64), np.diag(basis[0].T @ dense @ basis[1]).copy()
