"""Numbers of the figure of forecasts: real energies, and predictions from the first rounds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from analysis.claims.base import RunContext
from analysis.paper.recipe import Recipe
from analysis.paper.store import ROOT
from fedlora_sim.storage import load_dataset

FOLDER = "results/recorded/forecasts"
STUDIES = ("digits", "agnews")
"""Studies with forecasts, in the order of the figure."""


def recorded(folder: Path) -> list[str]:
    """Return the studies whose forecasts are in a folder."""
    return [name for name in STUDIES if (folder / f"{name}.json").exists()]


def load(folder: Path) -> xr.Dataset:
    """Return measured and predicted energies of a folder's studies, see `described`."""
    names = recorded(folder)
    records = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    return described([load_dataset(folder / f"{name}.nc") for name in names], records)


def gather(context: RunContext) -> xr.Dataset:
    """Return measured and predicted energies of the record, see `described`."""
    return load(ROOT / FOLDER)


def described(datasets: Sequence[xr.Dataset], records: Sequence[Mapping[str, Any]]) -> xr.Dataset:
    """Return the first seeds of several studies, with their settings for labels and caption.

    Args:
        datasets: of each study, see `analysis.forecasting.drawn`.
        records: the records of the same studies.

    Returns:
        `measured` (study, rule, partition, round), `predicted` (with `statistic`), `seed` and
        `level` (study, partition), the highest direction of a partition; NaN beyond a study's
        partitions. The settings are attributes.
    """
    parts = []
    for dataset, record in zip(datasets, records, strict=True):
        first = dataset.isel(seed=0).reset_coords("seed")
        levels = sorted(set(record["scenario"]["ranks"]))
        level = xr.DataArray(levels, {"partition": first.partition}, ["partition"])
        parts.append(first.assign(level=level))
    together = xr.concat(parts, "study", data_vars="all", join="outer", combine_attrs="drop")
    together = together.assign_coords(study=[record["study"] for record in records])
    settings = ("calibration_rounds", "confidence", "heterogeneity")
    ranks = {f"ranks_{record['study']}": list(record["scenario"]["ranks"]) for record in records}
    return together.assign_attrs({name: records[0][name] for name in settings} | ranks)


RECIPE = Recipe(
    name="forecasts",
    about="Energies of real runs, and forecasts of the drift laws from the first rounds.",
    make=gather,
    settings={"record": FOLDER},
    units={
        **dict.fromkeys(("measured", "predicted"), "squared amplitude of the update"),
        "level": "highest direction of the partition",
        "seed": "seed of the run",
        "study": "name",
        "rule": "name",
        "round": "rounds",
        "partition": "number, shared by all clients first",
        "statistic": "of the forecast",
    },
    sources=tuple(
        f"{FOLDER}/{name}.{kind}" for name in recorded(ROOT / FOLDER) for kind in ("nc", "json")
    ),
)
