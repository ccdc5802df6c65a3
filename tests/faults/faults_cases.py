"""Folders and commands of the tests of faults."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from faults_child import Outcome, run
from safetensors.torch import save_file

from fedlora_sim.randomness import stream
from fedlora_sim.storage import MARKER

SCENARIO = """\
ranks = "2x3,4x2,8x1"
rounds = 3
cohort_size = 3
local_steps = 2
batch_size = 4
split = "iid"
device = "cpu"
"""
GRID = """\
[scenario]
ranks = "2x2,4x1"
rounds = 2
seed = {count = 2}
[grid]
rule = ["fedavg", "raflora"]
gain_std = [0.0, 0.1]
"""


def write_inputs(here: Path) -> None:
    """Write adapters of two clients, a scenario, and a grid."""
    for number, rank in enumerate((2, 4)):
        folder = here / f"client-{number}"
        folder.mkdir()
        generator = torch.Generator().manual_seed(number)
        layer = "base_model.model.layers.0.q_proj"
        tensors = {
            f"{layer}.lora_A.weight": torch.randn(rank, 12, generator=generator),
            f"{layer}.lora_B.weight": torch.randn(10, rank, generator=generator),
        }
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": "tiny",
            "r": rank,
            "lora_alpha": 8,
            "target_modules": ["q_proj"],
        }
        (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    (here / "s.toml").write_text(SCENARIO, "utf-8")
    (here / "grid.toml").write_text(GRID, "utf-8")


@dataclass(frozen=True)
class Command:
    """A command that replaces, or continues, a result.

    Args:
        out: path of its result.
        first: arguments of the command that made the older result; empty if there is none.
        again: arguments of the command, which can be repeated after a fault.
        same: whether its result always has the same bytes.
    """

    out: str
    first: tuple[str, ...]
    again: tuple[str, ...]
    same: bool = True


SIMULATE = ("simulate", "--ranks", "2x2,4x1", "--rounds", "3", "--out", "x.nc")
VERIFY = ("verify", "--quick", "--claim", "raflora-flat", "--out", "v")
AGGREGATE = ("aggregate", "client-0", "client-1", "--out", "out", "--client-folders")
TRAIN = ("train", "--scenario", "s.toml", "--out", "run")
SWEEP = ("sweep", "grid.toml", "--out", "sweep", "--task-seconds", "0.001")
PREDICT = ("predict", "--ranks", "2x2,4x1", "--out", "p")
COMMANDS = {
    "aggregate": Command(
        "out", (*AGGREGATE, "--rule", "flora"), (*AGGREGATE, "--rule", "raflora", "--force")
    ),
    "simulate": Command("x.nc", SIMULATE, (*SIMULATE, "--seeds", "2", "--force")),
    "verify": Command("v", VERIFY, (*VERIFY, "--seed", "1"), same=False),
    "train": Command("run", (), (*TRAIN, "--resume")),
    "sweep": Command("sweep", (), SWEEP),
    "predict": Command("p", PREDICT, (*PREDICT, "--rounds", "7")),
}


def tree(path: Path) -> dict[str, bytes]:
    """Return content of every file at or below a path, by its name there."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in files}


def results(path: Path) -> dict[str, object]:
    """Return the tree without times: those of the report and of the marker."""
    found: dict[str, object] = {}
    for name, content in tree(path).items():
        if name == MARKER:
            found[name] = sorted(json.loads(content)["files"])
        elif name.endswith("report.json"):
            claims = json.loads(content)["claims"]
            found[name] = [(c["id"], c["measurement"], c["interval"], c["verdict"]) for c in claims]
        elif not name.endswith(("report.md", "report.html", "manifest.json")):
            found[name] = content
        else:
            found[name] = len(content) > 0
    return found


def leftovers(here: Path) -> list[str]:
    """Return temporary files, locks and unfinished pieces."""
    hidden = (path for path in here.rglob(".*") if path.name != MARKER)
    return sorted(path.relative_to(here).as_posix() for path in hidden)


@dataclass(frozen=True)
class Prepared:
    """A command ready to run, and its result without a fault.

    Args:
        command: the command.
        start: folder with its inputs and the older result, to be copied.
        new: its result.
        largest: size of its largest file in bytes.
        steps: number of its steps.
    """

    command: Command
    start: Path
    new: dict[str, object]
    largest: int
    steps: int

    def copy(self, here: Path) -> Path:
        """Return a copy of the start."""
        shutil.copytree(self.start, here, dirs_exist_ok=True)
        return here


def prepared(name: str, folder: Path) -> Prepared:
    """Return inputs and older result of a command, and its result on a copy of them."""
    command, start, whole = COMMANDS[name], folder / "start", folder / "whole"
    start.mkdir()
    prepare(command, start)
    shutil.copytree(start, whole)
    steps = succeed(run(command.again, whole)).steps
    assert not leftovers(whole)
    new, largest = results(whole / command.out), max(map(len, tree(whole / command.out).values()))
    assert new != results(start / command.out)
    return Prepared(command, start, new, largest, steps)


def prepare(command: Command, here: Path) -> None:
    """Write inputs and the older result."""
    write_inputs(here)
    if command.first:
        succeed(run(command.first, here))


def succeed(outcome: Outcome) -> Outcome:
    """Return the outcome of a command that must succeed."""
    assert outcome.code == 0, outcome.err
    return outcome


def moments(name: str, steps: int, trials: int) -> list[int]:
    """Return steps at which to stop a command, drawn from a seed; all if they are few."""
    if steps <= trials:
        return list(range(steps))
    drawn = stream(0, "moments", name).choice(steps, trials, replace=False)
    return sorted(int(step) for step in drawn)
