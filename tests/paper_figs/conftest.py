"""A small report and small datasets."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from figure_cases import coarse_figures  # noqa: F401 - a fixture
from report_cases import report  # noqa: F401 - a fixture

from analysis.paper.energies import ENERGY_RULES
from fedlora_sim import Scenario
from fedlora_sim.datasets import build_dataset
from paper_figs import finetuning as digits_figure


@pytest.fixture
def energies() -> xr.Dataset:
    """Save artificial energies of every rule, with a prediction."""
    scenario, rng = Scenario("1x2,2x2,4x2", rounds=3), np.random.default_rng(0)
    runs = []
    for rule in ENERGY_RULES:
        run = build_dataset(scenario, rule, (0, 1), rng.uniform(0.1, 1.0, (2, 4, 4)))
        run["predicted_energy"] = (("round", "direction"), rng.uniform(0.1, 1.0, (4, 4)))
        runs.append(run.expand_dims(rule=[rule]))
    return xr.concat(runs, dim="rule", combine_attrs="drop_conflicts")


@pytest.fixture
def digits_runs() -> xr.Dataset:
    """Save artificial energy ratios and accuracies of the figure's runs."""
    rng = np.random.default_rng(1)
    size = (len(digits_figure.LOOK), 2, 4)
    dims = ("run", "seed", "round")
    return xr.Dataset(
        {name: (dims, rng.uniform(0.5, 1.0, size)) for name in ("rho", "accuracy")},
        coords={"run": list(digits_figure.LOOK), "seed": [0, 1], "round": np.arange(4)},
    )
