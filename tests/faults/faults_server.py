"""Server of child processes: it imports and runs every command once.

Imports, many of them late, take most of a command's time; children inherit them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import torch
from faults_cases import COMMANDS, write_inputs
from matplotlib.figure import Figure

import fedlora_cli.aggregate
import fedlora_cli.predict
import fedlora_cli.simulate
import fedlora_cli.sweep
import fedlora_cli.train
import fedlora_cli.verify  # noqa: F401
from fedlora_cli.main import main
from fedlora_sim.finetune import run
from fedlora_sim.runtime import torch_dtype
from fedlora_sim.storage import digest
from fedlora_sim.tasks.digits import TinyTransformer
from fedlora_sim.tasks.task import Examples, Task
from paper_figs import style


def command(words: Sequence[str]) -> None:
    """Run `fedlora-sim` with these words in this process, on one thread."""
    torch.set_num_threads(1)
    task = small_task()
    style.image = picture
    run.load_task = lambda s: task.to(torch.device("cpu"), torch_dtype(s.dtype))
    sys.argv = ["fedlora-sim", *words]
    main()


def picture(figure: Figure, kind: str, *, close: bool = True) -> memoryview:
    """Return the numbers of a picture in its size, because drawing takes seconds."""
    lines = [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]
    told = f"{kind} {digest(repr(lines).encode())}".encode()
    return memoryview(told.ljust(20_000))


def small_task() -> Task:
    """Return an untrained model of one block on 60 random images."""
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


def warm_up() -> None:
    """Run every command once, in a separate folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        os.chdir(folder)
        write_inputs(Path(folder))
        for one in COMMANDS.values():
            with redirect_stderr(StringIO()), suppress(SystemExit):
                command(one.again)
        os.chdir(before)


warm_up()
