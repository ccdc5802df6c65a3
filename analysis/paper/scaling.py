"""Numbers of the figure on speed and scaling, from the recorded benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analysis.claims.base import RunContext
from analysis.paper.recipe import Recipe
from analysis.paper.store import ROOT

FOLDER = "results/recorded"
SOURCES = tuple(f"{FOLDER}/{name}.json" for name in ("aggregation", "training", "rivals"))
METHODS = ("aggregate", "products", "qr", "dense", "peft")
LANES = ("stacked", "loop")
OURS = "fedlora-sim"
MODEL = 64  # width of the model in the plots of local steps and rounds
KINDS = ("median", "min", "max")
Row = dict[str, Any]


def gather(context: RunContext) -> xr.Dataset:
    """Return the times of an aggregation, of local steps, and of a round in other frameworks.

    Returns:
        `aggregation` (method, width, kind), CPU seconds of one float32 layer; `step` (lane,
        clients, kind), CPU seconds on one thread; `round` (framework, cohort, kind), wall seconds;
        kinds are median, min and max of the repeats. NaN where nothing was measured.
    """
    aggregation, training, rivals = (_bench(path) for path in SOURCES)
    rows = [row for row in aggregation["rows"] if row["dtype"] == "float32"]
    widths = sorted({row["d"] for row in rows})
    by_method = {(r["method"], r["d"]): _times(r, "cpu") for r in rows}
    steps = [r for r in training["rows"] if r["threads"] == 1 and r["d"] == MODEL]
    clients = sorted({row["clients"] for row in steps})
    by_lane = {(r["lane"], r["clients"]): _times(r, "cpu") for r in steps}
    rounds = [r for r in rivals["rows"] if r["d_model"] == MODEL and r["problem"] is None]
    frameworks, cohorts = (
        list(dict.fromkeys(r[key] for r in rounds)) for key in ("lane", "cohort")
    )
    by_framework = {(r["lane"], r["cohort"]): _times(r, "round") for r in rounds}
    return xr.Dataset(
        {
            "aggregation": (("method", "width", "kind"), _table(by_method, METHODS, widths)),
            "step": (("lane", "clients", "kind"), _table(by_lane, LANES, clients)),
            "round": (("framework", "cohort", "kind"), _table(by_framework, frameworks, cohorts)),
        },
        {
            "method": list(METHODS),
            "width": widths,
            "lane": list(LANES),
            "clients": clients,
            "framework": frameworks,
            "cohort": cohorts,
            "kind": list(KINDS),
        },
        {
            "hardware": aggregation["hardware"],
            "torch": aggregation["torch_version"],
            "model_width": MODEL,
            "threads": max(row["threads"] for row in rounds),
            "ours": OURS,
        },
    )


def _bench(path: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / path).read_text(encoding="utf-8")))


def _times(row: Row, clock: str) -> list[float]:
    return [float(row[f"{clock}_{kind}"]) for kind in KINDS]


def _table(
    found: dict[tuple[str, int], list[float]], names: Sequence[str], places: Sequence[int]
) -> np.ndarray:
    unknown = [np.nan] * len(KINDS)
    return np.array([[found.get((name, place), unknown) for place in places] for name in names])


RECIPE = Recipe(
    name="scaling",
    about="Times of aggregation, of local steps and of rounds, from the recorded benchmarks.",
    make=gather,
    settings={"methods": list(METHODS), "lanes": list(LANES), "model_width": MODEL},
    units={
        **dict.fromkeys(("aggregation", "step", "round"), "seconds"),
        "method": "name",
        "width": "rows and columns of the layer",
        "lane": "all clients in one tensor, or one client after the other",
        "clients": "clients",
        "framework": "name",
        "cohort": "clients a round",
        "kind": "of the repeats",
    },
    sources=SOURCES,
)
