"""Claims on the limits of the theory: deviation of rates as its assumptions are violated.

Three sweeps start where the theory holds and end where it does not. The rate is the energy factor
per round of a partition relative to the shared one, by log-linear fit over the first rounds, in
which the highest partition falls by four orders of magnitude. Its prediction is the same fit to the
predicted energies. The regions of a sweep were determined on development seeds below 10, and fixed
with slack, before any recorded run:

- `drift`: every round rotates each singular vector of each client's update by an angle. Energy that
  the shared directions lose by this spreads over the space and supports the small ones. Deviations
  were 0.5% at 0.1 rad, 2.5% at 0.15 and 8% at 0.2. They grow with the number of fitted rounds, as
  energies approach this support: over 6 rounds instead of 4, 2% at 0.05 and 24% at 0.1.
- `steps`: clients fit targets that are rotated against each other by a fixed angle of 0.4 rad, with
  an increasing number of steps of one size. Each client moves towards its own directions, and the
  average loses what they do not share. Deviations were 0.5% at 3 steps, 2.6% at 10, 8% at 20, 12.5%
  at 40. If clients reach their targets every round the deviation vanishes, because then only
  weights matter.
- `adam`: clients fit the common target by Adam instead of plain steps. Its steps have the length of
  the learning rate for any gradient, so that small amplitudes are not multiplied by `exp(2 M T)`
  but rebuilt. The theory holds only without training (0.7% at a local time of 0.0001, 6.6% at
  0.001).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claims.base import (
    HIGHER,
    Claim,
    Control,
    RunContext,
    by_partition,
    ideal,
    partition_means,
    simulated,
)
from analysis.stats.intervals import mean_interval, median_interval
from analysis.stats.series import log_linear_rate
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks

Array = NDArray[np.float64]

AFFINE = Scenario(
    ranks=parse_ranks("2x8,4x6,8x6"),
    fidelity="matrix",
    rounds=4,
    d_in=32,
    d_out=32,
)
# Already learned, so that the shared directions stay constant and the others fall.
FITTING = AFFINE.replace(local_loss="quadratic", target_decay=AFFINE.spectrum_decay)
STEP = 0.02
TARGET_ANGLE = 0.4
ADAM_STEPS = 10
# Enough steps that plain descent follows the flow.
PLAIN_STEPS = 100
TOLERANCE = 0.05
# Local time short enough that plain steps let both partitions collapse, and twice that; rounds
# until the amplitudes are constant, and rounds over which they are measured.
SHORT_TIMES = (0.002, 0.004)
HELD_ROUNDS, HELD_FROM = 36, 26
EXPONENT_MARGIN = 0.05
FIGURE_RUNS, FIGURE_ERROR = 24, 0.01
# Near controls: samples of the lowest rank's clients relative to the others', and the factor on the
# second of two local times.
MORE_SAMPLES = 1.2
LONGER = 1.12


@dataclass(frozen=True)
class Sweep:
    """One assumption, violated step by step.

    Args:
        label: the varied parameter with its unit.
        values: values of the parameter, ascending.
        inside: number of first values in the region where the theory holds; 0 if there are none.
        outside: index of the value that the negative control uses.
        scenarios: one per value.
    """

    label: str
    values: tuple[float, ...]
    inside: int
    outside: int
    scenarios: tuple[Scenario, ...]


ANGLES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
STEPS = (1, 2, 5, 10, 20, 40, 80, 160)
TIMES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
# The usual local times of Adam: from one at which training is visible under plain steps.
USUAL = 4

SWEEPS = {
    "drift": Sweep(
        "angle of the basis, rad per round",
        ANGLES,
        3,
        6,
        tuple(AFFINE.replace(basis_drift=angle) for angle in ANGLES),
    ),
    "steps": Sweep(
        "local steps",
        STEPS,
        4,
        5,
        tuple(
            FITTING.replace(target_angle=TARGET_ANGLE, local_steps=n, local_time=STEP * n)
            for n in STEPS
        ),
    ),
    "adam": Sweep(
        "local time under Adam",
        TIMES,
        0,
        7,
        tuple(
            FITTING.replace(optimizer="adam", local_steps=ADAM_STEPS, local_time=time)
            for time in TIMES
        ),
    ),
}


def predicted_rates(scenario: Scenario, more_samples: float = 1.0) -> Array:
    """Return the fitted rates of the predicted energies relative to the shared partition.

    Args:
        scenario: the scenario.
        more_samples: samples of a client of the lowest rank relative to those of another one.
    """
    lowest = min(scenario.ranks)
    samples = [more_samples if rank == lowest else 1.0 for rank in scenario.ranks]
    covered = ideal(scenario).replace(num_samples=samples)
    if scenario.local_loss == "none":
        energy = closed_form.energy_trajectory(covered, "fedavg")
    else:
        energy = closed_form.flow_trajectory(covered, "fedavg") ** 2
    return _relative_rates(partition_means(energy, scenario).T)


def _relative_rates(energy: Array) -> Array:
    rates = log_linear_rate(energy)
    return np.asarray(rates[..., 1:] / rates[..., :1])


def deviation(
    name: str,
    points: Sequence[int],
    numbers: Sequence[int],
    context: RunContext,
    *,
    more_samples: float = 1.0,
    plain: bool = False,
) -> Array:
    """Return `|measured / predicted - 1|` of partitions 2 and 3 at points of a sweep, per run.

    Args:
        name: name of the sweep.
        points: indices of its values.
        numbers: numbers of the runs.
        context: seeds and device.
        more_samples: argument of the prediction, see `predicted_rates`.
        plain: let clients take `PLAIN_STEPS` plain steps instead of those of the sweep.
    """
    columns = []
    for point in points:
        scenario = SWEEPS[name].scenarios[point]
        if plain:
            scenario = scenario.replace(optimizer="sgd", local_steps=PLAIN_STEPS)
        kind = f"{name}-plain" if plain else name
        label = f"breakdown-{kind}-{point}-{numbers[0]}-{numbers[-1]}"
        run = context.run_once(label, partial(simulated, scenario, "fedavg", numbers, context))
        energy = by_partition(run.energy).transpose("seed", "partition", "round").values
        predicted = predicted_rates(scenario, more_samples)
        columns.append(np.abs(_relative_rates(energy) / predicted - 1))
    return np.concatenate(columns, axis=1)


def held_exponent(
    optimizer: str, numbers: Sequence[int], context: RunContext, longer: float = 1.0
) -> Array:
    """Return the exponent of the late amplitudes of partitions 2 and 3 in the local time.

    Args:
        optimizer: optimizer of the clients.
        numbers: numbers of the runs.
        context: seeds and device.
        longer: factor on the second local time that the exponent does not account for.
    """
    levels = []
    for time in (SHORT_TIMES[0], longer * SHORT_TIMES[1]):
        scenario = FITTING.replace(
            optimizer=optimizer, local_steps=ADAM_STEPS, local_time=time, rounds=HELD_ROUNDS
        )
        energy = by_partition(simulated(scenario, "fedavg", numbers, context).energy).values
        levels.append(np.sqrt(energy[:, HELD_FROM:, 1:]).mean(axis=1))
    low, high = levels
    return np.asarray(np.log(high / low) / np.log(SHORT_TIMES[1] / SHORT_TIMES[0]))


def gather(context: RunContext, count: int = FIGURE_RUNS) -> xr.Dataset:
    """Return the three curves for the figure.

    Args:
        context: store of finished runs; points of a claim's first look cost nothing.
        count: runs per point.

    Returns:
        `deviation`, `low`, `high` (sweep, point, partition), single intervals at confidence 1 -
        `FIGURE_ERROR`; `value` (sweep, point), the varied parameter; `inside` and `label` (sweep).
    """
    estimates = []
    for name, sweep in SWEEPS.items():
        points = range(len(sweep.values))
        samples = deviation(name, points, range(count), context)
        m = mean_interval(samples, FIGURE_ERROR * samples.shape[1])
        ends = (m.value, np.maximum(m.low, 0.0), m.high)
        estimates.append([end.reshape(len(points), -1) for end in ends])
    dims = ("sweep", "point", "partition")
    return xr.Dataset(
        {
            **{
                name: (dims, np.stack([estimate[i] for estimate in estimates]))
                for i, name in enumerate(("deviation", "low", "high"))
            },
            "value": (dims[:2], [sweep.values for sweep in SWEEPS.values()]),
            "inside": (dims[:1], [sweep.inside for sweep in SWEEPS.values()]),
            "label": (dims[:1], [sweep.label for sweep in SWEEPS.values()]),
        },
        coords={"sweep": list(SWEEPS), "partition": [2, 3]},
        attrs={"runs": count, "seed": context.seed, "tolerance": TOLERANCE},
    )


def _quantities(name: str, points: Sequence[int]) -> tuple[str, ...]:
    sweep = SWEEPS[name]
    return tuple(
        f"{sweep.label} {sweep.values[point]:g}, {partition}"
        for point in points
        for partition in HIGHER
    )


def _within_tolerance(count: int) -> Prediction:
    return Prediction.near(np.zeros(count), TOLERANCE)


def _region(name: str, points: Sequence[int], outside: str, *, plain: bool) -> dict[str, Any]:
    """Return the common fields of the claims on a sweep's region.

    Args:
        name: name of the sweep.
        points: indices of the values in the region.
        outside: text on the negative control.
        plain: let the clients of the near control take plain steps, because rates that deviate for
            another reason have no near control.
    """
    wrong = [SWEEPS[name].outside] * len(points)
    quantities = _quantities(name, points)
    instead = "plain steps, and " if plain else ""
    return {
        "source": "ours",
        "fidelity": "matrix",
        "statistic": r"$\lvert \text{measured} / \text{predicted} - 1 \rvert$ of the energy rate "
        f"relative to the shared partition, fitted over {AFFINE.rounds} rounds, median of runs",
        "quantities": quantities,
        "predict": partial(_within_tolerance, len(quantities)),
        "experiment": partial(deviation, name, points),
        "control": Control(outside, experiment=partial(deviation, name, wrong)),
        "near": Control(
            f"{instead}rates of low-rank clients with {MORE_SAMPLES - 1:.0%} more samples",
            experiment=partial(deviation, name, points, more_samples=MORE_SAMPLES, plain=plain),
        ),
        "estimator": median_interval,
        "first": FIGURE_RUNS,
        "cap": 48,
    }


CLAIMS = (
    Claim(
        id="breakdown-drift",
        statement="The staircase of rates holds within 5%, over four decades of the highest "
        "partition's energy, while updates rotate by up to 0.1 rad per round.",
        assumptions="full participation, common gain; the basis of every update rotated at random",
        **_region("drift", range(SWEEPS["drift"].inside), "an angle of 0.3 rad", plain=False),
    ),
    Claim(
        id="breakdown-steps",
        statement="With targets rotated by 0.4 rad against each other the predicted rates hold "
        f"within 5% up to 10 local steps of {STEP:g}.",
        assumptions="full participation, quadratic loss, plain steps; targets rotated at random",
        **_region("steps", range(SWEEPS["steps"].inside), "40 steps", plain=False),
    ),
    Claim(
        id="breakdown-adam",
        statement="The rates of gradient flow hold within 5% when clients train by Adam.",
        assumptions=f"full participation, quadratic loss, {ADAM_STEPS} steps of Adam a round, "
        "common target",
        kind="conjecture",
        in_quick=False,
        positive=Control(
            f"{PLAIN_STEPS} plain steps instead of Adam's",
            experiment=partial(deviation, "adam", range(USUAL, len(TIMES)), plain=True),
        ),
        **_region("adam", range(USUAL, len(TIMES)), "the longest training only", plain=True),
    ),
    Claim(
        id="adam-floor",
        statement="Under Adam no training is too short: partitions that collapse under plain steps "
        "are held, at amplitudes that grow with the square of the local time.",
        source="ours, by dimensions: a step of Adam is as long as its rate in every entry of $A$ "
        "and $B$, for any gradient",
        assumptions=f"full participation, quadratic loss, {ADAM_STEPS} steps of Adam a round, "
        "common target, local times far below the threshold",
        fidelity="matrix",
        statistic=f"power of the local time, from {SHORT_TIMES[0]:g} to {SHORT_TIMES[1]:g}, with "
        f"which the mean amplitude of rounds {HELD_FROM} to {HELD_ROUNDS} grows",
        quantities=HIGHER,
        predict=partial(Prediction.within, [2.0] * len(HIGHER), EXPONENT_MARGIN),
        experiment=partial(held_exponent, "adam"),
        control=Control("plain steps", experiment=partial(held_exponent, "sgd")),
        near=Control(
            f"the second local time {LONGER - 1:.0%} longer",
            experiment=partial(held_exponent, "adam", longer=LONGER),
        ),
        estimator=median_interval,
        first=FIGURE_RUNS,
        cap=48,
        kind="conjecture",
    ),
)
