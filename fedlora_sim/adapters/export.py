"""Adapters of a fine-tuning run as PEFT folders: what a client sent back, or the global one.

What clients send back is not kept. A round's cohort is trained again, from the global update that
it started from: every draw follows from the seed, the round and the client, so that on the same
machine its adapters come out bit for bit. Their energies are held against those that were measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedlora_sim.adapters.assembly import BASE_OPTIONS
from fedlora_sim.adapters.task_content import (
    adapter_content,
    exact_factors,
    task_options,
    whole_modules,
)
from fedlora_sim.adapters.writing import AdapterContent, check_output, write_adapters
from fedlora_sim.aggregation import AggregationRule, get_rule
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
from fedlora_sim.finetune.stacked import Heads
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.runtime import torch_threads
from fedlora_sim.scenario import Scenario
from fedlora_sim.storage import only_writer
from fedlora_sim.tasks.task import Task
from fedlora_sim.tolerances import relative


@dataclass(frozen=True)
class ExportedClients:
    """Clients of one round, in folders that can be aggregated.

    Args:
        folders: one per client.
        clients: their numbers.
        ranks: their ranks.
        num_samples: their weights in the round's average.
        rank_levels: of the federation, after the round.
        has_base: whether they trained on a base model with a correction in its weights.
    """

    folders: tuple[Path, ...]
    clients: tuple[int, ...]
    ranks: tuple[int, ...]
    num_samples: tuple[float, ...]
    rank_levels: tuple[int, ...]
    has_base: bool


class KeptRun:
    """A fine-tuning run on disk, opened.

    Args:
        folder: what `fedlora-sim train` has written, or the folder of the rounds themselves.
        task: model and data of a run that was given its own.
        rule: that of a run under one that is not registered.

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
        # Of other code: what is trained again is held against what was measured.
        self.checkpoints = Checkpoints(self.place, self.run.description(), but_for=MADE_WITH)

    @property
    def keeps_state(self) -> bool:
        """Whether the rule keeps something from round to round, which adapter folders cannot."""
        last = max(state_rounds(self.place))
        return bool(self.checkpoints.state(last, self.run.task.device).kept)

    def export_global(self, t: int, out: str | Path, *, force: bool = False) -> None:
        """Write the global adapter after round t, as a client of rank r_max receives it.

        Its scaling is that client's, so that training it further goes on as in the run. Under a
        rule that merges a correction into the base weights the folder holds both in one, at scaling
        1, and `out/adapter` and `out/base` hold them apart.

        Args:
            t: the round; 0 for the start.
            out: folder to write.
            force: replace an adapter folder that is there.

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
        """Write what clients sent back in round t, each to `out/client-<k>`.

        Args:
            t: the round, from 1; the global update that it started from must have been kept.
            clients: their numbers; None for all whose updates were aggregated.
            out: folder of the folders.
            force: replace adapter folders that are there.

        Raises:
            InputError: before anything is written; if a client did not take part, with those who
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
        """The clients that are wanted, after everything about the request has been checked."""
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
        """What the cohort of round t sent back.

        Raises:
            InputError: if its energies are not those that were measured.
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
        """The global adapter; with a base correction also adapter and correction apart."""
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
        """An adapter folder; of a base correction, which has no heads, for None."""
        run = self.run
        is_own = run.task_is_given
        options: dict[str, Any] = task_options(run.task, self.scenario, is_own=is_own)
        if heads is None:
            options |= BASE_OPTIONS
        whole = {} if heads is None else whole_modules(run.task, heads)
        return adapter_content(options, layers, whole, use_rslora=self.scenario.use_rslora)
