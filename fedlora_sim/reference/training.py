"""Federated fine-tuning, one client and one step at a time, with the update formed densely.

Each client differentiates through `W + s B A` itself, and its optimiser is written out; only the
draws (split, cohorts, initial factors, batches) and the pretrained model are the simulator's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from fedlora_sim.federation import Federation, draw_cohorts
from fedlora_sim.randomness import stream
from fedlora_sim.reference.aggregation import Factors, aggregate_reference
from fedlora_sim.scenario import Scenario
from fedlora_sim.training.batches import client_streams, plan_batches
from fedlora_sim.training.digits import DigitsTask
from fedlora_sim.training.draws import initial_lora_a, split_clients

State = dict[str, Factors]
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults (Kingma and Ba 2015, arXiv 1412.6980)


def training_reference(scenario: Scenario, task: DigitsTask, rule: str, seed: int) -> list[State]:
    """Global factors per layer after every round, at scaling 1; for Adam and plain SGD.

    Args:
        scenario: a training scenario of dtype float64 with `local_steps`.
        task: its task, in float64 on the CPU.
        rule: `fedavg`, `zero_pad` or `raflora`.
        seed: the run's seed.

    Returns:
        T states: layer name to lora_A (r_max, d_in) and lora_B (d_out, r_max).
    """
    samples = split_clients(scenario, task.train_y.numpy(), seed)
    sizes = tuple(len(own) for own in samples)
    federation = Federation(scenario.ranks, sizes, scenario.cohort_size, scenario.sampling)
    counts = draw_cohorts(federation, scenario.rounds, stream(seed, "cohorts"))
    initial = {name: _initial(task, name, seed, federation.r_max) for name in task.target_modules}
    state, states = initial, []
    for t in range(scenario.rounds):
        cohort = np.flatnonzero(counts[t])
        updates = []
        for k in cohort.tolist():
            scaling = scenario.client_scaling(scenario.ranks[k])
            received = {
                name: _receive(state[name], initial[name], scenario.ranks[k], scaling)
                for name in state
            }
            plan = plan_batches(
                [samples[k]],
                client_streams(seed, t, [k]),
                batch_size=scenario.batch_size,
                local_steps=scenario.local_steps,
            )
            batches = [
                index[0][weight[0] > 0]
                for index, weight in zip(plan.index, plan.weight, strict=True)
            ]
            updates.append((_train(scenario, task, received, scaling, batches), scaling))
        shares = federation.cohort_weights(cohort, counts[t, cohort]).tolist()
        state = {
            name: aggregate_reference(
                [(*trained[name], scaling) for trained, scaling in updates],
                shares,
                rule,
                federation.levels,
                state[name],
                scenario.empty_partition,
            )[:2]
            for name in state
        }
        states.append(state)
    return states


def _initial(task: DigitsTask, name: str, seed: int, rank: int) -> Factors:
    d_out, d_in = task.model.get_parameter(f"{name}.weight").shape
    return initial_lora_a(seed, name, rank, d_in), np.zeros((d_out, rank))


def _receive(state: Factors, initial: Factors, rank: int, scaling: float) -> Factors:
    """The global factors cut to the client's rank and rescaled; dead directions start afresh."""
    lora_a = state[0][:rank] / np.sqrt(scaling)
    lora_b = state[1][:, :rank] / np.sqrt(scaling)
    amplitudes = np.linalg.norm(state[1], axis=0) * np.linalg.norm(state[0], axis=1)
    rounding = np.finfo(float).eps * max(len(state[1]), state[0].shape[1])
    for i in range(rank):
        if amplitudes[i] <= rounding * amplitudes.max():
            lora_a[i], lora_b[:, i] = initial[0][i], 0.0
    return lora_a, lora_b


def _train(
    scenario: Scenario,
    task: DigitsTask,
    received: State,
    scaling: float,
    batches: list[np.ndarray],
) -> State:
    """Local steps of one client, its optimiser starting anew."""
    factors = {
        (name, side): torch.from_numpy(received[name][side]) for name in received for side in (0, 1)
    }
    moments = {key: (torch.zeros_like(f), torch.zeros_like(f)) for key, f in factors.items()}
    for step, batch in enumerate(batches, start=1):
        gradients = _gradients(task, factors, scaling, torch.from_numpy(batch))
        for key, gradient in gradients.items():
            if scenario.optimizer == "sgd":
                move = gradient
            else:
                first, second = moments[key]
                first = BETA_1 * first + (1 - BETA_1) * gradient
                second = BETA_2 * second + (1 - BETA_2) * gradient**2
                moments[key] = (first, second)
                corrected = (second / (1 - BETA_2**step)).sqrt() + EPSILON
                move = first / (1 - BETA_1**step) / corrected
            factors[key] = factors[key] - scenario.learning_rate * move
    return {name: (factors[name, 0].numpy(), factors[name, 1].numpy()) for name in received}


def _gradients(
    task: DigitsTask, factors: dict[tuple[str, int], Tensor], scaling: float, batch: Tensor
) -> dict[tuple[str, int], Tensor]:
    leaves = {key: factor.clone().requires_grad_(True) for key, factor in factors.items()}
    merged = {
        f"{name}.weight": task.model.get_parameter(f"{name}.weight")
        + scaling * (leaves[name, 1] @ leaves[name, 0])
        for name in task.target_modules
    }
    logits = functional_call(task.model, merged, (task.train_x[batch],))
    loss = functional.cross_entropy(logits, task.train_y[batch])
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
