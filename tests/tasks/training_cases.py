"""Tasks on tiny transformers with texts of mixed lengths, and cohorts of mixed ranks for them."""

from __future__ import annotations

import numpy as np
import torch
from causal_cases import causal_model
from torch import Tensor
from transformers import PreTrainedModel

from fedlora_sim.finetune.exchange import initial_heads
from fedlora_sim.finetune.local import Stack
from fedlora_sim.finetune.stacked import find_linear
from fedlora_sim.randomness import stream
from fedlora_sim.tasks.targets import linear_shape, resolve_targets
from fedlora_sim.tasks.task import IGNORED, MASK, Completion, Examples, Task

RANKS = (3, 1, 4, 2)
SCALING = (0.5, 2.0, 1.0, 1 / 3)
SIZES = (1, 3, 7, 12)
"""Samples of the clients."""


def texts(tokens: int, longest: int = 12) -> dict[str, Tensor]:
    """Return random texts of 3 to `longest` tokens, as many as the clients have samples."""
    rng = stream(0, "test texts")
    lengths = torch.from_numpy(rng.integers(3, longest + 1, sum(SIZES)))
    ids = torch.from_numpy(rng.integers(1, tokens, (sum(SIZES), longest)))
    mask = torch.arange(longest) < lengths[:, None]
    return {"input_ids": ids * mask, MASK: mask.long()}


def classification_task(model: PreTrainedModel, targets: tuple[str, ...], heads=()) -> Task:
    """Return three classes, drawn at random."""
    inputs = texts(model.config.vocab_size)
    part = Examples(inputs, torch.from_numpy(stream(0, "test labels").integers(3, size=sum(SIZES))))
    return Task(model, part, part, resolve_targets(model, targets), heads)


def causal_task(targets: tuple[str, ...] = ("c_attn", "c_fc")) -> Task:
    """Return a GPT-2 task (`Conv1D` maps) that completes random texts from the third token on."""
    model = causal_model("gpt2").double()
    inputs = texts(model.config.vocab_size)
    labels = torch.where(inputs[MASK].bool(), inputs["input_ids"], IGNORED)
    labels[:, :2] = IGNORED
    part = Examples(inputs, labels)
    return Task(model, part, part, resolve_targets(model, targets), objective=Completion())


def samples() -> list[np.ndarray]:
    """Return sample indices of the clients."""
    order = stream(0, "test samples").permutation(sum(SIZES))
    return np.split(order, np.cumsum(SIZES)[:-1])


def cohort(task: Task) -> Stack:
    """Return random adapters of mixed ranks, padded to the highest, and different heads."""
    rng = stream(0, "test cohort")
    alive = torch.arange(max(RANKS)) < torch.tensor(RANKS)[:, None]

    def normal(*shape: int) -> Tensor:
        return 0.2 * torch.from_numpy(rng.standard_normal((len(RANKS), *shape))).to(task.dtype)

    adapters = {}
    for name in task.target_modules:
        d_out, d_in = linear_shape(find_linear(task.model, name))
        lora_a, lora_b = normal(max(RANKS), d_in), normal(d_out, max(RANKS))
        adapters[name] = (lora_a * alive[:, :, None], lora_b * alive[:, None, :])
    heads = {
        name: tuple(x + normal(*x.shape) for x in own) for name, own in initial_heads(task).items()
    }
    return Stack(adapters, torch.tensor(SCALING, dtype=torch.float64), heads)
