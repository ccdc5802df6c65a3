"""Tasks of a sweep: runs enough for a second or more, the same on every machine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from fedlora_sim.sweep.costs import FILE_BYTES, POINT_BYTES, WRITE_SECONDS, Cost, cost_of
from fedlora_sim.sweep.grid import Point, Row, fingerprint

TASK_SECONDS = 2.0
"""Estimated seconds of a task: a second or more where machines are faster, and little to lose."""
TASK_BYTES, TASK_RUNS = 64_000_000, 10_000
"""Most that a task's arrays take, and most runs in it."""


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
        """Of the point's runs."""
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
class Task:
    """Runs that are made in one go and kept in one file: seeds of a point, or several points.

    Args:
        parts: of one fidelity, number of rounds and highest rank.
    """

    parts: tuple[Part, ...]

    @cached_property
    def id(self) -> str:
        """Hash of what is run, hence the name of its file."""
        return fingerprint([[part.point.id, part.seeds] for part in self.parts])

    @property
    def runs(self) -> int:
        """Number of runs."""
        return sum(len(part.seeds) for part in self.parts)

    @property
    def seconds(self) -> float:
        """Estimated time, the writing of the file included."""
        return WRITE_SECONDS + sum(part.seconds for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Estimated size of the file."""
        return FILE_BYTES + sum(part.nbytes for part in self.parts)

    def split(self) -> list[Task]:
        """A task for every part."""
        return [Task((part,)) for part in self.parts]


def plan(
    rows: Iterable[Row],
    seconds: float = TASK_SECONDS,
    covered: Mapping[str, Collection[int]] | None = None,
) -> list[Task]:
    """Tasks of the rows' runs: a pure function of its arguments.

    Seeds of a point that take long enough are cut into equal batches; points whose seeds do not
    are put together with their neighbours. Fine-tuning is one task per seed.

    Args:
        rows: what is run.
        seconds: estimated time that a task should take at least.
        covered: seeds of points, by their ids, that other tasks make.
    """
    tasks: list[Task] = []
    waiting: dict[tuple[object, ...], list[Part]] = {}
    for part in _parts(rows, covered or {}):
        batches = _batches(part, seconds)
        if len(batches) > 1 or part.point.scenario.fidelity == "training":
            tasks += [Task((batch,)) for batch in batches]
            continue
        scenario = part.point.scenario
        shape = (scenario.fidelity, scenario.rounds, max(scenario.ranks))
        held = waiting.setdefault(shape, [])
        if held and _is_full([*held, part]):
            tasks.append(Task(tuple(held)))
            held.clear()
        held.append(part)
        if sum(p.seconds for p in held) >= seconds:
            tasks.append(Task(tuple(held)))
            held.clear()
    return tasks + [Task(tuple(held)) for held in waiting.values() if held]


def _parts(rows: Iterable[Row], covered: Mapping[str, Collection[int]]) -> list[Part]:
    """Every point with all of its seeds that are not covered; zipped seeds come from many rows."""
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
