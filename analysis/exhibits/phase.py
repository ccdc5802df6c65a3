"""The phase diagram of training against dilution, for its figure: predicted and measured floors.

Clients of the ranks 1, 2, ..., n give every direction a coverage of its own, from 1 to 1/n: one run
or one closed form answers for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claims.base import Context
from fedlora_sim import Scenario, simulate

Array = NDArray[np.float64]

RULES = ("fedavg", "zero_pad")
TIMES = np.linspace(0.0, 1.6, 81)
FINE = tuple(range(1, 51))
MEASURED_TIMES = np.linspace(0.1, 1.5, 8)
# Below this share of the target a measured amplitude counts as collapsed.
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


def gather(context: Context) -> xr.Dataset:
    """Floors of a direction over its coverage and the local time, in units of the target.

    Predicted ones on a grid, measured ones (amplitude after 40 rounds of plain steps at matrix
    fidelity, one run for every time) at some of its points, and the threshold between the phases.

    Returns:
        `floor` (rule, coverage, local_time), `threshold` (rule, coverage), `measured` (rule,
        measured_coverage, measured_time); coverages fall.
    """
    return xr.Dataset(
        {
            "floor": (("rule", "coverage", "local_time"), _stacked(_floors)),
            "threshold": (("rule", "coverage"), _stacked(_thresholds)),
            "measured": (
                ("rule", "measured_coverage", "measured_time"),
                np.stack([_measured(rule, context) for rule in RULES]),
            ),
        },
        coords={
            "rule": list(RULES),
            "coverage": closed_form.coverage(FINE),
            "local_time": TIMES,
            "measured_coverage": closed_form.coverage(PHASE.ranks),
            "measured_time": MEASURED_TIMES,
        },
        attrs={"seed": context.seed, "collapsed": COLLAPSED, "rounds": PHASE.rounds},
    )


def _stacked(predict: Callable[[str], Array]) -> Array:
    return np.stack([predict(rule) for rule in RULES])


def _floors(rule: str) -> Array:
    target = PHASE.target_amplitude
    floors = [closed_form.flow_floor(rule, FINE, target, float(time)) for time in TIMES]
    return np.stack(floors, axis=-1) / target


def _thresholds(rule: str) -> Array:
    return closed_form.collapse_threshold(rule, FINE, PHASE.target_amplitude)


def _measured(rule: str, context: Context) -> Array:
    amplitudes = []
    for time in MEASURED_TIMES:
        scenario = PHASE.replace(local_time=float(time), device=context.device)
        run = simulate(
            scenario, rule=rule, seed=context.seeds([0]), on_progress=context.on_progress
        )
        amplitudes.append(np.sqrt(run.energy.values[0, -1]))
    return np.stack(amplitudes, axis=-1) / PHASE.target_amplitude
