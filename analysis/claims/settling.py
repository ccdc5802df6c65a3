"""Claims on the experiment that the paper's public review asks for.

"Report the fraction of energy in successive singular values over rounds, under controlled
heterogeneity, against the predicted speed." It has real factors, sampled cohorts and clients with a
spread of gains; energies are squared singular values of the global update, sorted by the SVD.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claims.base import HIGHER, PARTITIONS, Claim, Control, RunContext, simulated
from analysis.stats.intervals import Measurement, fieller_ratio, root_of_mean
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks

Array = NDArray[np.float64]

SETTLING = Scenario(
    ranks=parse_ranks("2x8,4x6,8x6"),
    fidelity="matrix",
    rounds=4,
    cohort_size=15,
    gain_std=0.4,
    spectrum_decay=0.8,
    empty_partition="zero",
    d_in=16,
    d_out=16,
)
FRACTION_MARGIN, SPEED_MARGIN = 0.05, 0.02
# Near controls: factor on the initial shared directions, and gain of the clients.
STRONGER, GAIN = 1.08, 1.035
FIRST = 8_000
FIGURE_ERROR = 0.01
ROUNDS = range(1, SETTLING.rounds + 1)


def partition_sums(energy: Array) -> Array:
    """Return the energy of each partition, from energies of directions (..., r_max)."""
    starts = (0, *SETTLING.federation.levels[:-1])
    return np.add.reduceat(energy, starts, axis=-1)


def predicted_energy(*, controlled: bool = True, stronger: float = 1.0, gain: float = 1.0) -> Array:
    """Return the predicted mean energy of each round and direction, (T + 1, r_max).

    Args:
        controlled: with the run's cohorts and spread of gains; otherwise with full participation
            and equal clients.
        stronger: factor on the initial amplitudes of the shared directions.
        gain: mean gain of the clients.
    """
    start = SETTLING.initial_amplitudes.copy()
    start[: SETTLING.federation.levels[0]] *= stronger
    scenario = SETTLING if controlled else SETTLING.replace(cohort_size=None, gain_std=0.0)
    return closed_form.energy_trajectory(
        scenario.replace(gain_mean=gain), "fedavg", initial_amplitude=start
    )


def predicted_fractions(**options: Any) -> Array:
    """Return the predicted fraction of energy of each round and higher partition, (T, M - 1).

    Args:
        **options: options of `predicted_energy`.
    """
    energy = partition_sums(predicted_energy(**options))
    return np.asarray((energy / energy.sum(-1, keepdims=True))[1:, 1:])


def run(numbers: Sequence[int], context: RunContext) -> Array:
    """Return energies (n, T + 1, r_max) of the runs with these numbers, cached for all claims."""
    label = f"settling-{numbers[0]}-{numbers[-1]}"
    dataset = context.run_once(label, lambda: simulated(SETTLING, "fedavg", numbers, context))
    return np.asarray(dataset.energy.values)


def fractions(numbers: Sequence[int], context: RunContext) -> Array:
    """Return the energy of each higher partition from round 1 on, and the total.

    Shape (n, T (M - 1), 2).
    """
    energy = partition_sums(run(numbers, context))[:, 1:]
    total = np.broadcast_to(energy.sum(-1, keepdims=True), energy.shape)
    return np.stack([energy, total], axis=-1)[:, :, 1:].reshape(len(energy), -1, 2)


def energy_left(numbers: Sequence[int], context: RunContext) -> Array:
    """Return the final over initial energy of each partition."""
    energy = partition_sums(run(numbers, context))
    return np.asarray(energy[:, -1] / energy[:, 0])


def _fractions(**options: Any) -> Prediction:
    return Prediction.within(predicted_fractions(**options).ravel(), FRACTION_MARGIN)


def predicted_speeds(**options: Any) -> Array:
    """Return `q'_h`, the factor of each partition's mean energy per round; options as above."""
    energy = partition_sums(predicted_energy(**options))
    return np.asarray((energy[-1] / energy[0]) ** (1 / SETTLING.rounds))


def _speeds(**options: Any) -> Prediction:
    return Prediction.within(predicted_speeds(**options), SPEED_MARGIN)


def gather(context: RunContext, count: int | None = None) -> xr.Dataset:
    """Return fractions of energy over rounds and speeds, measured and predicted, for the figure.

    Args:
        context: store of finished runs.
        count: number of runs; None uses those of the claims' first look, which cost nothing.

    Returns:
        `fraction`, `predicted`, `homogeneous` (round, direction); `speed`, `speed_low`,
        `speed_high`, `speed_predicted`, `speed_homogeneous` (level), single intervals at confidence
        1 - `FIGURE_ERROR`.
    """
    if count is None:
        count = FIRST
    numbers = range(count)
    mean = run(numbers, context).mean(0)
    levels = np.array(SETTLING.federation.levels)
    direction = np.arange(1, mean.shape[-1] + 1)
    speed = _estimate_speed(energy_left(numbers, context), FIGURE_ERROR)
    curves = {
        "fraction": mean,
        "predicted": predicted_energy(),
        "homogeneous": predicted_energy(controlled=False),
    }
    level = ("level",)
    return xr.Dataset(
        {
            **{
                name: (("round", "direction"), energy / energy.sum(-1, keepdims=True))
                for name, energy in curves.items()
            },
            "speed": (level, speed.value),
            "speed_low": (level, speed.low),
            "speed_high": (level, speed.high),
            "speed_predicted": (level, predicted_speeds()),
            "speed_homogeneous": (level, predicted_speeds(controlled=False)),
        },
        coords={
            "round": np.arange(SETTLING.rounds + 1),
            "direction": direction,
            "partition": ("direction", 1 + np.searchsorted(levels, direction)),
            "level": levels,
        },
        attrs={"runs": count, "seed": context.seed, "confidence": 1 - FIGURE_ERROR},
    )


def _estimate_speed(samples: Array, error: float) -> Measurement:
    return root_of_mean(SETTLING.rounds)(samples, error)


_COMMON: dict[str, Any] = {
    "source": "public review of arXiv 2602.13486 (experiment asked for); ours (prediction)",
    "assumptions": f"{SETTLING.cohort_size} of {len(SETTLING.ranks)} clients a round, fresh gains "
    f"of mean 1 and spread {SETTLING.gain_std:g}, fixed basis",
    "fidelity": "matrix",
    "first": FIRST,
    "cap": 32_000,
}

CLAIMS = (
    Claim(
        id="review-settling-fractions",
        statement="Under FedAvg the fraction of energy in every higher partition of the singular "
        "values follows its prediction, round by round; the rest is in the shared one.",
        statistic="mean energy of the partition's singular values relative to that of all",
        quantities=tuple(f"round {t}, {name}" for t in ROUNDS for name in HIGHER),
        predict=_fractions,
        experiment=fractions,
        estimator=fieller_ratio,
        control=Control(
            "the fractions for equal clients under full participation",
            partial(_fractions, controlled=False),
        ),
        near=Control(
            f"the fractions for shared directions that start {STRONGER - 1:.0%} stronger",
            partial(_fractions, stronger=STRONGER),
        ),
        **_COMMON,
    ),
    Claim(
        id="review-settling-speed",
        statement="Under FedAvg every partition settles at its own speed, "
        r"$q'_h = \mathrm{E}[W^2] + \nu^2 \mathrm{E}[\sum w^2]$.",
        statistic=f"root of the mean energy left after {SETTLING.rounds} rounds",
        quantities=PARTITIONS,
        predict=_speeds,
        experiment=energy_left,
        estimator=_estimate_speed,
        control=Control(
            "the speeds for equal clients under full participation, coverage squared",
            partial(_speeds, controlled=False),
        ),
        near=Control(
            f"the speeds for clients with a mean gain of {GAIN:g}", partial(_speeds, gain=GAIN)
        ),
        **_COMMON,
    ),
)
