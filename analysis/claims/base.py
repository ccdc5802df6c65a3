"""The form of a claim: statement, prediction, experiment, margin, controls; shared experiments."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
import xarray as xr
from joblib import cpu_count
from numpy.typing import NDArray

from analysis.stats.intervals import Estimator, mean_interval
from analysis.stats.series import log_linear_rate
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, simulate
from fedlora_sim.run_store import RunStore
from fedlora_sim.runtime import in_processes, resolve_device

# The form of a claim

Array = NDArray[np.float64]

MOST_KEPT = 200_000_000
"""Bytes of recent runs that a context keeps."""
NEAR = (2.0, 5.0)
"""Smallest and largest distance of a near control from the measurement, in margins."""


@dataclass
class RunContext:
    """Settings of a verification, and the datasets that claims share.

    Args:
        seed: base seed; run i of any experiment has seed `seed * 1_000_000 + i`.
        quick: fewer claims, fewer runs and shorter training; margins are the same.
        device: `auto | cpu | cuda | mps`.
        on_progress: called with the number of simulated runs finished since the last call.
        store: results of an earlier, interrupted verification, or None.
    """

    seed: int = 0
    quick: bool = False
    device: str = "auto"
    on_progress: Callable[[float], object] = lambda runs: None
    store: RunStore | None = None
    _runs: dict[str, xr.Dataset] = field(default_factory=dict, init=False, repr=False)
    _recent: dict[Hashable, xr.Dataset] = field(default_factory=dict, init=False, repr=False)
    _recent_bytes: int = field(default=0, init=False, repr=False)

    def run_once(self, label: str, simulate: Callable[[], xr.Dataset]) -> xr.Dataset:
        """Return a run that several claims share, from memory, the store, or a new simulation."""
        dataset = self.known_run(label)
        if dataset is None:
            dataset = simulate()
            self.keep_run(label, dataset)
        return dataset

    def known_run(self, label: str) -> xr.Dataset | None:
        """Return a run that is in memory or in the store, or None."""
        if label not in self._runs and self.store:
            dataset = self.store.get_run(label)
            if dataset is not None:
                self._runs[label] = dataset
        return self._runs.get(label)

    def keep_run(self, label: str, dataset: xr.Dataset) -> None:
        """Store a run in memory and in the store."""
        if self.store:
            self.store.put_run(label, dataset)
        self._runs[label] = dataset

    def recent(self, key: Hashable) -> xr.Dataset | None:
        """Return what `keep_recent` kept under this key, or None."""
        return self._recent.get(key)

    def keep_recent(self, key: Hashable, dataset: xr.Dataset) -> None:
        """Keep a dataset in memory until newer ones take more than `MOST_KEPT` bytes."""
        self._recent[key] = dataset
        self._recent_bytes += dataset.nbytes
        while self._recent_bytes > MOST_KEPT:
            self._recent_bytes -= self._recent.pop(next(iter(self._recent))).nbytes

    def seeds(self, numbers: Sequence[int]) -> list[int]:
        """Return the seeds of the runs with these numbers."""
        return [self.seed * 1_000_000 + int(i) for i in numbers]


class Experiment(Protocol):
    """Simulates runs with given numbers and returns one row of q quantities per run.

    A quantity of a run can be a number, a series or a bracket, as the estimator requires.
    """

    def __call__(self, numbers: Sequence[int], context: RunContext) -> Array:
        """Return the samples (n, q, ...)."""
        ...


@dataclass(frozen=True)
class Control:
    """The same check with another prediction or simulation, whose verdict is known.

    Args:
        description: the difference to the claim.
        predict: another prediction; None keeps the claim's.
        experiment: another simulation; None keeps the claim's.
    """

    description: str
    predict: Callable[[], Prediction] | None = None
    experiment: Experiment | None = None


@dataclass(frozen=True)
class Claim:
    """A statement that a measurement can support or refute.

    Args:
        id: short name, unique.
        statement: the claim in one sentence.
        source: section of the paper, or "ours".
        assumptions: assumptions of the claim.
        fidelity: fidelity of the simulation that tests it.
        statistic: text: the measurement of each run and how runs are combined.
        quantities: names of the q measured quantities.
        predict: makes the prediction with its margin; called before anything is simulated.
        experiment: makes the samples.
        control: the negative control: something clearly wrong, which the check must refute.
        near: the near control: something wrong by 2 to 5 margins (`NEAR`) in every quantity, such
            as a slightly changed parameter, which the check must refute in every quantity.
        positive: something known to be true, which the check must support; for a conjecture that
            is refuted, it shows that the check can also support.
        estimator: maps samples and error probability to a measurement.
        first, cap: number of runs of the first look, and the maximum.
        quick: the same for `--quick`; None uses those of a full run.
        in_quick: whether `--quick` can run it.
        kind: a `theorem` must hold; a `conjecture` is reported with any verdict.
        wide_because: for statements about every run, the reason for a margin wider than 1e-9.
        scenario: scenario of a seed, if it differs from run to run; printed with a counterexample.

    Formulas in texts are LaTeX between dollar signs, as GitHub and the report's page show them.
    """

    id: str
    statement: str
    source: str
    assumptions: str
    fidelity: str
    statistic: str
    quantities: tuple[str, ...]
    predict: Callable[[], Prediction]
    experiment: Experiment
    control: Control
    near: Control | None = None
    positive: Control | None = None
    estimator: Estimator = mean_interval
    first: int = 8
    cap: int = 32
    quick: tuple[int, int] | None = None
    in_quick: bool = True
    kind: Literal["theorem", "conjecture"] = "theorem"
    wide_because: str = ""
    scenario: Callable[[int], Scenario] | None = None

    def runs(self, quick: bool) -> tuple[int, int]:
        """Return the number of runs of the first look, and the maximum."""
        return self.quick if quick and self.quick is not None else (self.first, self.cap)

    @property
    def controls(self) -> dict[str, Control]:
        """The controls that the claim has, by their names in a report."""
        named = {
            "negative_control": self.control,
            "near_control": self.near,
            "positive_control": self.positive,
        }
        return {name: control for name, control in named.items() if control is not None}

    def texts(self) -> dict[str, Any]:
        """Return the texts of the claim, by their names in a report."""
        return {
            "statement": self.statement,
            "source": self.source,
            "assumptions": self.assumptions,
            "statistic": self.statistic,
            "quantities": list(self.quantities),
            **({"wide_because": self.wide_because} if self.wide_because else {}),
        }

    def all_texts(self) -> list[str]:
        """Return the texts of the claim and of its controls, one by one."""
        own = self.texts()
        quantities = own.pop("quantities")
        controls = [control.description for control in self.controls.values()]
        return [*own.values(), *quantities, *controls]


# Shared experiments: map a scenario and a rule to one row per run


def simulated(
    scenario: Scenario, rule: str, numbers: Sequence[int], context: RunContext
) -> xr.Dataset:
    """Return the runs with these numbers, on the context's device.

    Controls often need the runs of the claim again: the last ones are kept.
    """
    scenario, seeds = scenario.replace(device=context.device), tuple(context.seeds(numbers))
    found = context.recent((scenario, rule, seeds))
    if found is not None:
        context.on_progress(len(seeds))
        return found
    found = simulate(scenario, rule=rule, seed=seeds, on_progress=context.on_progress)
    context.keep_recent((scenario, rule, seeds), found)
    return found


def by_partition(values: xr.DataArray) -> xr.DataArray:
    """Return the mean over the directions of each partition, dimension `partition` last."""
    return values.groupby("partition").mean().transpose(..., "partition")


def fitted_rates(scenario: Scenario, rule: str) -> Experiment:
    """Return log-linear energy factor per round of each partition, relative to the shared one."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        energy = by_partition(simulated(scenario, rule, numbers, context).energy)
        rates = log_linear_rate(energy.transpose("seed", "partition", "round").values)
        return rates[:, 1:] / rates[:, :1]

    return experiment


def energy_left(
    scenario: Scenario, rule: str, numbers: Sequence[int], context: RunContext
) -> Array:
    """Return the final over initial energy of each partition, (n, M)."""
    energy = by_partition(simulated(scenario, rule, numbers, context).energy).values
    return np.asarray(energy[:, -1] / energy[:, 0])


def higher_energy_left(
    scenario: Scenario, rule: str, numbers: Sequence[int], context: RunContext
) -> Array:
    """Return the final over initial energy of the partitions above the shared one."""
    return energy_left(scenario, rule, numbers, context)[:, 1:]


def energy_series(scenario: Scenario, rule: str) -> Experiment:
    """Return the energy of each partition at each round including the start, (n, M, T + 1)."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        energy = by_partition(simulated(scenario, rule, numbers, context).energy)
        return energy.transpose("seed", "partition", "round").values

    return experiment


def relative_trajectory(scenario: Scenario, rule: str, predicted: Array) -> Experiment:
    """Return the energy of each partition from round 1 on relative to its prediction (T, M)."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        energy = by_partition(simulated(scenario, rule, numbers, context).energy)
        return (energy.values[:, 1:] / predicted).reshape(len(numbers), -1)

    return experiment


# Arguments of closed forms from a scenario, and one value per partition

EXACT = 1e-9
"""Relative margin of statements about every run, after rounds of factorizations."""
IDENTICAL = 1e-10
"""Largest relative distance between two ways to write one aggregation."""


def ideal(scenario: Scenario) -> Scenario:
    """Return the scenario as closed forms describe it, for claims on how far they hold beyond it.

    All clients keep the common basis and have the common targets, and training is the flow, the
    limit of many small plain steps.
    """
    kept = {"subspace_noise": 0.0, "basis_drift": 0.0, "target_angle": 0.0, "target_std": 0.0}
    return scenario.replace(fidelity="spectral", optimizer=None, **kept)


def per_partition(values: Array, scenario: Scenario) -> Array:
    """Return one value per partition, from values (..., r_max) that its directions share."""
    return values[..., np.array(scenario.federation.levels) - 1]


def above_shared(values: Array, scenario: Scenario) -> Array:
    """Return the values of the partitions above the shared one, which all clients carry."""
    return per_partition(values, scenario)[..., 1:]


def partition_means(values: Array, scenario: Scenario) -> Array:
    """Return the mean over the directions of each partition, (..., M) from (..., r_max)."""
    parts = scenario.federation.partitions
    return np.stack([values[..., part].mean(-1) for part in parts], axis=-1)


# Names of rules and partitions in claims on federations with three rank levels

PARTITIONS = ("partition 1", "partition 2", "partition 3")
HIGHER = PARTITIONS[1:]
"""The partitions above the shared one."""


# Long runs that claims share, simulated in parallel before the claims need them

MOST_WORKERS = 8
"""A worker uses about half a gigabyte for a model and its libraries."""


@dataclass(frozen=True)
class Job:
    """One run with the label under which a context stores it.

    Args:
        label: unique in a verification.
        scenario: the scenario.
        rule: the server rule.
        seed: seed of the run.
    """

    label: str
    scenario: Scenario
    rule: str
    seed: int


def workers(device: str) -> int:
    """Return the number of processes: one per core, or one if they would share a GPU.

    Under `auto` workers compute on the CPU.
    """
    if resolve_device(device, torch.float32, "matrix").type != "cpu":
        return 1
    return min(cpu_count(), MOST_WORKERS)


def run_jobs(jobs: Sequence[Job], context: RunContext, processes: int) -> None:
    """Simulate the missing runs, each on one thread of a separate process.

    The bits of a run do not depend on the process. Each finished run is stored at once, so that a
    stopped verification can continue.

    Args:
        jobs: the runs.
        context: the store of runs.
        processes: number of processes; 1 stays in this process.
    """
    missing = [job for job in jobs if context.known_run(job.label) is None]
    for label, dataset in in_processes(_simulate, [(job,) for job in missing], processes):
        context.keep_run(label, dataset)
        context.on_progress(1)


def _simulate(job: Job) -> tuple[str, xr.Dataset]:
    return job.label, simulate(job.scenario, rule=job.rule, seed=job.seed)
