"""Full participation: one geometric rate per partition, and the bound on the energy ratio."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claim import Claim, Context, NegativeControl
from analysis.claims.experiments import fitted_rates
from analysis.claims.names import HIGHER
from analysis.claims.predicted import EXACT, above_shared, per_partition
from analysis.inference.intervals import proportion_interval
from analysis.inference.verdict import Prediction
from fedlora_sim import Scenario, parse_ranks, simulate
from fedlora_sim.randomness import stream

Array = NDArray[np.float64]

# Three levels, unequal sample counts, a common gain below 1: the rates must still be relative to
# the shared directions, and each partition must show its own.
FEDERATION = Scenario(
    ranks=parse_ranks("2x4,4x3,8x3"),
    num_samples=(30, 10, 20, 40, 25, 15, 20, 10, 20, 10),
    fidelity="matrix",
    rounds=12,
    gain_mean=0.97,
    d_in=48,
    d_out=40,
)
BOUND_ROUNDS = 40
HOLDS_AT_LEAST = 0.97


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


def bound_holds(bound_level: int, numbers: Sequence[int], context: Context) -> Array:
    """Whether `1 - rho(t) <= C gamma**t` at every round, for one random federation per run."""
    held = []
    for seed in context.seeds(numbers):
        scenario = random_federation(seed)
        energy = scenario.initial_amplitudes**2
        bound = closed_form.collapse_bound(
            scenario.ranks, BOUND_ROUNDS, num_samples=scenario.num_samples, initial_energy=energy
        )
        if bound_level != 1:
            coverage = per_partition(scenario.federation.coverage(), scenario)
            ratio = coverage[bound_level] ** 2 / coverage[1] ** 2
            bound = bound * ratio ** np.arange(BOUND_ROUNDS + 1)
        energies = simulate(scenario, rule="fedavg", seed=seed).energy.values[0]
        # 1 - rho as a ratio of its own: the difference from 1 would drown in rounding.
        high = energies[:, scenario.federation.levels[0] :].sum(-1) / energies.sum(-1)
        held.append(np.all(high <= bound * (1 + EXACT)))
        context.on_progress(1)
    return np.asarray(held, dtype=np.float64)[:, None]


_COMMON: dict[str, Any] = {
    "assumptions": "full participation, common gain, fixed basis",
    "fidelity": "matrix",
    "statistic": "energy factor per round by log-linear fit, over that of the shared partition",
    "quantities": HIGHER,
}

CLAIMS = (
    Claim(
        id="staircase",
        statement="Under FedAvg every partition decays at its own rate, its coverage squared.",
        source="arXiv 2602.13486, Sec. 4 and App. A (one rate); ours (one per partition)",
        predict=partial(_rates, 2),
        experiment=fitted_rates(FEDERATION, "fedavg"),
        control=NegativeControl("one rate, that of the second level, for all", _single_rate),
        **_COMMON,
    ),
    Claim(
        id="zero-pad-fourth-power",
        statement="Averaging zero-padded factors doubles the exponent: coverage to the fourth.",
        source="ours",
        predict=partial(_rates, 4),
        experiment=fitted_rates(FEDERATION, "zero_pad"),
        control=NegativeControl("the product-space rate, coverage squared", partial(_rates, 2)),
        **_COMMON,
    ),
    Claim(
        id="raflora-flat",
        statement="Under raFLoRA no partition loses energy against the shared one.",
        source="arXiv 2602.13486, Sec. 5",
        predict=partial(_rates, 0),
        experiment=fitted_rates(FEDERATION, "raflora"),
        control=NegativeControl(
            "FedAvg in its place", experiment=fitted_rates(FEDERATION, "fedavg")
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
        statistic="share of random federations whose 1 - rho stays below the bound at every round",
        quantities=("share of random federations in which it holds",),
        predict=partial(Prediction.at_least, HOLDS_AT_LEAST),
        experiment=partial(bound_holds, 1),
        control=NegativeControl(
            "gamma of the highest level instead of the second", experiment=partial(bound_holds, -1)
        ),
        estimator=proportion_interval,
        first=400,
        cap=800,
        quick=(400, 800),
    ),
)
