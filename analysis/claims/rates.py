"""Full participation: one geometric rate per partition, and the bound on the energy ratio."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claim import Claim, Context, Control
from analysis.claims.experiments import fitted_rates
from analysis.claims.names import HIGHER
from analysis.claims.predicted import EXACT, above_shared, per_partition
from analysis.stats.intervals import every_run
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks, simulate
from fedlora_sim.randomness import stream

Array = NDArray[np.float64]

# Three levels, unequal sample counts, a common gain below 1: the rates must still be relative to
# the shared directions, and each partition must show its own.
SAMPLES = (30, 10, 20, 40, 25, 15, 20, 10, 20, 10)
FEDERATION = Scenario(
    ranks=parse_ranks("2x4,4x3,8x3"),
    num_samples=SAMPLES,
    fidelity="matrix",
    rounds=6,  # after more of them rounding would show in the smallest energies
    gain_mean=0.97,
    d_in=48,
    d_out=40,
)
SCALE = 10**9
"""Samples of near controls per sample: shares of data then differ by parts of the margin."""
BOUND_ROUNDS = 40
# Of how much smaller a bound a counterexample must be found.
BOUND_SCALE = 0.05


def _coverage() -> Array:
    coverage = closed_form.coverage(FEDERATION.ranks, FEDERATION.num_samples)
    return above_shared(coverage, FEDERATION)


def _rates(power: float) -> Prediction:
    return Prediction.within(_coverage() ** power, EXACT)


def _single_rate() -> Prediction:
    return Prediction.within(np.full(len(HIGHER), _coverage()[0] ** 2), EXACT)


def random_federation(seed: int) -> Scenario:
    """A federation of 2 to 12 clients with 2 to 4 levels, unequal samples and any spectrum."""
    rng = stream(seed, "random_federation")
    levels = np.sort(rng.choice(np.arange(1, 17), size=rng.integers(2, 5), replace=False))
    ranks = np.concatenate([levels, rng.choice(levels, size=rng.integers(0, 9))])
    return Scenario(
        ranks=tuple(ranks.tolist()),
        num_samples=tuple(rng.integers(1, 100, size=len(ranks)).tolist()),
        rounds=BOUND_ROUNDS,
        spectrum_decay=rng.uniform(0.5, 1.0),
        gain_mean=rng.uniform(0.8, 1.1),
    )


def with_less_data(share: float) -> Scenario:
    """The federation, but its first client, of the lowest rank, lacks this share of all data.

    What all other clients hold grows by this share, and so does the coverage of every partition.
    """
    samples = [SCALE * n for n in SAMPLES]
    samples[0] -= round(share * sum(samples))
    return FEDERATION.replace(num_samples=tuple(samples))


def with_little_data_at_low_ranks() -> Scenario:
    """The federation, but clients of the two lower levels hold 1.5e-9 and 0.7e-9 of the data."""
    samples = [11] * 4 + [7] * 3 + [10 * SCALE] * 3
    return FEDERATION.replace(num_samples=tuple(samples))


def share_of_bound(
    bound_level: int, factor: float, numbers: Sequence[int], context: Context
) -> Array:
    """Largest `(1 - rho(t)) / (C gamma**t)` of all rounds, for one random federation per run.

    Args:
        bound_level: the level, from 0, whose squared coverage is gamma.
        factor: on C.
        numbers: of the runs.
        context: seeds and device.
    """
    shares = []
    for seed in context.seeds(numbers):
        scenario = random_federation(seed)
        energy = scenario.initial_amplitudes**2
        bound = factor * closed_form.collapse_bound(
            scenario.ranks, BOUND_ROUNDS, num_samples=scenario.num_samples, initial_energy=energy
        )
        if bound_level != 1:
            coverage = per_partition(scenario.federation.coverage(), scenario)
            ratio = coverage[bound_level] ** 2 / coverage[1] ** 2
            bound = bound * ratio ** np.arange(BOUND_ROUNDS + 1)
        energies = simulate(scenario, rule="fedavg", seed=seed).energy.values[0]
        # 1 - rho as a ratio of its own: the difference from 1 would drown in rounding.
        high = energies[:, scenario.federation.levels[0] :].sum(-1) / energies.sum(-1)
        shares.append((high / bound).max())
        context.on_progress(1)
    return np.asarray(shares, dtype=np.float64)[:, None]


_COMMON: dict[str, Any] = {
    "assumptions": "full participation, common gain, fixed basis",
    "fidelity": "matrix",
    "statistic": "energy factor per round by log-linear fit, over that of the shared partition",
    "quantities": HIGHER,
    "estimator": every_run,
    "first": 20,
    "cap": 20,
}

CLAIMS = (
    Claim(
        id="staircase",
        statement="Under FedAvg every partition decays at its own rate, its coverage squared.",
        source="arXiv 2602.13486, Sec. 4 and App. A (one rate); ours (one per partition)",
        predict=partial(_rates, 2),
        experiment=fitted_rates(FEDERATION, "fedavg"),
        control=Control("one rate, that of the second level, for all", _single_rate),
        near=Control(
            "a client of the lowest rank lacks 1.7e-9 of all data",
            experiment=fitted_rates(with_less_data(1.7e-9), "fedavg"),
        ),
        **_COMMON,
    ),
    Claim(
        id="zero-pad-fourth-power",
        statement="Averaging zero-padded factors doubles the exponent: coverage to the fourth.",
        source="ours",
        predict=partial(_rates, 4),
        experiment=fitted_rates(FEDERATION, "zero_pad"),
        control=Control("the product-space rate, coverage squared", partial(_rates, 2)),
        near=Control(
            "a client of the lowest rank lacks 0.85e-9 of all data",
            experiment=fitted_rates(with_less_data(0.85e-9), "zero_pad"),
        ),
        **_COMMON,
    ),
    Claim(
        id="raflora-flat",
        statement="Under raFLoRA no partition loses energy against the shared one.",
        source="arXiv 2602.13486, Sec. 5",
        predict=partial(_rates, 0),
        experiment=fitted_rates(FEDERATION, "raflora"),
        control=Control("FedAvg in its place", experiment=fitted_rates(FEDERATION, "fedavg")),
        near=Control(
            "FedAvg where clients of the lower ranks hold 2.2e-9 of all data",
            experiment=fitted_rates(with_little_data_at_low_ranks(), "fedavg"),
        ),
        **_COMMON,
    ),
    Claim(
        id="collapse-bound",
        statement="The share of energy above the shared directions stays below its bound at every "
        "round of every federation: 1 - rho_{l_1}(t) <= C gamma^t, gamma the squared coverage of "
        "the second level and C the energy above the shared directions over theirs at the start.",
        source="arXiv 2602.13486, App. A",
        assumptions=_COMMON["assumptions"],
        fidelity="spectral",
        statistic="largest 1 - rho over its bound of all rounds, of every random federation",
        quantities=("largest share of the bound that is reached",),
        predict=partial(Prediction.at_most, 1 + EXACT, BOUND_SCALE),
        experiment=partial(share_of_bound, 1, 1.0),
        control=Control(
            "gamma of the highest level instead of the second",
            experiment=partial(share_of_bound, -1, 1.0),
        ),
        near=Control("C smaller by 15%", experiment=partial(share_of_bound, 1, 0.85)),
        estimator=every_run,
        first=800,
        cap=800,
        scenario=random_federation,
    ),
)
