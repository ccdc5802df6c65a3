"""Scenarios of local training, for tests that train a cohort without a federation."""

from __future__ import annotations

from typing import Any

from fedlora_sim import Scenario


def local_training(optimizer: str = "adam", learning_rate: float = 5e-3, **fields: Any) -> Scenario:
    """Return a scenario with `local_steps`, or with `local_epochs` if given."""
    if "local_epochs" in fields:
        fields = {"local_steps": None, **fields}
    rates = {"optimizer": optimizer, "learning_rate": learning_rate}
    return Scenario("1", fidelity="training", **rates, **fields)
