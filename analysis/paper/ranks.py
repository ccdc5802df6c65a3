"""Sensitivity to the rank configuration: few or many clients of the highest rank."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from analysis import closed_form
from analysis.claims.base import Context, client_arguments, simulated
from analysis.paper.recipe import Recipe, described, stacked
from analysis.paper.store import ROOT
from analysis.stats.intervals import fieller_ratio
from fedlora_sim import Scenario

RULES = ("fedavg", "raflora")
CLIENTS, LOW, HIGH, ROUNDS = 20, 4, 32, 5
SIZES = (1, 2, 3, 5, 7, 10, 13, 16, 18, 19)
RUNS = range(2_000)
CONFIDENCE = 0.95  # of each interval for itself
STUDY = "results/recorded/agnews/study.json"
CONFIGURATIONS = ("few high", "mixed", "many high")


def scenario(size: int) -> Scenario:
    """A federation of two ranks, so many clients of the higher one."""
    return Scenario(
        ranks=(LOW,) * (CLIENTS - size) + (HIGH,) * size,
        rounds=ROUNDS,
        gain_std=0.3,
        spectrum_decay=0.9,
    )


def gather(context: Context, sizes: tuple[int, ...] = SIZES, runs: range = RUNS) -> xr.Dataset:
    """Energy above the lowest rank, over all, by configuration: simulated and of the real run.

    Returns:
        `predicted` (rule, size), ratio of mean energies after the last round; `measured`, `low`,
        `high` (rule, measured_size) the same; `real`, `real_low`, `real_high` (rule, configuration,
        split), of the recorded study.
    """
    rules = {rule: _of(rule, sizes, runs, context) for rule in RULES}
    attrs = described(scenario(1)) | {
        "clients": CLIENTS,
        "low_rank": LOW,
        "high_rank": HIGH,
        "confidence": CONFIDENCE,
    }
    attrs.pop("ranks")  # they are what varies
    found = xr.merge([stacked(rules, "rule"), _real()])
    return found.assign_attrs(attrs, **_study_attrs())


def _of(rule: str, sizes: tuple[int, ...], runs: range, context: Context) -> xr.Dataset:
    every = np.arange(1, CLIENTS)
    predicted = [_predicted(rule, int(size)) for size in every]
    ends = np.array([_measured(rule, size, runs, context) for size in sizes]).T
    names = ("measured", "low", "high")
    return xr.Dataset(
        {
            "predicted": ("size", np.array(predicted)),
            **{n: ("measured_size", v) for n, v in zip(names, ends, strict=True)},
        },
        {"size": every, "measured_size": list(sizes)},
    )


def _predicted(rule: str, size: int) -> float:
    of = scenario(size)
    arguments: dict[str, Any] = client_arguments(of)
    energy = closed_form.energy_trajectory(
        rule, of.ranks, of.rounds, initial_amplitude=of.initial_amplitudes, **arguments
    )[-1]
    return float(energy[LOW:].sum() / energy.sum())


def _measured(rule: str, size: int, runs: range, context: Context) -> tuple[float, float, float]:
    energy = simulated(scenario(size), rule, runs, context).energy.values[:, -1]
    pair = np.stack([energy[:, LOW:].sum(-1), energy.sum(-1)], axis=-1)[:, None]
    m = fieller_ratio(pair, 1 - CONFIDENCE)
    return float(m.value[0]), float(m.low[0]), float(m.high[0])


def _study() -> dict[str, Any]:
    return dict(json.loads((ROOT / STUDY).read_text(encoding="utf-8")))


def _study_attrs() -> dict[str, Any]:
    report = _study()
    study = report["study"]
    seeds = [seed for own in study["seeds"].values() for seed in own]
    return {
        "study": study["name"],
        "study_rounds": study["rounds"],
        "study_runs": max(len(own) for own in study["seeds"].values()),
        "study_first_seed": min(seeds),
        "study_last_seed": max(seeds),
        "study_few": study["rank_configurations"][CONFIGURATIONS[0]],
        "study_many": study["rank_configurations"][CONFIGURATIONS[-1]],
        "study_ranks": study["ranks"],
        "study_confidence": report["confidence"],
    }


def _real() -> xr.Dataset:
    """Energy above the lowest rank at the end of the recorded study's runs."""
    report = _study()
    splits = list(report["study"]["heterogeneity"])
    rows = {(r["rule"], r["configuration"], r["heterogeneity"]): r for r in report["rows"]}
    above = np.full((3, len(RULES), len(CONFIGURATIONS), len(splits)), np.nan)
    for index in np.ndindex(above.shape[1:]):
        rule, configuration, split = (
            names[i] for names, i in zip((RULES, CONFIGURATIONS, splits), index, strict=True)
        )
        row = rows[rule, configuration, split]
        above[(0, *index)] = 1 - row["rho"]
        if row["rho_interval"] is not None:
            above[(1, *index)], above[(2, *index)] = (1 - x for x in row["rho_interval"][::-1])
    dims = ("rule", "configuration", "split")
    names = ("real", "real_low", "real_high")
    return xr.Dataset(
        {n: (dims, v) for n, v in zip(names, above, strict=True)},
        {"rule": list(RULES), "configuration": list(CONFIGURATIONS), "split": splits},
    )


SHARE = "share of the energy above the lowest rank"
RECIPE = Recipe(
    name="ranks",
    about="Energy above the lowest rank by rank configuration: simulated and in real fine-tuning.",
    make=gather,
    settings=described(scenario(1)) | {"sizes": list(SIZES), "rules": list(RULES)},
    units={
        **dict.fromkeys(("predicted", "measured", "low", "high"), SHARE),
        **dict.fromkeys(("real", "real_low", "real_high"), SHARE),
        "rule": "name",
        "size": f"clients of rank {HIGH}, predicted",
        "measured_size": f"clients of rank {HIGH}, measured",
        "configuration": "name",
        "split": "heterogeneity of the data",
    },
    runs=RUNS,
    sources=(STUDY,),
)
