"""Claims on other rules, different clients and noise: measurements checked by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from analysis import closed_form
from analysis.claims import heterogeneity, identities, noise, other_rules, select
from analysis.claims.base import RunContext, per_partition
from analysis.claims.verify import run_claim
from analysis.stats.verdicts import Prediction
from fedlora_sim.engines.cohort_draws import cohort_counts
from fedlora_sim.tolerances import relative

CLOSE = relative("iteration")
CONTEXT = RunContext(quick=True, seed=5)
RUNS = range(3)
MODULES = (other_rules, heterogeneity, noise)

pytestmark = pytest.mark.usefixtures("one_thread")


def by_id(name: str):
    (claim,) = select([name])
    return claim


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.split(".")[-1])
def test_claims_are_registered(module) -> None:
    groups = [claims for name, claims in vars(module).items() if name.endswith("CLAIMS")]
    assert groups
    for claims in groups:
        ids = [claim.id for claim in claims]
        assert [claim.id for claim in select(ids)] == ids


def test_flora_is_measured_by_direction_not_by_place_in_the_spectrum() -> None:
    # With a common gain below 1 the shared directions lose most, and the order of values changes.
    g, coverage = other_rules.LOSSY.gain_mean, other_rules._coverage(other_rules.LOSSY)
    rates = other_rules.own_rates(other_rules.LOSSY, "flora")(RUNS, CONTEXT)
    assert rates == pytest.approx(np.tile((1 - coverage * (1 - g)) ** 2, (3, 1)), rel=CLOSE)


def test_fedex_settles_where_its_recursion_does() -> None:
    coverage = other_rules._coverage(other_rules.SETTLED)
    adapter, base = np.ones_like(coverage), np.zeros_like(coverage)
    for _ in range(other_rules.SETTLED.rounds):
        adapter, base = coverage**2 * adapter, base + (coverage - coverage**2) * adapter
    left = other_rules.left(other_rules.SETTLED, "fedex")(RUNS, CONTEXT)
    assert left == pytest.approx(np.tile(adapter + base, (3, 1)), rel=CLOSE)
    assert adapter + base == pytest.approx(coverage / (1 + coverage), rel=CLOSE)


def test_shares_of_rounds_are_norm_shares() -> None:
    # The first round's norms can be written down: those of the initial amplitudes.
    scenario = other_rules.NORMS
    norms = np.sqrt(np.cumsum(scenario.initial_amplitudes**2))[np.array(scenario.ranks) - 1]
    share = np.array([norms[np.array(scenario.ranks) >= level].sum() for level in (4, 8)])
    measured = other_rules.share_of_round(scenario, "hetlora", 1)(RUNS, CONTEXT)
    assert measured == pytest.approx(np.tile(share / norms.sum(), (3, 1)), rel=CLOSE)
    assert (measured > other_rules._clients_share(scenario)).all()


def test_partition_identity_includes_cohorts_without_the_highest_rank() -> None:
    distance = identities.partition_distance
    assert (distance(-1, range(40), CONTEXT) < identities.IDENTICAL).all()
    for power in (0, 1):
        wrong = distance(power, range(40), CONTEXT)
        # if all clients of the cohort have the highest rank, there is nothing to divide
        assert (wrong > 0.01).mean() > 0.8


def test_critical_deviations_lie_where_the_rate_is_one() -> None:
    prediction = heterogeneity._around_critical()
    below, at, above = np.split(prediction.value, 3)
    assert at == pytest.approx(1, rel=CLOSE)
    assert (below < 1 - heterogeneity.MARGIN).all()
    assert (above > 1 + heterogeneity.MARGIN).all()


def test_predicted_rates_grow_with_the_square_of_the_deviation() -> None:
    rates = heterogeneity._rates(1.0).value.reshape(len(heterogeneity.DEVIATIONS), -1)
    gained = rates - heterogeneity._rates(0.0).value.reshape(rates.shape)
    squares = np.square(heterogeneity.DEVIATIONS)
    assert gained / squares[:, None] == pytest.approx(
        np.tile(gained[0] / squares[0], (len(squares), 1)), rel=CLOSE
    )


def test_contributors_are_counted_from_the_drawn_cohorts() -> None:
    scenario, seeds = noise.SIGNAL_COHORTS, CONTEXT.seeds(RUNS)
    held = noise.contributors(scenario, RUNS, CONTEXT)
    for row, seed in zip(held, seeds, strict=True):
        drawn = np.flatnonzero(cohort_counts(scenario, seed)[0])
        ranks = np.array(scenario.ranks)[drawn]
        assert row.tolist() == [(ranks >= level).sum() for level in scenario.federation.levels]


def test_clients_without_noise_have_a_noise_to_signal_ratio_of_zero() -> None:
    scenario = noise.SIGNAL_COHORTS.replace(gain_std=0.0, drift_std=0.0)
    held = noise.contributors(scenario, RUNS, CONTEXT)
    for rule in noise.SIGNAL_RULES:
        measured = noise.noise_over_signal(held, scenario, rule, rule, RUNS, CONTEXT)
        assert measured == pytest.approx(np.zeros_like(measured), abs=CLOSE)


def test_noise_of_full_participation_is_that_of_the_contributors() -> None:
    # 6, 12 and 20 contributors of 20: pi/m against 1/H
    for rule, power in (("fedavg", 1), ("raflora", -1)):
        gain = per_partition(
            closed_form.noise_gain(noise.NOISE.replace(cohort_size=None), rule), noise.NOISE
        )
        held = np.array([20.0, 12.0, 6.0])
        assert gain == pytest.approx(held**power / 20.0 ** (1 + power), rel=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("flora-dilutes-loss", partial(Prediction.within, [0.95, 0.95], 1e-6)),
        ("fedex-settles", partial(Prediction.within, [0.5, 0.5], 0.1)),
        ("hetlora-uniform", partial(Prediction.within, [0.61, 0.31], 1e-3)),
        ("partition-identity", partial(Prediction.at_least, 1e-3)),
        ("noise-gain", partial(Prediction.within, [0.03, 0.02, 0.01] * 2, 0.02)),
        ("equal-signal-to-noise", partial(Prediction.within, [1.0, 1.0, 1.3], 0.03)),
    ],
)
def test_a_wrong_prediction_is_refuted(name: str, wrong) -> None:
    assert run_claim(replace(by_id(name), predict=wrong), CONTEXT)["verdict"] == "refuted"
