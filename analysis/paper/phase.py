"""Numbers of the figures of floors: the phase diagram, and floors over heterogeneity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claims.base import (
    RunContext,
    energy_series,
    ideal,
    per_partition,
)
from analysis.claims.rates import BURN_IN, NON_IID
from analysis.paper.recipe import Recipe, described, stacked
from analysis.stats.series import stationary_mean
from fedlora_sim import Scenario, simulate

# The phase diagram of training and dilution: predicted and measured floors.
#
# Clients of the ranks 1, 2, ..., n give each direction its own coverage, from 1 to 1/n, so that one
# run or one closed form covers all of them.

Array = NDArray[np.float64]

RULES = ("fedavg", "zero_pad")
TIMES = np.linspace(0.0, 1.6, 81)
MEASURED_TIMES = np.linspace(0.1, 1.5, 8)
# Measured amplitudes below this share of the target count as collapsed.
COLLAPSED = 0.01
PHASE = Scenario(
    ranks=tuple(range(1, 11)),
    fidelity="matrix",
    rounds=40,
    local_loss="quadratic",
    local_steps=40,
    spectrum_decay=0.9,
    d_in=12,
    d_out=12,
)
FINE = ideal(PHASE).replace(ranks=tuple(range(1, 51)))


def gather_phase(context: RunContext) -> xr.Dataset:
    """Return floors of a direction over its coverage and the local time, in units of the target.

    Predicted floors on a grid, measured ones (amplitude after 40 rounds of plain steps at matrix
    fidelity, one run per time) at some of its points, and the threshold between the phases.

    Returns:
        `floor` (rule, coverage, local_time), `threshold` (rule, coverage), `measured` (rule,
        measured_coverage, measured_time); coverages in decreasing order.
    """
    return xr.Dataset(
        {
            "floor": (("rule", "coverage", "local_time"), _stacked(_floors)),
            "threshold": (("rule", "coverage"), _stacked(_thresholds)),
            "measured": (
                ("rule", "measured_coverage", "measured_time"),
                np.stack([_measured_phase(rule, context) for rule in RULES]),
            ),
        },
        coords={
            "rule": list(RULES),
            "coverage": closed_form.coverage(FINE),
            "local_time": TIMES,
            "measured_coverage": closed_form.coverage(PHASE),
            "measured_time": MEASURED_TIMES,
        },
        attrs={"seed": context.seed, "collapsed": COLLAPSED, "rounds": PHASE.rounds},
    )


def _stacked(predict: Callable[[str], Array]) -> Array:
    return np.stack([predict(rule) for rule in RULES])


def _floors(rule: str) -> Array:
    floors = [closed_form.flow_floor(FINE.replace(local_time=float(time)), rule) for time in TIMES]
    return np.stack(floors, axis=-1) / FINE.target_amplitude


def _thresholds(rule: str) -> Array:
    return closed_form.collapse_threshold(FINE, rule)


def _measured_phase(rule: str, context: RunContext) -> Array:
    amplitudes = []
    for time in MEASURED_TIMES:
        scenario = PHASE.replace(local_time=float(time), device=context.device)
        run = simulate(
            scenario, rule=rule, seed=context.seeds([0]), on_progress=context.on_progress
        )
        amplitudes.append(np.sqrt(run.energy.values[0, -1]))
    return np.stack(amplitudes, axis=-1) / PHASE.target_amplitude


# Floors over heterogeneity: the energy at which drift holds each partition

FLOOR_RULES = ("fedavg", "raflora")
FINE_SPREADS = np.linspace(0.0, 0.7, 71)
SPREADS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
FLOOR_RUNS = range(1_000)
CONFIDENCE = 0.95  # of each single interval


def gather_floors(
    context: RunContext, spreads: tuple[float, ...] = SPREADS, runs: range = FLOOR_RUNS
) -> xr.Dataset:
    """Return the stationary energies over the spread of the clients' gains.

    Returns:
        `predicted` (rule, gain_std, partition); `measured`, `low`, `high` (rule, measured_std,
        partition).
    """
    predicted = stacked({rule: _predicted(rule) for rule in FLOOR_RULES}, "rule")
    measured = stacked(
        {rule: _measured(rule, spreads, runs, context) for rule in FLOOR_RULES}, "rule"
    )
    level = ("partition", np.array(NON_IID.federation.levels))
    attrs = described(NON_IID) | {"burn_in": BURN_IN, "confidence": CONFIDENCE}
    attrs.pop("gain_std")  # it varies
    return xr.merge([predicted, measured]).assign_coords(level=level).assign_attrs(attrs)


def _scenario(spread: float) -> Scenario:
    return NON_IID.replace(gain_std=spread)


def _predicted(rule: str) -> xr.Dataset:
    floors = []
    for spread in FINE_SPREADS:
        scenario = _scenario(float(spread))
        floor = closed_form.energy_floor(scenario, rule)
        floors.append(per_partition(floor, scenario))
    dims = ("gain_std", "partition")
    return xr.Dataset({"predicted": (dims, np.array(floors))}, _coords("gain_std", FINE_SPREADS))


def _measured(
    rule: str, spreads: tuple[float, ...], runs: range, context: RunContext
) -> xr.Dataset:
    rows = []
    for spread in spreads:
        samples = energy_series(_scenario(spread), rule)(runs, context)
        m = stationary_mean(BURN_IN)(samples, (1 - CONFIDENCE) * samples.shape[1])
        rows.append((m.value, m.low, m.high))
    values = np.array(rows).transpose(1, 0, 2)
    dims = ("measured_std", "partition")
    data = {n: (dims, v) for n, v in zip(("measured", "low", "high"), values, strict=True)}
    return xr.Dataset(data, _coords("measured_std", np.array(spreads)))


def _coords(name: str, values: np.ndarray) -> dict[str, Any]:
    return {name: values, "partition": np.arange(1, len(NON_IID.federation.levels) + 1)}


ENERGY = "squared amplitude of the update"
FLOORS = Recipe(
    name="floors",
    about="Stationary energy of every partition over the spread of the clients' gains.",
    make=gather_floors,
    settings=described(NON_IID) | {"gain_std": list(SPREADS), "burn_in": BURN_IN},
    units={
        **dict.fromkeys(("predicted", "measured", "low", "high"), ENERGY),
        "rule": "name",
        "gain_std": "deviation of a client's gain, predicted",
        "measured_std": "deviation of a client's gain, measured",
        "partition": "number, shared by all clients first",
        "level": "highest direction of the partition",
    },
    runs=FLOOR_RUNS,
)
