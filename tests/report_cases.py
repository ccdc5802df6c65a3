"""Entries of a small report."""

from __future__ import annotations

from typing import Any

import pytest


def claim_entry(name: str, **changes: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": name,
        "theme": "Some theme",
        "statement": f"What {name} states.",
        "source": "ours",
        "kind": "theorem",
        "assumptions": "none",
        "fidelity": "spectral",
        "statistic": "energy factor per round",
        "quantities": ["partition 2", "partition 3"],
        "prediction": [0.25, 0.04],
        "margin": "±2%",
        "measurement": [0.2511, 0.0401],
        "interval": [[0.2501, 0.2521], [0.0399, 0.0403]],
        "confidence": 0.9975,
        "p_value": 3.21e-4,
        "p_holm": 6.42e-3,
        "runs": 8000,
        "verdict": "supported",
        "reason": "",
        "negative_control": {"description": "something wrong", "verdict": "refuted"},
        "near_control": {
            "description": "slightly wrong",
            "verdict": "refuted",
            "distance": [3.118, 4.0],
        },
        "seconds": 1.25,
    }
    return {**entry, **changes}


def digits_row(run: str, accuracy: float) -> dict[str, Any]:
    return {
        "run": run,
        "ranks": "2x6,16x2",
        "rule": "fedavg",
        "learning_rate": 0.005,
        "rounds": 30,
        "local_steps": 10,
        "runs": 3,
        "accuracy": accuracy,
        "accuracy_interval": [accuracy - 0.01, accuracy + 0.01],
        "rho": 0.99,
        "rho_interval": [0.98, 1.0],
        "effective_rank": 2.5,
        "effective_rank_interval": [2.0, 3.0],
    }


@pytest.fixture
def report() -> dict[str, Any]:
    """Return claims of every verdict, those that the figures draw among them, and a digits run."""
    three = {
        "quantities": ["partition 1", "partition 2", "partition 3"],
        "prediction": [0.5, 0.25, 0.04],
        "measurement": [0.5, 0.25, 0.04],
        "interval": [[0.4, 0.6], [0.2, 0.3], [0.03, 0.05]],
    }
    wrong, unclear = {"verdict": "refuted"}, {"verdict": "undecided", "reason": "a vacuous control"}
    return {
        "claims": [
            claim_entry("staircase"),
            claim_entry("zero-pad-fourth-power", **wrong),
            claim_entry("raflora-flat", **unclear),
            claim_entry("floor-fedavg", **three),
            claim_entry("floor-raflora", kind="conjecture", **three),
        ],
        "families": {
            "theorem": {"claims": 20, "run": 4, "error": 0.05},
            "conjecture": {"claims": 5, "run": 1, "error": 0.05},
        },
        "environment": {"seed": 0, "quick": False, "cores": 2, "torch_version": "2.13.0"},
        "seconds": 90,
        "digits": [digits_row("fedavg", 0.75), digits_row("raflora", 0.86)],
    }
