"""Where forecasts fail, and what a run's scores come to."""

from __future__ import annotations

from typing import Any

import numpy as np
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


def summarise(scores: xr.Dataset) -> list[dict[str, Any]]:
    """Every run in a few numbers.

    Args:
        scores: what `score` returns.

    Returns:
        One mapping per run: its `seed` and `rule`; for each forecast `error`, the median size of
        the log10 error over layers, partitions and horizons, `total_error`, the same of all layers
        together, and `coverage`; `worst`, the partition and horizon of the theory's largest
        median error and what was found there; means of `leakage`, `angle` and `outside` where its
        intervals `held` and where they `missed`. NaN is None.
    """
    return [_summary(scores.sel(seed=[number])) for number in scores.seed.values]


def _summary(run: xr.Dataset) -> dict[str, Any]:
    row: dict[str, Any] = {"seed": int(run.seed[0]), "rule": run.attrs["rule"]}
    row["reason"] = run.attrs["reason"]
    for name in FORECASTS:
        one = run.sel(forecast=name)
        row[name] = {
            "error": _number(abs(one.error).median()),
            "total_error": _number(abs(one.total_error).median()),
            "coverage": _number(one.covered.mean()),
        }
    table = failures(run).sel(forecast="theory")
    row["worst"] = None
    if bool(table.error.notnull().any()):
        worst = table.isel(table.error.argmax(["partition", "horizon"]))
        names = ("partition", "horizon", *table.data_vars)
        row["worst"] = {str(name): _number(worst[name]) for name in names}
    held = run.covered.sel(forecast="theory")
    for name in CIRCUMSTANCES:
        if name in run:
            values = run[name].broadcast_like(held)
            split = {"held": values.where(held == 1), "missed": values.where(held == 0)}
            row[name] = {key: _number(part.mean()) for key, part in split.items()}
    return row


def _number(value: xr.DataArray) -> float | int | None:
    number = value.item()
    return None if isinstance(number, float) and np.isnan(number) else number
