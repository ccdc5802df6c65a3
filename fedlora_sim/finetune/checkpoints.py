"""Checkpoints of a run, from which it continues to the same result, bit by bit.

Every random draw follows from the seed, the round and the client, so that the state of a round is
its metrics and the global update, without generator states. Every file is written atomically with
its checksum. The state is written last and marks its round as complete.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedlora_sim.errors import InputError, check_choice, expected
from fedlora_sim.finetune.exchange import GlobalUpdate
from fedlora_sim.finetune.measures import Row
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.rules import AggregationRule
from fedlora_sim.rules.external import rule_code
from fedlora_sim.scenario import Scenario
from fedlora_sim.storage import (
    code_versions,
    damaged,
    only_writer,
    raw_bytes,
    remove_stale,
    write_json,
    write_tensors,
)

RUN_FILE, CHECKSUM, ENTRY = "run.json", "sha256", "fedlora-sim"
KEEP = ("all", "last")

KEPT = "rule."
"""The rule's state for a module is in a state file under `rule.<name>/<module>`."""

GIVEN_TASK = "given by the caller"
"""Description of a task that is not the scenario's."""


MADE_WITH = tuple(code_versions())
"""Entries of a description that identify the code of a run."""


def run_description(
    scenario: Scenario,
    rule: AggregationRule,
    seed: int,
    content: Mapping[str, str],
    *,
    is_given: bool,
) -> dict[str, Any]:
    """Return everything on which a run depends.

    Args:
        scenario: its scenario.
        rule: the server rule; for an external rule its code is included.
        seed: its seed.
        content: digests of its model and data.
        is_given: whether the caller passed the task; otherwise it is the scenario's.
    """
    described = {**scenario.to_attrs(), "rule": rule.label, "seed": seed, **code_versions()}
    if is_given:
        described["task"] = GIVEN_TASK
    code = rule_code(rule)
    described.update(content)
    return described if code is None else described | {"rule_code": code}


class OtherRunError(InputError):
    """The folder contains another run than the requested one."""


def drop_other_run(folder: Path, error: OtherRunError) -> None:
    """Remove unfinished runs of this project that cannot be continued on this machine.

    Raises:
        OtherRunError: the given error, if there are none.
    """
    runs = [path.parent for path in folder.glob(f"*/{RUN_FILE}")]
    if not runs:
        raise error
    for run in runs:
        for path in run.iterdir():
            if re.fullmatch(r"(run\.json|(state|measures)-\d{5,}\.safetensors)", path.name):
                path.unlink()


class Checkpoints:
    """The folder of one run.

    Args:
        folder: created when the run starts.
        described: everything on which the run depends, JSON-serializable.
        keep: store the states of `all` rounds, from which any client of any round can be
            recomputed, or only the `last` one and the start.
        but_for: entries of `described` that may differ.

    Raises:
        OtherRunError: if the folder contains another run; names the first difference.
    """

    def __init__(
        self,
        folder: str | Path,
        described: Mapping[str, Any],
        keep: str = "all",
        but_for: Collection[str] = (),
    ) -> None:
        self.folder, self.keep = Path(folder), check_choice("keep", keep, KEEP)
        given = json.loads(json.dumps(described))
        found = read_description(self.folder)
        if found is None:
            write_json(self.folder / RUN_FILE, given)
            return
        for name in {**given, **found}:
            if name not in but_for and given.get(name) != found.get(name):
                where = f"{found.get(name)!r}, as in the run in {self.folder} (or another folder)"
                raise OtherRunError(str(expected(name, given.get(name), where)))

    @contextmanager
    def only_writer(self) -> Iterator[None]:
        """Hold the folder's lock; first remove temporary files of killed processes."""
        with only_writer(self.folder, "checkpoints"):
            remove_stale(self.folder)
            yield

    def last_round(self) -> int | None:
        """Return the last round with a stored state, 0 for the start; None if there is none."""
        return max(state_rounds(self.folder), default=None)

    def save(self, t: int, state: GlobalUpdate, row: Row) -> None:
        """Store the result of round t."""
        tensors = {name: torch.from_numpy(values.copy()) for name, values in row.items()}
        _write(_measures_file(self.folder, t), tensors)
        _write(_state_file(self.folder, t), *_flat(state))
        if self.keep == "last":
            for older in state_rounds(self.folder):
                if 0 < older < t:
                    _state_file(self.folder, older).unlink()

    def rows(self, last: int) -> list[Row]:
        """Return the metrics of rounds 0 to `last`."""
        return [self.row(t) for t in range(last + 1)]

    def row(self, t: int) -> Row:
        """Return the metrics of round t."""
        again = f"delete {self.folder / 'state-*'} from round {t} on and go on: these rounds are "
        tensors, _ = _read(_measures_file(self.folder, t), again + "made again")
        return {name: x.numpy() for name, x in tensors.items()}

    def state(self, t: int, device: torch.device) -> GlobalUpdate:
        """Return the global update after round t."""
        return load_state(self.folder, t, device)


def read_description(folder: Path) -> dict[str, Any] | None:
    """Return the description of the run in a folder; None if there is no run.

    Raises:
        InputError: if the file is damaged.
    """
    path = folder / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"{type(content).__name__} in place of a table")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        remedy = "restore it, or start again in another folder"
        raise damaged(path, "the description of a run", error, remedy) from None
    return content


def state_rounds(folder: Path) -> list[int]:
    """Return the rounds with a stored state, ascending."""
    named = (re.fullmatch(r"state-(\d{5,})\.safetensors", path.name) for path in folder.glob("*"))
    return sorted(int(found[1]) for found in named if found)


def load_state(folder: Path, t: int, device: torch.device) -> GlobalUpdate:
    """Return the global update after round t.

    Raises:
        InputError: if that state is not stored; names those that are.
    """
    path = _state_file(folder, t)
    if not path.exists():
        raise expected("round", t, f"one whose state is in {folder}: {state_rounds(folder)}")
    found, metadata = _read(path, "delete it: the run goes on from the last complete state")
    tensors = {name: x.to(device) for name, x in found.items()}
    scalings = json.loads(metadata["scalings"])
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


def _measures_file(folder: Path, t: int) -> Path:
    return folder / f"measures-{t:05d}.safetensors"


def _state_file(folder: Path, t: int) -> Path:
    return folder / f"state-{t:05d}.safetensors"


def _flat(state: GlobalUpdate) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by key, and all other values."""
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
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    more = dict(metadata or {})
    told = {**more, CHECKSUM: _checksum(tensors, more)}
    # One entry: safetensors writes several in arbitrary order, so that files would differ between
    # runs.
    write_tensors(path, tensors, {ENTRY: json.dumps(told, sort_keys=True)})


def _read(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of a file that `_write` wrote.

    Raises:
        InputError: if it is damaged or missing; includes the remedy.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(json.loads((file.metadata() or {})[ENTRY]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _checksum(tensors, metadata) != metadata.get(CHECKSUM):
            raise ValueError("its content does not match its checksum")
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise damaged(path, "a complete file of a run", error, remedy) from None
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    more = {name: value for name, value in metadata.items() if name != CHECKSUM}
    found = hashlib.sha256(json.dumps(more, sort_keys=True).encode())
    for name, x in sorted(tensors.items()):
        found.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
        found.update(raw_bytes(x))
    return found.hexdigest()
