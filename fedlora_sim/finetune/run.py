"""A federated fine-tuning run: rounds, evaluation, and counterfactual rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.federation import Federation, cohort_slots, draw_cohorts
from fedlora_sim.finetune.batches import client_rates, client_streams, plan_round, split_clients
from fedlora_sim.finetune.checkpoints import Checkpoints, load_state, run_description, state_rounds
from fedlora_sim.finetune.exchange import (
    SVD,
    Download,
    GlobalUpdate,
    Upload,
    averaged_heads,
    initial_heads,
)
from fedlora_sim.finetune.local import (
    TailPenalty,
    check_targets,
    find_divergence,
    pruned_rank,
    train_on_plan,
)
from fedlora_sim.finetune.measures import (
    Row,
    TrainingResult,
    account_row,
    angle_row,
    cohort_row,
    spectrum_row,
    stacked_rows,
    update_row,
)
from fedlora_sim.finetune.model_checks import check_equivalence, check_isolation
from fedlora_sim.finetune.slora import sparse_stage, sparse_start
from fedlora_sim.finetune.stacked import Heads, find_linear, merged_copy
from fedlora_sim.lowrank import pad_last
from fedlora_sim.randomness import stream
from fedlora_sim.rules import NO_STATE, Aggregated, AggregationRule, aggregate, get_rule, rule_names
from fedlora_sim.runtime import full_precision, torch_threads
from fedlora_sim.scenario import Scenario
from fedlora_sim.splits import add_feature_noise, split_table
from fedlora_sim.tasks.loading import load_task, place_task
from fedlora_sim.tasks.targets import linear_shape
from fedlora_sim.tasks.task import Task, logits_of, task_content

# Counterfactuals: the same trained cohort aggregated by other rules


def compared_rules(rule: AggregationRule, allocation: str) -> tuple[AggregationRule, ...]:
    """Return the comparable rules: the run's own, and all that train the same factors.

    A rule that freezes A, and a rule whose clients start every round with fresh adapters and return
    increments, require other local training, so that their updates are not comparable.

    Args:
        rule: the run's own rule.
        allocation: allocation of the run; some rules support `svd` only.
    """
    kind = (rule.frozen_a, rule.space == "none")
    others = [
        other
        for other in map(get_rule, rule_names())
        if other.label != rule.label
        and (other.frozen_a, other.space == "none") == kind
        and (allocation == "svd" or not other.needs_svd_allocation)
    ]
    return (rule, *others)


def counterfactual_row(
    rules: tuple[AggregationRule, ...],
    aggregate_by: Callable[[AggregationRule], Mapping[str, Aggregated]],
    state: GlobalUpdate,
    evaluate: Callable[[GlobalUpdate], float],
    r_max: int,
) -> Row:
    """Return the energies and the accuracy after the round under each rule.

    Args:
        rules: the R rules.
        aggregate_by: aggregates the round's cohort by a rule, per layer.
        state: the global update before the round.
        evaluate: accuracy of a global update; NaN in rounds without evaluation.
        r_max: rank of the global update.

    Returns:
        `counterfactual_energy` (R, L, r_max) and `counterfactual_accuracy` (R,).
    """
    energy, accuracy = [], []
    for rule in rules:
        after = state.after(aggregate_by(rule))
        values = torch.stack([pad_last(s, r_max) for _, s, _ in after.svd(r_max).values()])
        energy.append(values.cpu().double().numpy() ** 2)
        accuracy.append(evaluate(after))
    return {
        "counterfactual_energy": np.stack(energy),
        "counterfactual_accuracy": np.array(accuracy),
    }


# Evaluation of the global model on the test part, with the update merged into the weights

BATCH = 64
"""Test samples per batch: enough for full speed, and a bound on memory."""


def evaluate(
    task: Task,
    deltas: Mapping[str, Tensor] | None = None,
    heads: Heads | None = None,
) -> tuple[float, float]:
    """Return accuracy and mean loss on the test part with an update merged into the weights.

    Args:
        task: frozen model and test data.
        deltas: module name to dense update; modules not named keep their weight. None: the
            pretrained model.
        heads: module name to weight and bias; None: the model's own.

    Returns:
        Accuracy in [0, 1] and loss in nats per sample or token.

    Raises:
        InputError: if a name is not a linear module, or a shape is not its weight's.
    """
    model = merged_copy(task.model, deltas or {}, heads)
    hits, total, count = 0, 0.0, 0.0
    with torch.inference_mode():
        for index in torch.arange(len(task.test), device=task.device).split(BATCH):
            batch = task.test.take(index)
            logits = logits_of(model, batch.inputs)
            losses, counts = task.objective.losses(logits, batch.labels)
            hits += int(task.objective.hits(logits, batch.labels).sum())
            total, count = total + float(losses.sum()), count + float(counts.sum())
    return hits / len(task.test), total / count


# The round loop: allocate, train the cohort, aggregate, measure

Progress = Callable[[float], object]


def run_training(
    scenario: Scenario,
    rule: AggregationRule,
    seeds: Sequence[int],
    on_progress: Progress = lambda runs: None,
    *,
    task: Task | None = None,
    checkpoints: Path | None = None,
    keep: str = "last",
) -> list[TrainingResult]:
    """Run federated LoRA fine-tuning, once per seed.

    Args:
        scenario: a scenario; its training fields apply. Sample counts come from the split.
        rule: the server rule.
        seeds: split, cohorts, initial adapters and batches of a run follow from its seed; the
            task is that of the scenario's `task_seed` in every run.
        on_progress: called after each round with its fraction of a run.
        task: custom model and data, instead of the scenario's.
        checkpoints: folder in which each run stores its rounds and from which it continues.
        keep: states to store, `all | last`.

    Returns:
        One result per seed.
    """
    results = []
    with torch_threads(scenario.threads):
        for seed in seeds:
            folder = None if checkpoints is None else checkpoints / f"seed-{seed}"
            run = FederatedRun(scenario, rule, seed, task, folder)
            kept = None if folder is None else Checkpoints(folder, run.description(), keep)
            results.append(run.run(on_progress, kept))
    return results


class FederatedRun:
    """One run: its clients, its global update and its metrics.

    Args:
        scenario: a scenario; its training fields apply.
        rule: the server rule.
        seed: seed of all random draws of the run.
        task: model and data; the scenario's when None. Moved to the scenario's device and dtype.
        folder: checkpoints of the run, from which a trained starting point is loaded.
    """

    def __init__(
        self,
        scenario: Scenario,
        rule: AggregationRule,
        seed: int,
        task: Task | None = None,
        folder: Path | None = None,
    ) -> None:
        self.scenario, self.rule, self.seed = scenario, rule, seed
        self.task_is_given = task is not None
        if task is None:
            task = load_task(scenario)
            self.content = task.content or task_content(task)
        else:
            self.content = task_content(task)
            task = place_task(task, scenario)
        check_targets(task, max(scenario.ranks))
        self.samples = split_clients(scenario, task.train, seed)
        noisy = add_feature_noise(task.train, self.samples, scenario.feature_noise, seed)
        self.task = replace(task, train=noisy)
        check_isolation(self.task)
        check_equivalence(self.task)
        sizes = tuple(len(own) for own in self.samples)
        self.federation = Federation(scenario.ranks, sizes, scenario.cohort_size, scenario.sampling)
        counts = draw_cohorts(self.federation, scenario.rounds, stream(seed, "cohorts"))
        self.cohorts = [cohort_slots(row, int(np.count_nonzero(row))) for row in counts]
        self.ranks = list(self.federation.ranks)
        self.received = Download(scenario, rule, self.task, seed, self.federation.r_max)
        self.start = self.state = self._initial_state(folder)
        self.received.keep_frozen_a(self.start)
        self.compared = (
            compared_rules(rule, scenario.allocation) if scenario.counterfactuals else ()
        )

    def description(self) -> dict[str, Any]:
        """Return everything on which the run depends."""
        return run_description(
            self.scenario, self.rule, self.seed, self.content, is_given=self.task_is_given
        )

    def _initial_state(self, folder: Path | None) -> GlobalUpdate:
        """Return the zero update, or the result of SLoRA's stage, where the rule keeps it."""
        heads, fresh = initial_heads(self.task), self.received.fresh
        if self.scenario.initializer == "lora":
            return GlobalUpdate(fresh, heads=heads)
        if folder is not None and 0 in state_rounds(folder):
            return load_state(folder, 0, self.task.device)
        total = sparse_stage(self.scenario, self.task, self.federation, self.samples, self.seed)
        start = sparse_start(total, self.federation.r_max)
        if self.rule.space == "none":
            return GlobalUpdate(fresh, {name: f.delta() for name, f in start.items()}, heads)
        return GlobalUpdate(start, heads=heads)

    def run(
        self, on_progress: Progress = lambda runs: None, checkpoints: Checkpoints | None = None
    ) -> TrainingResult:
        """Run all rounds, starting after the last stored one."""
        with nullcontext() if checkpoints is None else checkpoints.only_writer():
            rows = self._rows(on_progress, checkpoints)
        return self._result(rows)

    def _rows(self, on_progress: Progress, checkpoints: Checkpoints | None) -> list[Row]:
        rows = self._resume(checkpoints)
        on_progress((len(rows) - 1) / self.scenario.rounds)
        for t in range(len(rows) - 1, self.scenario.rounds):
            rows.append(self.round(t))
            if checkpoints is not None:
                checkpoints.save(t + 1, self.state, rows[-1])
            on_progress(1 / self.scenario.rounds)
        return rows

    def _result(self, rows: list[Row]) -> TrainingResult:
        measures = stacked_rows(rows)
        counts, names = self._split_counts()
        targets = self.task.target_modules
        return TrainingResult(
            targets,
            tuple(linear_shape(find_linear(self.task.model, name)) for name in targets),
            measures.pop("singular_values"),
            measures,
            self.federation.coverage(self.scenario.allocation),
            self.federation.levels,
            tuple(rule.label for rule in self.compared),
            counts,
            names,
        )

    def _split_counts(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return the samples of each client and class, (K, C), and the class names."""
        names = self.task.class_names
        if not names:
            return np.array([[len(own)] for own in self.samples]), ("all",)
        return split_table(self.samples, self.task.train.skew_classes, len(names)), names

    def _resume(self, checkpoints: Checkpoints | None) -> list[Row]:
        """Return the metrics of the finished rounds, at least of the start."""
        last = None if checkpoints is None else checkpoints.last_round()
        if checkpoints is not None and last is not None:
            rows = checkpoints.rows(last)
            self.state = checkpoints.state(last, self.task.device)
            self.ranks = rows[-1]["client_rank"].tolist()
            return rows
        self.state, self.ranks = self.start, list(self.federation.ranks)
        start = self.state.svd(self.federation.r_max)
        nothing = {name: (u, torch.zeros_like(s), vh) for name, (u, s, vh) in start.items()}
        row = self._measure(0, Upload.empty(self.task.target_modules), nothing)
        if checkpoints is not None:
            checkpoints.save(0, self.state, row)
        return [row]

    @full_precision()
    def round(self, t: int) -> Row:
        """Run round t, counted from 0, and measure it."""
        before = self.state
        bases = before.svd(self.federation.r_max)
        upload = self.train(t)
        heads = averaged_heads(upload.heads, upload.weights[upload.kept])
        self.state = before.after(self._aggregate(upload, self.rule, before), heads)
        row = self._measure(t + 1, upload, bases)
        policy = self.scenario.empty_partition
        row |= account_row(self.rule, policy, before, bases, upload, self.state, row)
        if self.compared:
            row |= counterfactual_row(
                self.compared,
                lambda rule: self._aggregate(upload, rule, before),
                replace(before, heads=heads),
                lambda state: self._judge(t + 1, state)[0],
                self.federation.r_max,
            )
        return row

    def train(self, t: int) -> Upload:
        """Return the upload of the cohort of round t, counted from 0.

        Raises:
            InputError: if a client's update is not finite and the scenario does not drop it, or if
                no client's update is finite.
        """
        clients, drawn = self.cohorts[t]
        self.received.start_round(t)
        task = self.state.merged(self.task)
        ranks = [self.ranks[k] for k in clients]
        samples = [self.samples[k] for k in clients]
        positions = self.received.positions(t, clients, ranks, samples, self.state, task)
        # A client that has pruned itself keeps its scaling, so that its update does not jump.
        scalings = [self.scenario.client_scaling(self.federation.ranks[k]) for k in clients]
        stack = self.received.stack(self.state, positions, scalings)
        scenario = self.scenario.at_round(t)
        rates = client_rates(scenario, clients)
        stack = replace(stack, tail=self._tail(ranks), rates=rates)
        plan = plan_round(scenario, samples, client_streams(self.seed, t, clients.tolist()))
        trained = train_on_plan(task, stack, plan, scenario)
        lost, all_lost = np.flatnonzero(~trained.finite.cpu()), not bool(trained.finite.any())
        if len(lost) and (self.scenario.nonfinite == "error" or all_lost):
            slot, client = int(lost[0]), int(clients[lost[0]])
            found = find_divergence(task, stack, plan, scenario, slot, client)
            raise found.error(t + 1, whole_cohort=all_lost)
        if stack.tail is not None:
            ranks = self._prune(clients, ranks, stack.tail.shrank(stack.adapters, trained.adapters))
        weights = self.federation.cohort_weights(clients, drawn)
        return Upload.of(clients, weights, trained, ranks, scalings, positions)

    def _tail(self, ranks: list[int]) -> TailPenalty | None:
        scenario = self.scenario
        if scenario.pruning_decay is None:
            return None
        like = torch.zeros((), dtype=self.task.dtype, device=self.task.device)
        return TailPenalty.of(ranks, scenario.pruning_decay, scenario.pruning_penalty, like)

    def _prune(self, clients: NDArray[np.int64], ranks: list[int], shrank: list[bool]) -> list[int]:
        """Return the new ranks of the cohort, valid from this round's update on."""
        assert self.scenario.pruning_decay is not None  # otherwise nothing is pruned
        decay = self.scenario.pruning_decay
        new = [pruned_rank(r, decay) if less else r for r, less in zip(ranks, shrank, strict=True)]
        for k, rank in zip(clients.tolist(), new, strict=True):
            self.ranks[k] = rank
        return new

    def _aggregate(
        self, upload: Upload, rule: AggregationRule, before: GlobalUpdate
    ) -> dict[str, Aggregated]:
        """Return the round's result under a rule, per layer."""
        subset = self.scenario.allocation != "svd"
        return {
            name: aggregate(
                updates,
                upload.weights[upload.kept].tolist(),
                rule,
                rank_levels=sorted({*self.ranks, self.federation.r_max}),
                positions=[own.tolist() for own in upload.positions[name]] if subset else None,
                previous=before.adapters[name],
                empty_partition=self.scenario.empty_partition,
                scaling=1.0,
                state=before.rule_state(name) if rule is self.rule else NO_STATE,
            )
            for name, updates in upload.updates.items()
        }

    def _measure(self, t: int, upload: Upload, before: Mapping[str, SVD]) -> Row:
        """Return the metrics of round t, from 1; for the start, 0, with an empty upload."""
        federation = self.federation
        r_max, slots = federation.r_max, federation.max_cohort
        after = self.state.svd(r_max)
        accuracy, loss = self._judge(t, self.state)
        return {
            **spectrum_row(after),
            "accuracy": np.array(accuracy),
            "loss": np.array(loss),
            "client_rank": np.array(self.ranks),
            **cohort_row(federation, upload),
            **update_row(before, upload, slots, r_max),
            **angle_row(before, after, federation.levels),
        }

    def _judge(self, t: int, state: GlobalUpdate) -> tuple[float, float]:
        """Return accuracy and loss after round t; NaN in rounds without evaluation."""
        if t % self.scenario.evaluate_every and t != self.scenario.rounds:
            return float("nan"), float("nan")
        return evaluate(self.task, state.deltas(), state.heads)
