"""One federated fine-tuning run: rounds, evaluation, and counterfactual rules."""

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
    GlobalUpdate,
    Received,
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
from fedlora_sim.runtime import torch_threads
from fedlora_sim.scenario import Scenario
from fedlora_sim.splits import add_feature_noise, split_table
from fedlora_sim.tasks.loading import load_task, place_task
from fedlora_sim.tasks.targets import linear_shape
from fedlora_sim.tasks.task import Task, logits_of, task_content

# One round, every rule: what the others would have made of the very same trained cohort


def compared_rules(rule: AggregationRule, allocation: str) -> tuple[AggregationRule, ...]:
    """The rules that can be asked: the run's own, and all that train what it trains.

    A rule that freezes A has another local training than one that does not, and a rule whose
    clients start from fresh adapters returns increments: neither can stand in for the other.

    Args:
        rule: the run's own.
        allocation: of the run; some rules suit `svd` only.
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
    """Energies and accuracy after the round under every rule.

    Args:
        rules: R of them.
        aggregate_by: aggregates the round's cohort by a rule, per layer.
        state: the global update before the round.
        evaluate: accuracy of a global update; NaN in rounds that are not judged.
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


# The global model judged on the test part, its update merged into the weights

BATCH = 64
"""Test samples at a time: enough for full speed, and a bound on memory."""


def evaluate(
    task: Task,
    deltas: Mapping[str, Tensor] | None = None,
    heads: Heads | None = None,
) -> tuple[float, float]:
    """Test accuracy and mean loss of the model with an update merged into its weights.

    Args:
        task: frozen model and test data.
        deltas: module name -> update dW of its weight, shape (d_out, d_in), scaling included;
            modules not named keep their weight. None: the pretrained model.
        heads: module name -> the weight (d_out, d_in) and, if any, bias (d_out,) in place of its
            own.

    Returns:
        Accuracy in [0, 1] and loss in nats per sample or token.

    Raises:
        InputError: on a name that is no linear module, or a shape that is not its weight's.
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


# The federated round loop on a real task: allocate, train the cohort, aggregate, measure

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
    """Federated LoRA fine-tuning, one run per seed.

    Args:
        scenario: a scenario; its training fields apply. Sample counts come from the split.
        rule: the server rule.
        seeds: split, cohorts, initial adapters and batches of a run follow from its seed; the
            task is that of the scenario's `task_seed` in every run.
        on_progress: called after every round with the fraction of a run that it makes.
        task: model and data of one's own, in place of the scenario's.
        checkpoints: folder in which every run keeps its rounds, and goes on from them.
        keep: states that stay there, `all | last`.

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
    """One run: its clients, its global update and what is measured of it.

    Args:
        scenario: a scenario; its training fields apply.
        rule: the server rule.
        seed: of everything random in the run.
        task: model and data; the scenario's when None. Moved to the scenario's device and dtype.
        folder: where the run may have been kept; a start that took training is taken from there.
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
        self.received = Received(scenario, rule, self.task, seed, self.federation.r_max)
        self.start = self.state = self._initial_state(folder)
        self.received.keep_frozen_a(self.start)
        self.compared = (
            compared_rules(rule, scenario.allocation) if scenario.counterfactuals else ()
        )

    def description(self) -> dict[str, Any]:
        """Everything that the run depends on."""
        return run_description(
            self.scenario, self.rule, self.seed, self.content, is_given=self.task_is_given
        )

    def _initial_state(self, folder: Path | None) -> GlobalUpdate:
        """Nothing, or what SLoRA's stage has learned, where the rule keeps it."""
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
        """Run all rounds, from the last one that was kept."""
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
        """Samples of every client and class, (K, C), and the names of the classes."""
        names = self.task.class_names
        if not names:
            return np.array([[len(own)] for own in self.samples]), ("all",)
        return split_table(self.samples, self.task.train.skew_classes, len(names)), names

    def _resume(self, checkpoints: Checkpoints | None) -> list[Row]:
        """Measures of the rounds that are done; the start at least."""
        last = None if checkpoints is None else checkpoints.last_round()
        if checkpoints is not None and last is not None:
            rows = checkpoints.rows(last)
            self.state = checkpoints.state(last, self.task.device)
            self.ranks = rows[-1]["client_rank"].tolist()
            return rows
        self.state, self.ranks = self.start, list(self.federation.ranks)
        start = self.state.svd(self.federation.r_max)
        nothing = {name: (u, torch.zeros_like(s), vh) for name, (u, s, vh) in start.items()}
        row = self._measure(0, Upload.nobody(self.task.target_modules), nothing)
        if checkpoints is not None:
            checkpoints.save(0, self.state, row)
        return [row]

    def round(self, t: int) -> Row:
        """Run round t, counted from 0, and measure it."""
        before = self.state
        bases = before.svd(self.federation.r_max)
        upload = self.train(t)
        heads = averaged_heads(upload.heads, upload.weights[upload.kept])
        self.state = before.after(self._aggregate(upload, self.rule, before), heads)
        row = self._measure(t + 1, upload, bases)
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
        """What the cohort of round t, counted from 0, sends back.

        Raises:
            InputError: if a client's update is not finite and the scenario does not drop it, or if
                nobody's is.
        """
        clients, drawn = self.cohorts[t]
        self.received.start_round(t)
        task = self.state.merged(self.task)
        ranks = [self.ranks[k] for k in clients]
        samples = [self.samples[k] for k in clients]
        positions = self.received.positions(t, clients, ranks, samples, self.state, task)
        # A client that has pruned itself keeps its scaling: its update must not jump.
        scalings = [self.scenario.client_scaling(self.federation.ranks[k]) for k in clients]
        stack = self.received.stack(self.state, positions, scalings)
        rates = client_rates(self.scenario, clients)
        stack = replace(stack, tail=self._tail(ranks), rates=rates)
        plan = plan_round(self.scenario, samples, client_streams(self.seed, t, clients.tolist()))
        trained = train_on_plan(task, stack, plan, self.scenario)
        lost, nobody = np.flatnonzero(~trained.finite.cpu()), not bool(trained.finite.any())
        if len(lost) and (self.scenario.nonfinite == "error" or nobody):
            slot, client = int(lost[0]), int(clients[lost[0]])
            found = find_divergence(task, stack, plan, self.scenario, slot, client)
            raise found.error(t + 1, nobody=nobody)
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
        """New ranks of the cohort, for this round's update and from now on."""
        assert self.scenario.pruning_decay is not None  # only then is anything pruned
        decay = self.scenario.pruning_decay
        new = [pruned_rank(r, decay) if less else r for r, less in zip(ranks, shrank, strict=True)]
        for k, rank in zip(clients.tolist(), new, strict=True):
            self.ranks[k] = rank
        return new

    def _aggregate(
        self, upload: Upload, rule: AggregationRule, before: GlobalUpdate
    ) -> dict[str, Aggregated]:
        """The round's result by a rule, per layer."""
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
        """The row of round t, from 1; of the start, 0, with nobody's upload."""
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
        """Accuracy and loss after round t; NaN in rounds that are not judged."""
        if t % self.scenario.evaluate_every and t != self.scenario.rounds:
            return float("nan"), float("nan")
        return evaluate(self.task, state.deltas(), state.heads)
