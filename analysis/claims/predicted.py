"""From a scenario to arguments of closed forms, and from their values to one per partition."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_sim import Scenario

Array = NDArray[np.float64]

EXACT = 1e-9
"""Relative margin of what holds in every single run, after rounds of factorizations."""
IDENTICAL = 1e-10
"""Largest relative distance between two ways to write one aggregation."""


def federation_arguments(scenario: Scenario) -> dict[str, Any]:
    """Keyword arguments that describe a scenario's federation, cohorts and empty partitions."""
    return {
        "num_samples": scenario.num_samples,
        "cohort_size": scenario.cohort_size,
        "sampling": scenario.sampling,
        "empty_partition": scenario.empty_partition,
    }


def client_arguments(scenario: Scenario) -> dict[str, Any]:
    """Keyword arguments that describe a scenario's clients: what they return is `a x + b`."""
    return {
        "gain_mean": scenario.gain_mean,
        "gain_std": scenario.gain_std,
        "drift_mean": scenario.drift_mean,
        "drift_std": scenario.drift_std,
    }


def per_partition(values: Array, scenario: Scenario) -> Array:
    """One value per partition, from values (..., r_max) that its directions share."""
    return values[..., np.array(scenario.federation.levels) - 1]


def above_shared(values: Array, scenario: Scenario) -> Array:
    """The same without the shared partition, which all clients carry."""
    return per_partition(values, scenario)[..., 1:]


def partition_means(values: Array, scenario: Scenario) -> Array:
    """Mean over the directions of each partition, (..., M) from (..., r_max)."""
    parts = scenario.federation.partitions
    return np.stack([values[..., part].mean(-1) for part in parts], axis=-1)
