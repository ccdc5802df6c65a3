"""Plan of a sweep: tasks of at least a second each, the same on every machine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from fedlora_sim.rules import get_rule
from fedlora_sim.scenario import Scenario
from fedlora_sim.sweep.grid import GridRow, Point, fingerprint

# Cost model of a run; it is fixed so that the plan does not depend on the machine.
#
# Seconds of one thread of a server core of about 2020, fitted to the engines within a factor of
# three; `probe` measures the ratio on this machine.

MICRO = 1e-6
FILE_BYTES, POINT_BYTES = 40_000, 200
"""Bytes of a task's file in addition to its arrays, per file and per point."""
WRITE_SECONDS = 0.04
POINT_SECONDS = 0.003
"""Seconds of a point in addition to its rounds, to set up draws and to label the dataset."""


@dataclass(frozen=True)
class Cost:
    """Cost of runs of one point that advance together.

    Args:
        call: seconds per call, shared by the runs.
        run: seconds per run.
        nbytes: bytes per run in a file.
    """

    call: float
    run: float
    nbytes: int

    def seconds(self, runs: int) -> float:
        """Return the seconds of a number of runs."""
        return self.call + runs * self.run


def cost_of(scenario: Scenario, rule: str) -> Cost:
    """Return the estimated cost of a scenario's runs under a rule."""
    rounds, federation = scenario.rounds, scenario.federation
    states, r_max = rounds + 1, federation.r_max
    floats = states * (r_max + 2)
    if scenario.fidelity == "spectral":
        call, run = _spectral(scenario, rule)
    elif scenario.fidelity == "matrix":
        call, run = _matrix(scenario)
        floats += states * r_max
    else:
        call, run = _training(scenario)
        floats += states * (20 * federation.max_cohort + 4 * r_max)
    return Cost(POINT_SECONDS + call * rounds, run * rounds, 8 * floats)


def _spectral(scenario: Scenario, rule: str) -> tuple[float, float]:
    """Return the seconds per round of a batch and of each run in it."""
    federation, chosen = scenario.federation, get_rule(rule)
    per_round = (2.8 + 0.035 * federation.num_clients) * MICRO
    noisy = scenario.gain_std > 0 or scenario.drift_std > 0
    spread = scenario.local_loss == "quadratic" and scenario.target_std > 0
    unlike = noisy and (not chosen.is_linear or chosen.residual_in_base)
    if spread or unlike or scenario.allocation != "svd":
        carried = federation.max_cohort * federation.r_max
        drawn = federation.num_clients * federation.r_max if noisy else 0
        return 200 * MICRO, per_round + (0.08 * carried + 0.04 * drawn) * MICRO
    return 50 * MICRO, per_round


def _matrix(scenario: Scenario) -> tuple[float, float]:
    federation, size = scenario.federation, scenario.d_in + scenario.d_out
    columns = federation.max_cohort * federation.r_max
    run = 200 + 0.12 * size * min(columns, scenario.d_in, scenario.d_out)
    if scenario.basis_drift != 0:
        run += 0.25 * size * columns
    if scenario.local_loss == "quadratic":
        run += 0.01 * size * columns * (scenario.local_steps or 1)
    return 2e3 * MICRO, run * MICRO


def _training(scenario: Scenario) -> tuple[float, float]:
    """Return the cost of the small bundled task; other models require a probe."""
    steps = scenario.local_steps or 10 * scenario.local_epochs
    return 0.0, 0.03 + 1e-3 * steps * scenario.federation.max_cohort


# Tasks

TASK_SECONDS = 2.0
"""Estimated seconds of a task: a second or more on faster machines, and little to lose."""
TASK_BYTES, TASK_RUNS = 64_000_000, 10_000
"""Maximum size of a task's arrays, and maximum number of runs in it."""


@dataclass(frozen=True)
class Part:
    """Runs of one point.

    Args:
        point: scenario and rule.
        seeds: one run each.
    """

    point: Point
    seeds: tuple[int, ...]

    @cached_property
    def cost(self) -> Cost:
        """Cost of the point's runs."""
        return cost_of(self.point.scenario, self.point.rule)

    @property
    def seconds(self) -> float:
        """Estimated time."""
        return self.cost.seconds(len(self.seeds))

    @property
    def nbytes(self) -> int:
        """Estimated size in a file."""
        return POINT_BYTES + self.cost.nbytes * len(self.seeds)


@dataclass(frozen=True)
class SweepTask:
    """Runs that are computed together and stored in one file: seeds of a point, or several points.

    Args:
        parts: parts of one fidelity, number of rounds and highest rank.
    """

    parts: tuple[Part, ...]

    @cached_property
    def id(self) -> str:
        """Hash of the runs, which is the name of the file."""
        return fingerprint([[part.point.id, part.seeds] for part in self.parts])

    @property
    def runs(self) -> int:
        """Number of runs."""
        return sum(len(part.seeds) for part in self.parts)

    @property
    def seconds(self) -> float:
        """Estimated time, including writing the file."""
        return WRITE_SECONDS + sum(part.seconds for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Estimated size of the file."""
        return FILE_BYTES + sum(part.nbytes for part in self.parts)

    def split(self) -> list[SweepTask]:
        """Return one task per part."""
        return [SweepTask((part,)) for part in self.parts]


def plan(
    rows: Iterable[GridRow],
    seconds: float = TASK_SECONDS,
    covered: Mapping[str, Collection[int]] | None = None,
) -> list[SweepTask]:
    """Return the tasks of the rows' runs, a pure function of the arguments.

    Seeds of a point that takes long enough are divided into equal batches; shorter points are
    combined with their neighbors. Fine-tuning has one task per seed.

    Args:
        rows: the rows to run.
        seconds: minimum estimated time of a task.
        covered: seeds of points, by their ids, that other tasks compute.
    """
    tasks: list[SweepTask] = []
    waiting: dict[tuple[object, ...], list[Part]] = {}
    for part in _parts(rows, covered or {}):
        batches = _batches(part, seconds)
        if len(batches) > 1 or part.point.scenario.fidelity == "training":
            tasks += [SweepTask((batch,)) for batch in batches]
            continue
        scenario = part.point.scenario
        shape = (scenario.fidelity, scenario.rounds, max(scenario.ranks))
        held = waiting.setdefault(shape, [])
        if held and _is_full([*held, part]):
            tasks.append(SweepTask(tuple(held)))
            held.clear()
        held.append(part)
        if sum(p.seconds for p in held) >= seconds:
            tasks.append(SweepTask(tuple(held)))
            held.clear()
    return tasks + [SweepTask(tuple(held)) for held in waiting.values() if held]


def _parts(rows: Iterable[GridRow], covered: Mapping[str, Collection[int]]) -> list[Part]:
    """Return all points with their seeds that are not covered.

    Zipped seeds come from several rows.
    """
    points: dict[str, Point] = {}
    seeds: dict[str, list[int]] = {}
    for row in rows:
        own = row.point.id
        points.setdefault(own, row.point)
        made = covered.get(own, ())
        seeds.setdefault(own, []).extend(s for s in row.seeds if s not in made)
    return [Part(points[own], tuple(left)) for own, left in seeds.items() if left]


def _batches(part: Part, seconds: float) -> list[Part]:
    runs = len(part.seeds)
    if part.point.scenario.fidelity == "training":
        count = runs
    else:
        shared = min(part.cost.call, seconds / 2)
        by_time = int(runs * part.cost.run / max(seconds - shared, 1e-9))
        by_size = -(-part.nbytes // TASK_BYTES)
        count = min(max(1, by_time, by_size, -(-runs // TASK_RUNS)), runs)
    return [
        Part(part.point, tuple(int(seed) for seed in seeds)) for seeds in _cut(part.seeds, count)
    ]


def _cut(seeds: Sequence[int], count: int) -> list[Sequence[int]]:
    edges = np.linspace(0, len(seeds), count + 1).round().astype(int)
    return [seeds[a:b] for a, b in pairwise(edges)]


def _is_full(parts: Sequence[Part]) -> bool:
    runs, size = sum(len(p.seeds) for p in parts), sum(p.nbytes for p in parts)
    return size > TASK_BYTES or runs > TASK_RUNS
