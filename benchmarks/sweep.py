"""Measure the throughput of sweeps and their overhead per task against a serial loop.

Run as `python -m benchmarks.sweep`; writes results/bench/sweep.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import hardware, side_by_side
from fedlora_sim import simulate
from fedlora_sim.runtime import blas_threads, one_thread
from fedlora_sim.storage import result_file
from fedlora_sim.sweep import open_sweep, read_grid, run_sweep
from fedlora_sim.sweep.grid import Grid
from fedlora_sim.sweep.plan import plan
from fedlora_sim.sweep.run import Engine
from fedlora_sim.sweep.work import task_dataset
from fedlora_sim.version import versions

OUT = Path("results/bench/sweep.json")
FEDERATION = {"ranks": "4x40,8x30,16x30", "cohort_size": 10, "rounds": 200}
RULES = ["fedavg", "raflora"]


def grids(size: int) -> dict[str, Mapping[str, Any]]:
    """Return grids with many seeds, many points, or much work per run."""
    spread = [i / 1000 for i in range(200 * size)]
    small = {"ranks": "4x8,8x6,16x4", "cohort_size": 5, "fidelity": "matrix"}
    return {
        "seeds": {
            "scenario": {**FEDERATION, "seed": {"count": 1500 * size}},
            "grid": {"rule": RULES},
        },
        "points": {
            "scenario": {**FEDERATION, "rounds": 50, "seed": {"count": 5}},
            "grid": {"rule": RULES, "gain_std": spread},
        },
        "matrix": {
            "scenario": {**small, "rounds": 50, "seed": {"count": 30 * size}},
            "grid": {"rule": RULES},
        },
    }


def loop(grid: Grid) -> list[np.ndarray]:
    """Run the loop without sweeps: one call of `simulate` per row, nothing stored on disk."""
    with one_thread(), blas_threads(1):
        return [
            simulate(row.point.scenario, rule=row.point.rule, seed=row.seeds).energy.values
            for row in grid.rows
        ]


def tasks_alone(grid: Grid) -> None:
    """Run the tasks of the sweep without files, driver and display."""
    with one_thread(), blas_threads(1):
        for task in plan(grid.rows):
            task_dataset(task)


def check_equal(grid: Grid, folder: Path) -> float:
    """Return the largest relative difference in norm between a row and that of the loop."""
    run_sweep(grid, folder, progress=False)
    energy = open_sweep(folder).energy.values.reshape(len(grid.rows), -1)
    pairs = zip(energy, loop(grid), strict=True)
    return max(float(np.linalg.norm(a - b.ravel()) / np.linalg.norm(b)) for a, b in pairs)


def measure(name: str, tables: Mapping[str, Any], repeats: int, scratch: Path) -> dict[str, Any]:
    """Check equality, then time the loop, the tasks alone, and sweeps."""
    grid, number = read_grid(tables), count()
    difference = check_equal(grid, scratch / "equal")
    allowed = 0.0 if name != "matrix" else 1e-12
    if difference > allowed:
        raise SystemExit(f"{name}: differs from the loop by {difference:.2e}; not timed")

    def sweep(workers: int) -> None:
        folder = scratch / str(next(number))
        run_sweep(grid, folder, engine=Engine(workers), progress=False)
        shutil.rmtree(folder)

    times = side_by_side(
        {
            "loop": partial(loop, grid),
            "tasks": partial(tasks_alone, grid),
            "serial": partial(sweep, 1),
            "pool": partial(sweep, 2),
        },
        repeats,
    )
    tasks, runs = len(plan(grid.rows)), sum(len(row.seeds) for row in grid.rows)
    seconds = {lane: times[lane]["wall_median"] for lane in times}
    # minimum CPU time: other load on the machine can only add to it
    spent = {lane: times[lane]["cpu_min"] for lane in ("tasks", "serial")}
    row = {
        "grid": name,
        "rows": len(grid.rows),
        "runs": runs,
        "tasks": tasks,
        "largest_difference": difference,
        "overhead_ms_per_task": 1e3 * (spent["serial"] - spent["tasks"]) / tasks,
        "overhead_share": spent["serial"] / spent["tasks"] - 1,
        "runs_per_second": {lane: runs / taken for lane, taken in seconds.items()},
        "times": times,
    }
    print({key: value for key, value in row.items() if key != "times"})
    return row


def main() -> None:
    """Run all grids; the start of the pool is part of the untimed first call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4, help="grids so many times as large")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    write = result_file(options.out, "benchmarks.sweep")
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            measure(name, tables, options.repeats, Path(scratch) / name)
            for name, tables in grids(options.size).items()
        ]
    record = {
        "rows": rows,
        "workers": 2,
        "cores": os.cpu_count(),
        "load_at_end": os.getloadavg()[0],
        "hardware": hardware(),
        **versions(),
    }
    write(json.dumps(record, indent=1) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
