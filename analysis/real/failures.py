"""Where forecasts fail, and what the scores of many runs come to."""

from __future__ import annotations

from typing import Any

import xarray as xr

from analysis.real.scoring import FORECASTS

CIRCUMSTANCES = ("leakage", "angle", "outside")


def failures(scores: xr.Dataset) -> xr.Dataset:
    """Where forecasts fail, by partition and horizon.

    Args:
        scores: what `score` returns, of any number of runs.

    Returns:
        `error`, the median size of `error` over runs and layers, and `coverage`, the share of
        intervals that hold, both (forecast, partition, horizon); `leakage`, `angle` and `outside`
        in the horizon's rounds, means over runs and layers.
    """
    over = ["seed", "layer"]
    table = {"error": abs(scores.error).median(over), "coverage": scores.covered.mean(over)}
    table |= {name: scores[name].mean(over) for name in CIRCUMSTANCES if name in scores}
    return xr.Dataset(table, attrs=scores.attrs)


def summarise(scores: xr.Dataset) -> dict[str, Any]:
    """All runs of a rule in a few numbers.

    Args:
        scores: what `score` returns, of any number of runs.

    Returns:
        `runs`, how many, and the `reason` where the theory says nothing; for each forecast `error`,
        the median size of the log10 error over runs, layers, partitions and horizons, and
        `coverage` of the intervals, both with their range over runs, `error_range` and
        `coverage_range`; `by_partition`, the theory's coverage in each; `worst`, the partition and
        horizon of the theory's largest median error, with that error; None where it has no error.
        NaN where there is none.
    """
    row: dict[str, Any] = {"runs": scores.sizes["seed"], "reason": scores.attrs["reason"]}
    cells = ("layer", "partition", "horizon")
    for name in FORECASTS:
        one = scores.sel(forecast=name)
        row[name] = {
            "error": float(abs(one.error).median()),
            "error_range": _range(abs(one.error).median(cells)),
            "coverage": float(one.covered.mean()),
            "coverage_range": _range(one.covered.mean(cells)),
        }
    covered = scores.covered.sel(forecast="theory")
    row["by_partition"] = [
        {"partition": int(h), "coverage": float(covered.sel(partition=h).mean())}
        for h in covered.partition
    ]
    return row | {"worst": _worst(failures(scores).error.sel(forecast="theory"))}


def _range(values: xr.DataArray) -> list[float]:
    return [float(values.min()), float(values.max())]


def _worst(error: xr.DataArray) -> dict[str, Any] | None:
    """The cell (partition, horizon) of the largest error."""
    if not bool(error.notnull().any()):
        return None
    cell = error.isel(error.argmax(["partition", "horizon"]))
    place = {name: int(cell[name]) for name in ("partition", "horizon")}
    return place | {"error": float(cell)}
