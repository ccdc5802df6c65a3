"""A small report and small data of a study."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

RULES = ["fedavg", "raflora", "raflora:canonicalize=true"]
SPLITS = ["mild", "harsh"]
ROUNDS = 6


def outcome(split: str, configuration: str, rule: str, accuracy: float) -> dict[str, Any]:
    row = {"heterogeneity": split, "configuration": configuration, "rule": rule, "runs": 3}
    for name, value in {"accuracy": accuracy, "rho": 0.75, "effective_rank": 2.5}.items():
        row |= {name: value, f"{name}_interval": [value - 0.02, value + 0.02]}
    row |= {"preservation": 0.9, "preservation_interval": None, "megabytes": 1.5}
    return row | {"rounds_to_target": 4.0, "reached_target": 2}


def claim(verdict: str) -> dict[str, Any]:
    return {
        **{"id": "collapse", "statement": "It collapses.", "quantity": "energy"},
        **{"runs": 6, "replicates": 3},
        **{"prediction": -1.0, "margin": "at most", "measurement": -2.0, "verdict": verdict},
        **{"interval": [-2.5, -1.5], "confidence": 0.9875},
        "negative_control": {"description": "the other rule", "verdict": "refuted"},
    }


def study_report(**changes: Any) -> dict[str, Any]:
    rows = []
    for split in SPLITS:
        rows += [outcome(split, "mixed", r, 0.5 + 0.1 * i) for i, r in enumerate(RULES)]
        rows += [outcome(split, "equal_lowest", "fedavg", 0.4)]
        rows += [outcome(split, "equal_highest", "fedavg", 0.9)]
    study = {
        **{"name": "small", "about": "Made up.", "complete": True, "runs": 30, "rounds": ROUNDS},
        **{"ranks": [2, 2, 4, 4], "levels": [2, 4], "rules": RULES},
        "heterogeneity": {name: {} for name in SPLITS},
        "seeds": {"mild": [0, 1, 2], "harsh": [3, 4, 5]},
    }
    return {
        **{"study": study, "command": "fedlora-sim study small.toml", "confidence": 0.95},
        **{"rows": rows, "claims": [claim("supported")]},
        "left_out": [{"id": "robustness", "statement": "It is robust.", "reason": "no runs"}],
        **{"counterfactuals": [], "premise": []},
        **changes,
    }


def made_up_curves(runs: int = 3) -> xr.Dataset:
    rng, dims = np.random.default_rng(0), ("heterogeneity", "rule", "run", "round")
    size = (len(SPLITS), len(RULES), runs, ROUNDS + 1)
    names = ("accuracy", "rho", "effective_rank", "preservation")
    data = xr.Dataset({name: (dims, rng.uniform(0.2, 0.9, size)) for name in names})
    data = data.assign_coords(heterogeneity=SPLITS, rule=RULES, round=np.arange(ROUNDS + 1))
    judged = data["round"] % 2 == 0
    return data.assign(accuracy=data.accuracy.where(judged), rho=data.rho.where(data["round"] > 0))
