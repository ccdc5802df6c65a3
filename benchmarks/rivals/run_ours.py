"""Lane of this project: the cohort stacked into one model, averaged by the `zero_pad` rule."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.rivals.exchange import Exchange, Outcome, Stopwatch, serve
from benchmarks.rivals.task import build_model
from fedlora_sim import LoRAFactors, Scenario, aggregate
from fedlora_sim.finetune.batches import BatchPlan
from fedlora_sim.finetune.local import Stack, train_on_plan
from fedlora_sim.finetune.stacked import Adapters
from fedlora_sim.tasks import Examples, Task

Global = dict[str, LoRAFactors]


def run(exchange: Exchange, threads: int) -> Outcome:
    """Run all rounds."""
    torch.set_num_threads(threads)
    watch = Stopwatch()
    task, settings = build_task(exchange), exchange.settings
    scenario = Scenario(
        "1",
        fidelity="training",
        optimizer="sgd",
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        batch_size=exchange.batch_size,
        local_steps=None,
    )
    state = {
        name: LoRAFactors(torch.from_numpy(a), torch.from_numpy(b), settings.scaling)
        for name, (a, b) in exchange.adapters.items()
    }
    for t in range(exchange.rounds):
        start = _stack(state, exchange.cohort)
        trained = train_on_plan(task, start, plan_of(exchange, t), scenario)
        state = _average(trained.adapters, settings.scaling, exchange.num_samples(t).tolist())
        watch.lap()
    found = {name: (f.lora_A.numpy(), f.lora_B.numpy()) for name, f in state.items()}
    return Outcome(found, watch.seconds, f"all clients stacked, {threads} thread(s)")


def build_task(exchange: Exchange) -> Task:
    """Return model and data of the exchange as a task."""
    model = build_model(exchange.settings, torch.Generator())
    model.to(getattr(torch, exchange.settings.dtype))
    model.load_state_dict({name: torch.from_numpy(x) for name, x in exchange.weights.items()})
    images, labels = torch.from_numpy(exchange.images), torch.from_numpy(exchange.labels)
    examples = Examples({"images": images}, labels)
    return Task(model.eval(), examples, examples, tuple(exchange.adapters))


def plan_of(exchange: Exchange, t: int) -> BatchPlan:
    """Return the batches of round t; up to a client's last step no sample is padding."""
    index, num_steps = exchange.batches[t], exchange.num_steps[t]
    before_end = np.arange(len(index))[:, None] < num_steps
    return BatchPlan(index, np.repeat(before_end[..., None], index.shape[2], axis=2), num_steps)


def _stack(state: Global, clients: int) -> Stack:
    """Return one copy of the global adapters per client."""
    adapters = {
        name: (f.lora_A.expand(clients, -1, -1), f.lora_B.expand(clients, -1, -1))
        for name, f in state.items()
    }
    scaling = next(iter(state.values())).scaling
    return Stack(adapters, torch.full((clients,), scaling, dtype=torch.float64))


def _average(trained: Adapters, scaling: float, samples: list[int]) -> Global:
    """Return the data-weighted means of A and of B; layers have one shape and form one batch."""
    lora_a, lora_b = (torch.stack(side, dim=1) for side in zip(*trained.values(), strict=True))
    updates = [LoRAFactors(a, b, scaling) for a, b in zip(lora_a, lora_b, strict=True)]
    mean = aggregate(updates, samples, "zero_pad", scaling=scaling).adapter
    pairs = zip(mean.lora_A, mean.lora_B, strict=True)
    return {name: LoRAFactors(a, b, scaling) for name, (a, b) in zip(trained, pairs, strict=True)}


if __name__ == "__main__":
    serve(run, ("torch",))
