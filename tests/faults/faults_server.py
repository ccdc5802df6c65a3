"""What the server of child processes imports once: all commands; and a small task for `train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

import fedlora_cli.aggregate
import fedlora_cli.predict
import fedlora_cli.simulate
import fedlora_cli.sweep
import fedlora_cli.train
import fedlora_cli.verify  # noqa: F401
from fedlora_cli.main import main
from fedlora_sim.devices import DTYPES
from fedlora_sim.tasks.examples import Examples
from fedlora_sim.tasks.task import Task
from fedlora_sim.tasks.transformer import TinyTransformer
from fedlora_sim.training import rounds


def command(words: Sequence[str]) -> None:
    """Run `fedlora-sim` with these words in this process, on one thread."""
    torch.set_num_threads(1)
    task = small_task()
    rounds.load_task = lambda s: task.to(torch.device("cpu"), DTYPES[str(s.dtype)])
    sys.argv = ["fedlora-sim", *words]
    main()


def small_task() -> Task:
    """An untrained model of one block on 60 random images."""
    generator = torch.Generator().manual_seed(0)
    model = TinyTransformer(generator, d_model=16, num_layers=1, num_heads=2)
    images = torch.rand(60, 8, 8, generator=generator)
    labels = torch.randint(10, (60,), generator=generator)
    return Task(
        model.eval().requires_grad_(False),
        Examples({"images": images[:40]}, labels[:40]),
        Examples({"images": images[40:]}, labels[40:]),
        ("blocks.0.attention.q_proj", "blocks.0.fc1"),
        class_names=tuple("0123456789"),
    )
