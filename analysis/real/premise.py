"""The premise of the theory on a study's runs: does local training preserve directions?

Direction preservation is the share of a client's update on the singular directions that it started
from, (u_i^T dW v_i)^2 summed over i; 1 where training only rescales them. Principal angles between
the leading subspaces before and after a round are 0 where the basis stays. A subspace that the
update has lost to rounding, before or after, has no angle: NaN. Angles then speak of the other
rounds alone, those of least collapse, and mean little where these are few.

Reference: Wu et al., arXiv 2602.13486, App. A.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analysis.real.comparison import SHARE, replicate_means, with_interval
from analysis.real.study import MIXED, Study

FIRST = 2  # round 1 starts from nothing, which has no directions
SHOWN = ("fedavg", "raflora")
BLOCKS = 3


def premise_rows(study: Study, runs: Mapping[str, xr.Dataset]) -> list[dict[str, Any]]:
    """Preservation and turning of the mixed ranks' runs, by rule and heterogeneity.

    Args:
        study: what was compared.
        runs: its datasets by label.

    Returns:
        One mapping per rule over all heterogeneities (`heterogeneity` None), then one for each of
        them under FedAvg and raFLoRA: `runs`; `preservation` by block of rounds
        (`from`, `to`, the mean over layers and rounds with an interval over replicates of the
        study); `angle` by rank
        `level`, in radians: the `median` over layers, sides, directions, rounds and runs, and that
        of the `largest` angle between two subspaces, both over the cells that have one; `known`,
        the share of cells (layer, round, run) that do; NaN where none does. Empty where there is
        only one round.
    """
    if study.scenario.rounds < FIRST:
        return []
    places: list[tuple[str, str | None]] = [(rule, None) for rule in study.rules]
    places += [
        (rule, name) for rule in SHOWN if rule in study.rules for name in study.heterogeneity
    ]
    rows = []
    for rule, name in places:
        own = {
            (run.heterogeneity, run.seed): runs[run.label]
            for run in study.runs()
            if (run.rule, run.configuration) == (rule, MIXED) and name in (None, run.heterogeneity)
        }
        rows.append({"rule": rule, "heterogeneity": name, **_row(study, own)})
    return rows


def _row(study: Study, by_seed: Mapping[tuple[str, int], xr.Dataset]) -> dict[str, Any]:
    runs = list(by_seed.values())
    rounds = runs[0]["round"].values
    blocks = []
    for part in np.array_split(rounds[rounds >= FIRST], BLOCKS):
        if len(part):
            means = {
                key: float(r.preservation.sel(round=part).mean()) for key, r in by_seed.items()
            }
            ends = {"from": int(part[0]), "to": int(part[-1])}
            samples = replicate_means(study, pd.Series(means))
            blocks.append(ends | with_interval("mean", samples, SHARE))
    angle = xr.concat([run.angle.sel(round=slice(FIRST, None)) for run in runs], "seed")
    angles = [_angle(angle.sel(level=level)) for level in angle.level.values]
    return {"runs": len(runs), "preservation": blocks, "angle": angles}


def _angle(angle: xr.DataArray) -> dict[str, Any]:
    """One level's angles, (seed, round, layer, side, direction), in three numbers."""
    return {
        "level": int(angle.level),
        "known": float(angle.notnull().any(["side", "direction"]).mean()),
        "median": float(angle.median()),
        "largest": float(angle.max("direction").median()),
    }
