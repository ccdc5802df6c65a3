"""Plans: every run once, tasks neither tiny nor long, equal on all machines."""

from __future__ import annotations

from collections import Counter

import pytest
from sweep_cases import SMALL, changed

from fedlora_sim.sweep.grid import read_grid
from fedlora_sim.sweep.plan import TASK_BYTES, TASK_RUNS, TASK_SECONDS, SweepTask, plan

MANY_POINTS = changed(SMALL, grid={"gain_std": [i / 500 for i in range(500)]})
MANY_SEEDS = changed(SMALL, scenario={"seed": {"count": 20_000}, "rounds": 400})
MATRIX = changed(SMALL, scenario={"fidelity": "matrix", "rounds": 50, "seed": {"count": 200}})
TRAINING = changed(SMALL, scenario={"fidelity": "training"}, grid={"gain_std": None})
LONG = changed(SMALL, scenario={"rounds": 300_000, "seed": {"count": 100}, "ranks": "4x2,64x2"})


def runs(tasks: list[SweepTask]) -> Counter:
    return Counter((p.point.id, s) for task in tasks for p in task.parts for s in p.seeds)


@pytest.mark.slow
@pytest.mark.parametrize("tables", [SMALL, MANY_POINTS, MANY_SEEDS, MATRIX, TRAINING, LONG])
def test_every_run_is_in_one_task(tables: dict) -> None:
    grid = read_grid(tables)
    tasks = plan(grid.rows)
    wanted = Counter((row.point.id, seed) for row in grid.rows for seed in row.seeds)
    assert runs(tasks) == wanted
    assert len({task.id for task in tasks}) == len(tasks)
    assert [task.id for task in tasks] == [task.id for task in plan(read_grid(tables).rows)]
    assert max(task.nbytes for task in tasks) <= 1.1 * TASK_BYTES or all(
        task.runs == 1 for task in tasks
    )
    assert max(task.runs for task in tasks) <= TASK_RUNS


@pytest.mark.parametrize("tables", [MANY_POINTS, MANY_SEEDS, MATRIX])
def test_tasks_take_as_long_as_they_should(tables: dict) -> None:
    tasks = plan(read_grid(tables).rows)
    assert len(tasks) > 1
    assert all(task.seconds > 0.7 * TASK_SECONDS for task in tasks[:-1])
    assert all(task.seconds < 1.1 * TASK_SECONDS for task in tasks)


def test_a_run_that_takes_longer_than_a_task_is_one() -> None:
    tasks = plan(read_grid(changed(SMALL, scenario={"rounds": 3_000_000})).rows)
    assert [task.runs for task in tasks] == [1] * 18


def test_fine_tuning_is_a_task_per_seed() -> None:
    tasks = plan(read_grid(TRAINING).rows)
    assert [task.runs for task in tasks] == [1] * 6


def test_points_are_together_only_where_their_arrays_are_alike() -> None:
    tables = changed(
        SMALL,
        scenario={"rounds": None},
        grid={"rounds": [4, 5], "fidelity": ["spectral", "matrix"]},
    )
    tasks = plan(read_grid(tables).rows)
    assert len(tasks) == 4
    for task in tasks:
        assert len({(p.point.scenario.rounds, p.point.scenario.fidelity) for p in task.parts}) == 1


def test_covered_runs_are_not_planned_again() -> None:
    small, larger = (
        read_grid(changed(SMALL, scenario={"seed": {"count": count}})) for count in (3, 5)
    )
    more = runs(plan(larger.rows, covered=small.runs))
    assert {seed for _, seed in more} == {3, 4}
    assert runs(plan(larger.rows)) == more + runs(plan(small.rows))
