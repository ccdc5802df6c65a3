"""Grids and helpers of the tests of sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fedlora_sim.sweep.run import Engine, SweepReport, run_sweep

QUICK = 0.0075
"""Estimated seconds of a task, so that a sweep has many small tasks."""
Tables = dict[str, dict[str, Any]]

SMALL: Tables = {
    "scenario": {"ranks": "2x2,4x2", "rounds": 5, "seed": {"count": 3}},
    "grid": {"rule": ["fedavg", "raflora"], "gain_std": [0.0, 0.1, 0.2]},
}


def changed(tables: Tables, **changes: dict[str, Any]) -> Tables:
    """Return tables with fields added to or replaced in them; None takes a field away."""
    found = {name: dict(table) for name, table in tables.items()}
    for name, table in changes.items():
        found[name] = {k: v for k, v in {**found.get(name, {}), **table}.items() if v is not None}
    return found


def swept(
    tables: Tables, out: Path, *, engine: Engine | None = None, seconds: float = QUICK, **more: Any
) -> SweepReport:
    """Run a sweep silently in many small tasks."""
    return run_sweep(tables, out, engine=engine, task_seconds=seconds, progress=False, **more)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every task's file, by name."""
    return {path.name: path.read_bytes() for path in sorted((folder / "tasks").iterdir())}


def assert_same_bits(one: xr.Dataset, other: xr.Dataset) -> None:
    """Check for equal bits of values and equal labels."""
    assert set(one.variables) == set(other.variables)
    for name in one.variables:
        assert one[name].dims == other[name].dims
        np.testing.assert_array_equal(one[name].values, other[name].values)
