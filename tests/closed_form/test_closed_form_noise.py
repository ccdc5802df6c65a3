"""Noise, communication and sensitivities against all cohorts and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from closed_form_cases import RANKS, SAMPLES, SPREAD_RULES, federation_keywords, outcomes
from cohort_cases import cohorts

from analysis import closed_form
from fedlora_sim import Scenario
from fedlora_sim.federation import SAMPLINGS, Federation
from fedlora_sim.tolerances import relative

CLOSE = relative("factorization")
NEAR = relative("training")


@pytest.mark.parametrize("allocation", ["svd", "random"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rule", SPREAD_RULES)
def test_noise_of_one_round(rule, sampling, allocation):
    asked = federation_keywords(sampling) | {"allocation": allocation}
    fed = Federation(RANKS, asked["num_samples"], asked["cohort_size"], sampling)
    gain = closed_form.noise_gain(Scenario(RANKS, **asked), rule)
    noise = {"initial_amplitude": 0.7, "gain_mean": 0.9, "gain_std": 0.2, "drift_std": 0.1}
    ratio = closed_form.noise_to_signal(Scenario(RANKS, **asked), rule, **noise)
    for i in range(fed.r_max):
        table = list(outcomes(rule, fed, allocation, i))
        assert gain[i] == pytest.approx(sum(p * (w @ w) for p, w in table), rel=CLOSE)
        somebody = [(p, w) for p, w in table if w.sum() > 0]
        variance = (0.2 * 0.7) ** 2 + 0.1**2
        total = 0.0
        for p, w in somebody:
            kept = 1 - 0.1 * w.sum() if rule == "flora" else 0.9 * w.sum()
            total += p * variance * (w @ w) / (kept * 0.7) ** 2
        wanted = math.sqrt(total / sum(p for p, _ in somebody))
        assert ratio[i] == pytest.approx(wanted, rel=CLOSE)


def test_signal_to_noise_is_the_same_for_fedavg_and_raflora():
    for sampling in SAMPLINGS:
        asked = federation_keywords(sampling) | {"gain_std": 0.3, "drift_std": 0.2}
        ratios = [
            closed_form.noise_to_signal(Scenario(RANKS, **asked), r) for r in ("fedavg", "raflora")
        ]
        np.testing.assert_allclose(*ratios, rtol=CLOSE)


def test_limits_of_the_ratio():
    assert (closed_form.noise_to_signal(Scenario(RANKS), "fedavg") == 0).all()
    assert (
        closed_form.noise_to_signal(Scenario(RANKS, gain_std=1.0), "fedavg", initial_amplitude=0.0)
        == 0
    ).all()
    for silent in ({"initial_amplitude": 0.0}, {"gain_mean": 0.0}):
        ratio = closed_form.noise_to_signal(Scenario(RANKS, drift_std=0.1), "raflora", **silent)
        np.testing.assert_array_equal(ratio, np.inf)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_communication_cohort_by_cohort(sampling):
    asked = federation_keywords(sampling)
    fed = Federation(RANKS, asked["num_samples"], asked["cohort_size"], sampling)
    d_in, d_out = 5, 300
    sent = {"factors": 0.0, "ffa": 0.0, "stack": 0.0, "dense": 0.0}
    for p, counts in cohorts(fed):
        here = [r for r, c in zip(RANKS, counts, strict=True) if c]
        sent["factors"] += float(p) * sum(here) * (d_in + d_out)
        sent["ffa"] += float(p) * sum(here) * d_out
        sent["stack"] += float(p) * len(here) * sum(here) * (d_in + d_out)
        sent["dense"] += float(p) * len(here) * d_in * d_out
    for rule in closed_form.RULES:
        found = closed_form.communication(
            Scenario(RANKS, d_in=d_in, d_out=d_out, **asked), rule, layers=3
        )
        up = sent["ffa" if rule == "ffa" else "factors"]
        residual = up + min(sent["stack"], sent["dense"])
        down = {"flora": sent["stack"], "fedex": residual}.get(rule, up)
        assert found.upload == pytest.approx(3 * up, rel=CLOSE)
        assert found.download == pytest.approx(3 * down, rel=CLOSE)
        assert found.total == found.upload + found.download


def test_bad_communication_is_named():
    for change, message in (
        ({"d_in": 0}, "d_in=0"),
        ({"d_out": 1.5}, "d_out=1.5"),
        ({"cohort_size": 9}, "cohort_size=9"),
        ({"allocation": "best"}, "allocation='best'"),
    ):
        with pytest.raises(ValueError, match=message):
            closed_form.communication(Scenario(RANKS, **{"d_in": 4, "d_out": 4} | change), "fedavg")
    with pytest.raises(ValueError, match="layers=-1"):
        closed_form.communication(Scenario(RANKS), "fedavg", layers=-1)


def slope(function):
    """Return logarithmic derivative at 1 of a function of a factor."""
    step = relative("training")
    high, low = function(1 + step), function(1 - step)
    return (np.log(high) - np.log(low)) / (np.log1p(step) - np.log1p(-step))


@pytest.mark.parametrize("rule", [r for r in closed_form.RULES if r not in ("hetlora", "fedex")])
@pytest.mark.parametrize("sampling", ["full", "without_replacement", "bernoulli"])
def test_elasticities_are_slopes(rule, sampling):
    known = federation_keywords(sampling)
    law = {"gain_mean": 0.8, "gain_std": 0.2 if rule in SPREAD_RULES else 0.0}
    drift = "drift_std" if rule in SPREAD_RULES else "drift_mean"
    found = closed_form.sensitivities(Scenario(RANKS, **law, **known), rule)
    for name in ("gain_mean", "gain_std", drift):
        values = law | {drift: 1.0}

        def rate(factor, values=values, name=name):
            moved = values | {name: values[name] * factor}
            moved.pop(drift)
            return closed_form.energy_rate(Scenario(RANKS, **moved, **known), rule)

        def floor(factor, values=values, name=name):
            return closed_form.energy_floor(
                Scenario(RANKS, **values | {name: values[name] * factor}, **known), rule
            )

        if values[name]:
            np.testing.assert_allclose(found[name].rate, slope(rate), rtol=NEAR, atol=NEAR)
            np.testing.assert_allclose(found[name].floor, slope(floor), rtol=NEAR, atol=NEAR)


def test_elasticities_by_hand():
    ranks, pi = "1x4,2x6", 0.6
    found = closed_form.sensitivities(Scenario(ranks, gain_mean=0.9), "fedavg")
    np.testing.assert_allclose(found["coverage"].rate, 2.0, rtol=CLOSE)
    np.testing.assert_allclose(
        closed_form.sensitivities(Scenario(ranks, gain_mean=0.9), "zero_pad")["coverage"].rate,
        4,
        rtol=CLOSE,
    )
    # q = pi^2 + pi (1 - pi) (K - m) / (m (K - 1)) at K = 10, m = 4
    found = closed_form.sensitivities(Scenario(ranks, cohort_size=4), "fedavg")
    variance = pi * (1 - pi) * 6 / (4 * 9)
    rate = pi**2 + variance
    by_pi = pi * (2 * pi + (1 - 2 * pi) * 6 / (4 * 9)) / rate
    by_size = 4 * pi * (1 - pi) / 9 * (-10 / 16) / rate
    assert found["coverage"].rate[1] == pytest.approx(by_pi, rel=CLOSE)
    assert found["cohort_size"].rate[1] == pytest.approx(by_size, rel=CLOSE)
    # no gain left to lose: no floor in the shared direction
    assert np.isinf(found["coverage"].floor[0])
    np.testing.assert_allclose(found["drift_std"].floor[1], 2.0, rtol=CLOSE)


def test_arcs_are_differences_between_federations():
    found = closed_form.sensitivities(Scenario("1x4,2x6", cohort_size=3, gain_mean=0.9), "raflora")
    q = [
        closed_form.energy_rate(Scenario(ranks, cohort_size=m, gain_mean=0.9), "raflora")[1]
        for ranks, m in (("1x5,2x5", 3), ("1x3,2x7", 3), ("1x4,2x6", 2), ("1x4,2x6", 4))
    ]
    assert found["coverage"].rate[1] == pytest.approx(math.log(q[1] / q[0]) / math.log(7 / 5))
    assert found["cohort_size"].rate[1] == pytest.approx(math.log(q[3] / q[2]) / math.log(4 / 2))
    alone = closed_form.sensitivities(Scenario([2], gain_mean=0.9), "raflora")
    np.testing.assert_array_equal(alone["coverage"].rate, 0.0)
    np.testing.assert_array_equal(alone["cohort_size"].floor, 0.0)


@pytest.mark.parametrize("rule", ["fedavg", "raflora", "flora", "zero_pad", "rbla"])
def test_elasticities_exist_everywhere(rule):
    for asked in (
        {"num_samples": SAMPLES, "cohort_size": 2},
        {"num_samples": SAMPLES, "allocation": "random"},
        {"sampling": "size_weighted", "num_samples": SAMPLES, "cohort_size": 1},
    ):
        for value in closed_form.sensitivities(
            Scenario(RANKS, gain_mean=0.9, **asked), rule
        ).values():
            assert np.isfinite(value.rate).all()
            assert np.isfinite(value.floor).all()


def test_quantities_without_elasticity_are_refused():
    for rule in ("hetlora", "fedex"):
        with pytest.raises(ValueError, match=f"rule='{rule}': expected a rule of one affine map"):
            closed_form.sensitivities(Scenario(RANKS), rule)
    with pytest.raises(ValueError, match=r"gain_mean=.*0.0.*: expected gains that leave energy"):
        closed_form.sensitivities(Scenario(RANKS, gain_mean=0.0), "fedavg")
