"""A task and a scenario of seven clients that run in milliseconds."""

from __future__ import annotations

import torch

from fedlora_sim import Scenario
from fedlora_sim.tasks.digits import DigitsTask, TinyTransformer
from fedlora_sim.tasks.task import Examples

TARGETS = ("blocks.0.attention.q_proj", "blocks.0.attention.v_proj", "blocks.0.fc1", "blocks.0.fc2")
TINY = Scenario(
    "2x3,4x2,8x2",
    fidelity="training",
    rounds=3,
    dtype="float64",
    local_steps=3,
    batch_size=4,
    dirichlet_alpha=5.0,
)


def make_tiny_task() -> DigitsTask:
    """Return a one-block float64 model, not pretrained, and 60 random images."""
    generator = torch.Generator().manual_seed(0)
    model = TinyTransformer(generator, d_model=16, num_layers=1, num_heads=2)
    images = torch.rand(60, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (60,), generator=generator)
    train = Examples({"images": images[:40]}, labels[:40])
    test = Examples({"images": images[40:]}, labels[40:])
    return DigitsTask(model.double().requires_grad_(False), train, test, TARGETS, source=test)
