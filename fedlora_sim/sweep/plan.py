"""Plan of a sweep: tasks of a few seconds each, the same on every machine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil

import numpy as np

from fedlora_sim.rules import get_rule
from fedlora_sim.sweep.grid import GridRow, Point, fingerprint

# Cost of a run: a rough estimate, fixed so that the plan does not depend on the machine. The tasks
# of a sweep take about equally long, and `probe` measures how long that is on this machine.

TASK_SECONDS = 2.0
"""Estimated seconds of a task: long compared with its file, and little to lose."""
TASK_BYTES, TASK_RUNS = 64_000_000, 10_000
"""Maximum size of a task's arrays, and maximum number of runs in it."""
POINT_SECONDS, FILE_BYTES = 0.003, 40_000
"""What a point takes besides its rounds, and a file besides its arrays."""


def run_seconds(point: Point) -> float:
    """Return the estimated seconds of one of many runs, on one thread."""
    scenario, rule = point.scenario, get_rule(point.rule)
    federation = scenario.federation
    columns = federation.max_cohort * federation.r_max
    if scenario.fidelity == "training":
        steps = scenario.local_steps or 10 * scenario.local_epochs
        micros = 3e4 + 1e3 * steps * federation.max_cohort
    elif scenario.fidelity == "matrix":
        size = scenario.d_in + scenario.d_out
        micros = 200 + 0.2 * size * min(columns, scenario.d_in, scenario.d_out)
    else:
        micros = 3 + 0.04 * federation.num_clients
        each_client = not rule.is_linear or rule.residual_in_base or scenario.allocation != "svd"
        if each_client or scenario.local_loss == "quadratic":
            micros += 0.1 * columns
    return 1e-6 * micros * scenario.rounds


def run_bytes(point: Point) -> int:
    """Return the estimated size of a run in a file."""
    scenario, federation = point.scenario, point.scenario.federation
    floats = 2 * federation.r_max + 2
    if scenario.fidelity == "training":
        floats += 20 * federation.max_cohort
    return 8 * floats * (scenario.rounds + 1)


# Tasks


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
    def seconds(self) -> float:
        """Estimated time."""
        return POINT_SECONDS + len(self.seeds) * run_seconds(self.point)

    @cached_property
    def nbytes(self) -> int:
        """Estimated size in a file."""
        return len(self.seeds) * run_bytes(self.point)

    def share(self, seconds: float) -> float:
        """Return the share of a task that the runs fill; a run of fine-tuning fills one."""
        runs = len(self.seeds)
        if self.point.scenario.fidelity == "training":
            return float(runs)
        time = (self.seconds - POINT_SECONDS) / seconds
        return max(time, self.nbytes / TASK_BYTES, runs / TASK_RUNS)

    def divided(self, seconds: float) -> list[Part]:
        """Return the part in equal parts, none of which fills more than a task if it can be."""
        runs = len(self.seeds)
        count = min(ceil(self.share(seconds)), runs)
        edges = np.linspace(0, runs, count + 1).round().astype(int)
        return [Part(self.point, self.seeds[a:b]) for a, b in pairwise(edges)]


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
        """Estimated time."""
        return sum(part.seconds for part in self.parts)

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

    Points are divided by seeds if they exceed a task, and put together if their arrays are alike
    and they fit into one. Fine-tuning has one task per seed.

    Args:
        rows: the rows to run.
        seconds: maximum estimated time of a task, unless one run takes longer.
        covered: seeds of points, by their ids, that other tasks compute.
    """
    alike: dict[tuple[object, ...], list[Part]] = {}
    for part in _parts(rows, covered or {}):
        scenario = part.point.scenario
        shape = (scenario.fidelity, scenario.rounds, max(scenario.ranks))
        alike.setdefault(shape, []).extend(part.divided(seconds))
    return [SweepTask(held) for parts in alike.values() for held in _packed(parts, seconds)]


def _packed(parts: Iterable[Part], seconds: float) -> Iterator[tuple[Part, ...]]:
    """Yield successive parts that fit into one task together."""
    held, used = list[Part](), 0.0
    for part in parts:
        share = part.share(seconds) + POINT_SECONDS / seconds
        if held and used + share > 1:
            yield tuple(held)
            held, used = [], 0.0
        held.append(part)
        used += share
    yield tuple(held)


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
