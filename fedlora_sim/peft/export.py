"""Export adapters of a fine-tuning run as PEFT folders: clients' updates or the global adapter.

Clients' updates are not stored. They are computed again from the global update at the start of the
round. Every draw follows from the seed, the round and the client, so that on the same machine the
adapters are equal bit by bit. Their energies are compared with the recorded ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_sim.errors import expected
from fedlora_sim.finetune.checkpoints import (
    GIVEN_TASK,
    MADE_WITH,
    Checkpoints,
    read_description,
    state_rounds,
)
from fedlora_sim.finetune.exchange import GlobalUpdate, Upload
from fedlora_sim.finetune.run import FederatedRun
from fedlora_sim.finetune.stacked import Heads, find_linear
from fedlora_sim.lora import LoRAFactors, from_svd
from fedlora_sim.lowrank import sign_fixed_svd
from fedlora_sim.peft.config import written_config
from fedlora_sim.peft.read import PREFIX, resized
from fedlora_sim.peft.write import BASE_OPTIONS, AdapterContent, check_output, write_adapters
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.runtime import torch_threads
from fedlora_sim.scenario import Scenario
from fedlora_sim.storage import only_writer
from fedlora_sim.tasks.targets import inside
from fedlora_sim.tasks.task import Classification, Task
from fedlora_sim.tolerances import relative

# Content of PEFT folders for a task's model

TASK_TYPES = {"text": "SEQ_CLS", "causal": "CAUSAL_LM", "arithmetic": "CAUSAL_LM"}
"""PEFT's names of the tasks for which it wraps the model in its own class."""


def task_options(task: Task, scenario: Scenario, *, is_own: bool) -> dict[str, Any]:
    """Return the options of a configuration except ranks and scalings.

    Args:
        task: model and modules.
        scenario: names the model.
        is_own: whether the task is a custom one, not the scenario's.

    Raises:
        InputError: if LoRA is on a module that PEFT would save as a whole.
    """
    linear = [find_linear(task.model, name) for name in task.target_modules]
    return {
        "peft_type": "LORA",
        "task_type": None if is_own else TASK_TYPES.get(scenario.task),
        "base_model_name_or_path": None if is_own else scenario.model or scenario.task,
        "target_modules": list(task.target_modules),
        "modules_to_save": list(_saved_whole(task)) or None,
        "fan_in_fan_out": any(not isinstance(module, nn.Linear) for module in linear),
        "bias": "none",
        "lora_dropout": 0.0,
    }


def adapter_content(
    options: Mapping[str, Any],
    layers: Mapping[str, LoRAFactors],
    whole: Mapping[str, Tensor],
    *,
    use_rslora: bool,
) -> AdapterContent:
    """Return the content of an adapter folder.

    Args:
        options: see `task_options`.
        layers: module name to its update.
        whole: further tensors, see `whole_modules`.
        use_rslora: convention of the written scalings.
    """
    wanted = {name: (f.rank, f.scaling) for name, f in layers.items()}
    config, sizes = written_config(options, wanted, use_rslora, names=wanted)
    tensors = dict(whole)
    for name, update in layers.items():
        f = resized(update, *sizes[name], frozen_a=False)
        tensors |= {f"{name}.lora_A.weight": f.lora_A, f"{name}.lora_B.weight": f.lora_B}
    stored = {f"{PREFIX}{key}": x.cpu() for key, x in tensors.items()}
    return AdapterContent(config, stored)


def whole_modules(task: Task, heads: Heads) -> dict[str, Tensor]:
    """Return the tensors of the modules that are saved as a whole, by name.

    Args:
        task: model and modules.
        heads: trained heads: name to weight and bias, if any.
    """
    tensors: dict[str, Tensor] = {}
    for name in _saved_whole(task):
        own = task.model.get_submodule(name).state_dict()
        tensors |= {f"{name}.{key}": x for key, x in own.items()}
    for name, trained in heads.items():
        pairs = zip(("weight", "bias"), trained, strict=False)
        tensors |= {f"{name}.{key}": x for key, x in pairs}
    return tensors


def exact_factors(dense: Tensor) -> LoRAFactors:
    """Return a dense update, (d_out, d_in), as factors of its own rank, at least 1."""
    u, s, vh = sign_fixed_svd(dense)
    rounding = torch.finfo(s.dtype).eps * max(dense.shape) * s[0]
    rank = max(1, int((s > rounding).sum()))
    return from_svd(u[:, :rank], s[:rank], vh[:rank])


def _saved_whole(task: Task) -> tuple[str, ...]:
    """Return the names of modules that are saved as a whole: trained ones and the classifier.

    PEFT saves a classifier of transformers even when it is frozen. This is necessary: a classifier
    that the checkpoint lacked was drawn when the task was loaded and exists nowhere else.
    """
    trunk = getattr(task.model, "base_model_prefix", "")
    if not trunk or not isinstance(task.objective, Classification):
        return task.head_modules
    children = task.model.named_children()
    outside = [n for n, m in children if n != trunk and next(m.parameters(), None) is not None]
    for target in task.target_modules:
        if any(inside(target, name) for name in outside):
            raise expected("target_modules", target, f"none in {outside}, which PEFT saves whole")
    within = [h for h in task.head_modules if not any(inside(h, name) for name in outside)]
    return (*outside, *within)


# Runs on disk: open a fine-tuning run and export adapters from it


@dataclass(frozen=True)
class ExportedClients:
    """Clients of one round as folders that can be aggregated.

    Args:
        folders: one per client.
        clients: their numbers.
        ranks: their ranks.
        num_samples: their weights in the round's average.
        rank_levels: rank levels of the federation after the round.
        has_base: whether they trained on a base model with a merged correction.
    """

    folders: tuple[Path, ...]
    clients: tuple[int, ...]
    ranks: tuple[int, ...]
    num_samples: tuple[float, ...]
    rank_levels: tuple[int, ...]
    has_base: bool


class KeptRun:
    """A fine-tuning run on disk.

    Args:
        folder: folder that `fedlora-sim train` wrote, or the folder of the rounds themselves.
        task: model and data, for a run on a custom task.
        rule: rule object, for a run under a rule that is not registered.

    Raises:
        InputError: if there is no run that can be opened.
    """

    def __init__(
        self,
        folder: str | Path,
        task: Task | None = None,
        rule: AggregationRule | None = None,
    ) -> None:
        places = (Path(folder) / "rounds", Path(folder))
        found = ((place, read_description(place)) for place in places)
        self.place, described = next((f for f in found if f[1]), (Path(folder), None))
        if described is None:
            wanted = "the folder of a run, as fedlora-sim train makes it"
            raise expected("folder", str(folder), wanted)
        if described.get("task") == GIVEN_TASK:
            if task is None:
                raise expected("task", None, "the model and data that the run was given")
            described["task"] = Scenario.task
        try:
            self.scenario = Scenario.from_attrs(described)
        except KeyError as error:
            wanted = f"a run of this version of fedlora-sim (it says nothing of {error})"
            raise expected("folder", str(self.place), wanted) from None
        with torch_threads(self.scenario.threads):
            rule = get_rule(described["rule"]) if rule is None else rule
            self.run = FederatedRun(self.scenario, rule, described["seed"], task, self.place)
        # If the code changed, the repeated training is compared with the recorded energies.
        self.checkpoints = Checkpoints(self.place, self.run.description(), but_for=MADE_WITH)

    @property
    def keeps_state(self) -> bool:
        """True if the rule keeps state between rounds, which adapter folders cannot hold."""
        last = max(state_rounds(self.place))
        return bool(self.checkpoints.state(last, self.run.task.device).kept)

    def export_global(self, t: int, out: str | Path, *, force: bool = False) -> None:
        """Write the global adapter after round t, as a client of rank r_max receives it.

        Its scaling is that client's, so that further training continues as in the run. Under a rule
        that merges a correction into the base weights the folder holds the sum of both, at scaling
        1, and `out/adapter` and `out/base` hold them separately.

        Args:
            t: the round; 0 for the start.
            out: output folder.
            force: replace an existing adapter folder.

        Raises:
            InputError: before anything is written.
        """
        out = Path(out)
        check_output(out, [self.place], force=force)
        with only_writer(out, inside=False):
            state = self.checkpoints.state(t, self.run.task.device)
            write_adapters(out, self._global_contents(t, state), force=force)

    def export_clients(
        self, t: int, clients: Sequence[int] | None, out: str | Path, *, force: bool = False
    ) -> ExportedClients:
        """Write the updates of clients in round t, each to `out/client-<k>`.

        Args:
            t: the round, from 1; the global update at its start must be stored.
            clients: client numbers; None for all clients whose updates were aggregated.
            out: parent of the folders.
            force: replace existing adapter folders.

        Raises:
            InputError: before anything is written; if a client did not take part, names those that
                did.
        """
        wanted = self._check_clients(t, clients)
        folders = tuple(Path(out) / f"client-{k}" for k in wanted)
        for folder in folders:
            check_output(folder, [self.place], force=force)
        upload = self._train_again(t)
        there = upload.clients[upload.kept].tolist()
        slots = [there.index(k) for k in wanted]
        for folder, slot in zip(folders, slots, strict=True):
            layers = {name: own[slot] for name, own in upload.updates.items()}
            heads = {name: tuple(x[slot] for x in own) for name, own in upload.heads.items()}
            with only_writer(folder, inside=False):
                write_adapters(folder, [("", self._content(layers, heads))], force=force)
        updates = next(iter(upload.updates.values()))
        return ExportedClients(
            folders,
            tuple(wanted),
            tuple(updates[slot].rank for slot in slots),
            tuple(upload.weights[upload.kept][slots].tolist()),
            tuple(sorted({*self.run.ranks, self.run.federation.r_max})),
            bool(self.run.state.base),
        )

    def _check_clients(self, t: int, clients: Sequence[int] | None) -> list[int]:
        """Check the request and return the requested clients."""
        if self.scenario.allocation != "svd":
            wanted = "svd: an adapter cannot say at which rank indices its columns stand"
            raise expected("allocation", self.scenario.allocation, wanted)
        kept = state_rounds(self.place)
        ready = [s + 1 for s in kept if s < kept[-1]]
        if t not in ready:
            wanted = f"a round whose start was kept, {ready} (keep='all' keeps every one)"
            raise expected("round", t, wanted)
        row = self.checkpoints.rows(t)[t]
        there = [k for k, lost in zip(row["cohort"], row["dropped"], strict=True) if not lost]
        took_part = [int(k) for k in there if k >= 0]
        chosen = took_part if clients is None else list(dict.fromkeys(clients))
        for k in chosen:
            if k not in took_part:
                raise expected("client", k, f"one whose update round {t} took in, {took_part}")
        return chosen

    def _train_again(self, t: int) -> Upload:
        """Return the updates of the cohort of round t.

        Raises:
            InputError: if their energies differ from the recorded ones.
        """
        run, rows = self.run, self.checkpoints.rows(t)
        run.state = self.checkpoints.state(t - 1, run.task.device)
        run.ranks = rows[t - 1]["client_rank"].tolist()
        with torch_threads(self.scenario.threads):
            upload = run.train(t - 1)
        energy = [[float(u.norm().square()) for u in own] for own in upload.updates.values()]
        measured = rows[t]["update_energy"][:, np.flatnonzero(upload.kept)]
        if not np.allclose(energy, measured, rtol=relative("training", run.task.dtype), atol=0):
            wanted = f"the run's own model and data: round {t} trained again gives other updates"
            raise expected("folder", str(self.place), wanted)
        return upload

    def _global_contents(self, t: int, state: GlobalUpdate) -> Iterator[tuple[str, AdapterContent]]:
        """Yield global adapter and, with a base correction, adapter and correction separately."""
        run = self.run
        run.received.start_round(t)
        scaling = self.scenario.client_scaling(run.federation.r_max)
        adapter = run.received.whole(state, scaling)
        if not state.base:
            yield "", self._content(adapter, state.heads)
            return
        total = {name: exact_factors(delta) for name, delta in state.deltas().items()}
        yield "", self._content(total, state.heads)
        yield "adapter", self._content(adapter, state.heads)
        base = {name: exact_factors(delta) for name, delta in state.base.items()}
        yield "base", self._content(base, None)

    def _content(self, layers: Mapping[str, LoRAFactors], heads: Heads | None) -> AdapterContent:
        """Return the content of an adapter folder; heads are None for a base correction."""
        run = self.run
        is_own = run.task_is_given
        options: dict[str, Any] = task_options(run.task, self.scenario, is_own=is_own)
        if heads is None:
            options |= BASE_OPTIONS
        whole = {} if heads is None else whole_modules(run.task, heads)
        return adapter_content(options, layers, whole, use_rslora=self.scenario.use_rslora)
