"""A task of milliseconds in place of the scenario's, without picture, and a small federation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedlora_cli import train
from fedlora_cli.main import main
from fedlora_sim.finetune import run
from fedlora_sim.runtime import torch_dtype
from fedlora_sim.sweep import run as sweeps
from fedlora_sim.tasks.digits import TinyTransformer
from fedlora_sim.tasks.task import Examples, Task

TOML = """\
ranks = "2x3,4x2,8x1"
rounds = 3
cohort_size = 3
local_steps = 2
batch_size = 4
split = "iid"
device = "cpu"
"""
RUN = ("--scenario", "s.toml", "--out", "run")


def use_small_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an untrained model of one block on 60 random images for all scenarios, without plots."""
    generator = torch.Generator().manual_seed(0)
    model = TinyTransformer(generator, d_model=16, num_layers=1, num_heads=2)
    images = torch.rand(60, 8, 8, generator=generator)
    labels = torch.randint(10, (60,), generator=generator)
    task = Task(
        model.eval().requires_grad_(False),
        Examples({"images": images[:40]}, labels[:40]),
        Examples({"images": images[40:]}, labels[40:]),
        ("blocks.0.attention.q_proj", "blocks.0.fc1"),
        class_names=tuple("0123456789"),
    )
    cpu = torch.device("cpu")
    for module in (run, sweeps):
        monkeypatch.setattr(module, "load_task", lambda s: task.to(cpu, torch_dtype(s.dtype)))
    monkeypatch.setattr(train, "draw_split", lambda dataset, out: None)


def write_scenario(text: str = TOML) -> None:
    """Write the small federation's file into the working folder."""
    Path("s.toml").write_text(text)


if __name__ == "__main__":  # `fedlora-sim` on the small task, in a separate process
    use_small_task(pytest.MonkeyPatch())
    main()
