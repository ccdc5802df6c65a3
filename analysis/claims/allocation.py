"""Claims on random rank allocation: does it slow or remove the collapse?

A client that receives a uniform random subset of r_k of the r_max directions covers all of them
equally. FedAvg therefore shrinks all directions equally: energy does not concentrate in the shared
ones, but none is preserved either. "Slow" and "remove" may refer to the concentration or to the
loss, which are separate claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claims.base import (
    PARTITIONS,
    Claim,
    Control,
    Experiment,
    RunContext,
    energy_left,
    per_partition,
    simulated,
)
from analysis.stats.intervals import root_of_mean
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks

Array = NDArray[np.float64]

# Flat spectrum, so that shares of energy are shares of directions; coverage 1, 0.6, 0.3 under SVD
# allocation.
SVD = Scenario(ranks=parse_ranks("2x8,4x6,8x6"), rounds=4, spectrum_decay=1.0)
RANDOM = SVD.replace(allocation="random")
# Six clients: few enough that the variance of the carried directions is visible.
FEW = RANDOM.replace(ranks="2x3,4x2,8x1")
MARGIN = 0.02
# Unit of the distance from a one-sided bound: a share of the bound.
SCALE = 0.05
# Near controls: gain of clients, and the amount by which they leave less energy than the bound.
GAIN, HIGHER_GAIN, NEAR_SHARE = 1.035, 1.09, 0.17


def total_left(scenario: Scenario) -> Experiment:
    """Return the final over initial energy of the whole update."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        energy = simulated(scenario, "fedavg", numbers, context).energy.sum("direction").values
        return (energy[:, -1] / energy[:, 0])[:, None]

    return experiment


def concentration(scenario: Scenario) -> Experiment:
    """Return `rho_{l_1}` after the last round: the share of energy in the shared partition."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        return simulated(scenario, "fedavg", numbers, context).rho.values[:, -1:]

    return experiment


def top_left(numbers: Sequence[int], context: RunContext) -> Array:
    """Return the final over initial energy of the highest partition, under random allocation."""
    return energy_left(RANDOM, "fedavg", numbers, context)[:, -1:]


def _shared_directions() -> float:
    return SVD.federation.levels[0] / SVD.federation.r_max


def _rates(scenario: Scenario) -> Array:
    rate = closed_form.energy_rate(scenario, "fedavg")
    return per_partition(rate, scenario)


def _rate_of_svd(partition: int) -> Prediction:
    return _bound(_rates(SVD)[partition])


def _bound(rate: float) -> Prediction:
    return Prediction.at_least(rate, SCALE * rate)


def _rate(scenario: Scenario) -> Prediction:
    return Prediction.within(_rates(scenario), MARGIN)


def _squared_mean_coverage() -> Prediction:
    coverage = per_partition(FEW.federation.coverage("random"), FEW)
    return Prediction.within(coverage**2, MARGIN)


def _svd_total() -> Array:
    energy = closed_form.energy_trajectory(SVD, "fedavg").sum(axis=1)
    return np.atleast_1d(energy[-1] / energy[0])


def _near_gain(scenario: Scenario) -> Control:
    return Control(
        f"clients with a gain of {GAIN:g}",
        experiment=partial(energy_left, scenario.replace(gain_mean=GAIN), "fedavg"),
    )


def _leaving(share: float) -> Control:
    """Return random allocation to clients whose gain leaves this share of all energy."""
    gain = float(share ** (0.5 / RANDOM.rounds) / np.sqrt(_rates(RANDOM)[0]))
    return Control(
        f"clients with a gain of {gain:.4g}, which leaves {share:.3g} of the energy",
        experiment=total_left(RANDOM.replace(gain_mean=gain)),
    )


_COMMON: dict[str, Any] = {
    "source": "public review of arXiv 2602.13486 (conjecture); ours (its parts)",
    "assumptions": "full participation, equal samples, common gain, fixed basis, fresh subsets",
    "fidelity": "spectral",
    "first": 2_000,
    "cap": 32_000,
}
_RATES: dict[str, Any] = {
    "statistic": "root of the mean energy left after the last round",
    "quantities": PARTITIONS,
    "estimator": root_of_mean(SVD.rounds),
    **_COMMON,
}
_TOTAL: dict[str, Any] = {
    "quantities": (f"share of the energy left after {SVD.rounds} rounds",),
    "statistic": "final over initial energy of the whole update",
    **_COMMON,
}
_SHARED: dict[str, Any] = {
    "quantities": (rf"$\rho_2$ after {SVD.rounds} rounds",),
    "statistic": "share of energy in the shared partition, of a spectrum that starts flat",
    **_COMMON,
}

CLAIMS = (
    Claim(
        id="random-allocation-rate",
        statement="Under random allocation FedAvg shrinks every partition at one rate, the shared "
        r"one included: $\mathrm{E}[W^2]$ of random coverage.",
        predict=partial(_rate, RANDOM),
        experiment=partial(energy_left, RANDOM, "fedavg"),
        control=Control("the staircase of SVD allocation", partial(_rate, SVD)),
        near=_near_gain(RANDOM),
        **_RATES,
    ),
    Claim(
        id="random-allocation-variance",
        statement="Under random allocation FedAvg's rate exceeds the squared mean coverage by the "
        "variance of the random coverage.",
        predict=partial(_rate, FEW),
        experiment=partial(energy_left, FEW, "fedavg"),
        control=Control("the squared mean coverage", _squared_mean_coverage),
        near=_near_gain(FEW),
        **_RATES,
    ),
    Claim(
        id="review-random-concentration",
        statement="Random allocation removes the concentration of energy in the shared directions.",
        predict=partial(Prediction.within, _shared_directions(), MARGIN),
        experiment=concentration(RANDOM),
        control=Control("SVD allocation", experiment=concentration(SVD)),
        near=Control(
            "a spectrum that falls by 1.2% per direction",
            experiment=concentration(RANDOM.replace(spectrum_decay=0.988)),
        ),
        kind="conjecture",
        **_SHARED,
    ),
    Claim(
        id="review-random-removes-loss",
        statement="Random allocation removes the loss of energy.",
        predict=partial(Prediction.at_least, 1.0, SCALE),
        experiment=total_left(RANDOM),
        control=Control("SVD allocation", experiment=total_left(SVD)),
        near=_leaving(1 - NEAR_SHARE),
        positive=_leaving(1 + NEAR_SHARE),
        kind="conjecture",
        **_TOTAL,
    ),
    Claim(
        id="review-random-slows-loss",
        statement="Random allocation at least slows the loss of energy of the whole update.",
        predict=lambda: Prediction.at_least(_svd_total(), SCALE * _svd_total()),
        experiment=total_left(RANDOM),
        control=Control(
            "raFLoRA's total under SVD allocation as the bound", partial(Prediction.at_least, 1.0)
        ),
        near=_leaving((1 - NEAR_SHARE) * float(_svd_total()[0])),
        positive=_leaving((1 + NEAR_SHARE) * float(_svd_total()[0])),
        kind="conjecture",
        **_TOTAL,
    ),
    Claim(
        id="review-random-highest",
        statement="Random allocation slows the loss of the highest partition.",
        statistic="root of the mean energy left after the last round",
        quantities=("energy rate of the highest partition",),
        predict=partial(_rate_of_svd, -1),
        experiment=top_left,
        control=Control("the rate of the shared partition as the bound", partial(_rate_of_svd, 0)),
        near=Control(
            f"the rate of random allocation to clients with a gain of {HIGHER_GAIN:g} as the bound",
            lambda: _bound(_rates(RANDOM)[-1] * HIGHER_GAIN**2),
        ),
        estimator=root_of_mean(SVD.rounds),
        kind="conjecture",
        **_COMMON,
    ),
)
