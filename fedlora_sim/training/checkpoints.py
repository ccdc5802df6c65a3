"""A run on disk, round by round, so that it goes on from there to the very same end.

Every random draw follows from the seed, the round and the client alone: what a round leaves behind
is its measures and the global update, and no generator has a state to keep. A file is written
under a temporary name and moved into place; the state comes last, and says that its round is done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedlora_sim.aggregation import AggregationRule
from fedlora_sim.errors import check_choice, expected
from fedlora_sim.factors import LoRAFactors
from fedlora_sim.rule_code import rule_code
from fedlora_sim.run_store import write_text
from fedlora_sim.scenario import Scenario
from fedlora_sim.training.measures import Row
from fedlora_sim.training.state import GlobalUpdate

RUN_FILE = "run.json"
KEEP = ("all", "last")

KEPT = "rule."
"""What a rule keeps of a module is in a state file under `rule.<name>/<module>`."""

GIVEN_TASK = "given by the caller"
"""What a run says of a task that is not the scenario's."""


def run_description(
    scenario: Scenario, rule: AggregationRule, seed: int, given_task: str | None
) -> dict[str, Any]:
    """What a run depends on.

    Args:
        scenario: its scenario.
        rule: the server rule; the code of one from outside is part of it.
        seed: its seed.
        given_task: fingerprint of a task that the caller gave; None for the scenario's.
    """
    described = {**scenario.to_attrs(), "rule": rule.label, "seed": seed}
    if given_task is not None:
        described |= {"task": GIVEN_TASK, "task_fingerprint": given_task}
    code = rule_code(rule)
    return described if code is None else described | {"rule_code": code}


class Checkpoints:
    """The folder of one run.

    Args:
        folder: made when the run starts.
        described: everything that the run depends on, JSON-serialisable.
        keep: states of `all` rounds, from which any client of any round can be had again, or of
            the `last` one and the start only.

    Raises:
        InputError: if the folder holds another run, naming the first thing that differs.
    """

    def __init__(self, folder: str | Path, described: Mapping[str, Any], keep: str = "all") -> None:
        self.folder, self.keep = Path(folder), check_choice("keep", keep, KEEP)
        given = json.loads(json.dumps(described))
        found = read_description(self.folder)
        if found is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / RUN_FILE, json.dumps(given, indent=1) + "\n")
            return
        for name in {**given, **found}:
            if given.get(name) != found.get(name):
                where = f"{found.get(name)!r}, as in the run in {self.folder}"
                raise expected(name, given.get(name), where)

    def clear_halves(self) -> None:
        """Drop what a process that was killed had written in part; the run is this one's now."""
        for half in self.folder.glob(".*.tmp"):
            half.unlink()

    def last_round(self) -> int | None:
        """The last round whose state is here, 0 for the start; None if there is none."""
        return max(state_rounds(self.folder), default=None)

    def save(self, t: int, state: GlobalUpdate, row: Row) -> None:
        """Keep what round t has left behind."""
        tensors = {name: torch.from_numpy(values.copy()) for name, values in row.items()}
        _write(self.folder / f"measures-{t:05d}.safetensors", tensors)
        _write(_state_file(self.folder, t), *_flat(state))
        if self.keep == "last":
            for older in state_rounds(self.folder):
                if 0 < older < t:
                    _state_file(self.folder, older).unlink()

    def rows(self, last: int) -> list[Row]:
        """Measures of the rounds 0 to `last`."""
        files = [self.folder / f"measures-{t:05d}.safetensors" for t in range(last + 1)]
        return [{name: x.numpy() for name, x in load_file(file).items()} for file in files]

    def state(self, t: int, device: torch.device) -> GlobalUpdate:
        """The global update after round t."""
        return load_state(self.folder, t, device)


def read_description(folder: Path) -> dict[str, Any] | None:
    """What the run in a folder depends on; None if there is no run."""
    path = folder / RUN_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def state_rounds(folder: Path) -> list[int]:
    """Rounds whose state is in a folder, ascending."""
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("state-*.safetensors"))


def load_state(folder: Path, t: int, device: torch.device) -> GlobalUpdate:
    """The global update after round t.

    Raises:
        InputError: if that state is not there, with those that are.
    """
    path = _state_file(folder, t)
    if not path.exists():
        raise expected("round", t, f"one whose state is in {folder}: {state_rounds(folder)}")
    with safe_open(path, framework="pt") as file:
        scalings = json.loads(file.metadata()["scalings"])
    tensors = load_file(path, device=str(device))
    adapters = {
        name: LoRAFactors(tensors[f"A.{name}"], tensors[f"B.{name}"], scaling)
        for name, scaling in scalings.items()
    }
    base = {key.removeprefix("base."): x for key, x in tensors.items() if key.startswith("base.")}
    heads = {
        key.removeprefix("weight."): tuple(
            tensors[f"{part}.{key.removeprefix('weight.')}"]
            for part in ("weight", "bias")
            if f"{part}.{key.removeprefix('weight.')}" in tensors
        )
        for key in tensors
        if key.startswith("weight.")
    }
    kept: dict[str, dict[str, Tensor]] = {}
    for key in (key for key in tensors if key.startswith(KEPT)):
        name, module = key.removeprefix(KEPT).split("/", 1)
        kept.setdefault(module, {})[name] = tensors[key]
    return GlobalUpdate(adapters, base, heads, kept)


def _state_file(folder: Path, t: int) -> Path:
    return folder / f"state-{t:05d}.safetensors"


def _flat(state: GlobalUpdate) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by key, and what is no tensor."""
    tensors: dict[str, Tensor] = {}
    for name, factors in state.adapters.items():
        tensors |= {f"A.{name}": factors.lora_A, f"B.{name}": factors.lora_B}
    tensors |= {f"base.{name}": x for name, x in state.base.items()}
    for name, own in state.heads.items():
        tensors |= {f"{part}.{name}": x for part, x in zip(("weight", "bias"), own, strict=False)}
    for module, kept in state.kept.items():
        tensors |= {f"{KEPT}{name}/{module}": x for name, x in kept.items()}
    scalings = {name: factors.scaling for name, factors in state.adapters.items()}
    return tensors, {"scalings": json.dumps(scalings)}


def _write(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Tensors that share memory are refused: every one goes as a copy of its own.
        save_file({n: x.contiguous().clone() for n, x in tensors.items()}, temporary, metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
