"""The flow against the differential equation of the factors and against explicit rounds."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from closed_form_cases import FACTOR, RANKS, SAMPLES, federation_keywords, outcomes
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples
from scipy.integrate import solve_ivp

from analysis import closed_form
from fedlora_sim import Scenario
from fedlora_sim.federation import SAMPLINGS, Federation
from fedlora_sim.tolerances import relative

CLOSE = relative("factorization")
ITERATED = relative("iteration")
LOGISTIC = ("fedavg", "zero_pad", "raflora", "rbla")
TARGETS = np.array([[1.0, 1.5], [0.4, 0.2], [2.0, 0.0]])


@pytest.mark.parametrize("target", [1.3, 0.0, -0.7])
def test_the_map_is_gradient_flow_of_balanced_factors(target):
    x, T = 0.4, 0.8

    def flow(_, ab):
        a, b = ab
        return [-(a * b - target) * b, -(a * b - target) * a]

    end = solve_ivp(flow, (0, T), [math.sqrt(x)] * 2, rtol=ITERATED, atol=ITERATED).y[:, -1]
    found = closed_form.flow_map(x, target, T)
    np.testing.assert_allclose(found, end.prod(), rtol=relative("training"))


@pytest.mark.slow
@given(
    x=st.floats(0, 1e3, allow_subnormal=False),  # subnormal numbers have too few digits to grow
    target=st.floats(-50, 50),
    first=st.floats(0, 100),
    second=st.floats(0, 100),
)
@example(x=5e-324, target=17.0, first=0.0, second=22.0)
@example(x=1.0, target=5e-324, first=1.5, second=1.75)
def test_the_map_is_a_flow(x, target, first, second):
    step = closed_form.flow_map(closed_form.flow_map(x, target, first), target, second)
    whole = closed_form.flow_map(x, target, first + second)
    assert step == pytest.approx(float(whole), rel=ITERATED, abs=ITERATED)


def test_limits_of_the_map():
    x = np.array([0.0, 0.2, 3.0])
    np.testing.assert_array_equal(closed_form.flow_map(x, 1.0, 0.0), x)
    np.testing.assert_allclose(closed_form.flow_map(x, 1.5, 1e6), [0.0, 1.5, 1.5], rtol=CLOSE)
    np.testing.assert_array_equal(closed_form.flow_map(x, -1.5, 1e6), 0.0)
    np.testing.assert_allclose(closed_form.flow_map(x, 1e-9, 0.5), x / (1 + x), rtol=ITERATED)
    np.testing.assert_array_equal(closed_form.flow_map(x[:, None], [1.0, 2.0], 0.5).shape, (3, 2))


def one_round(rule, weights, x, targets, time):
    """Return a round of unequal clients from the definition."""
    root = 0.5 if rule in FACTOR else 1.0
    trained = closed_form.flow_map(x, targets, time)
    if rule == "ffa":
        trained = targets + (x - targets) * math.exp(-time)
    if rule == "hetlora":
        trained = trained * (np.array(RANKS)[:, None] > np.arange(2))
        norms = np.linalg.norm(trained, axis=1)
        weights = (norms / norms.sum())[:, None] * (np.array(RANKS)[:, None] > np.arange(2))
    return (weights * trained**root).sum(axis=0) ** (1 / root)


def full_weights(rule):
    own = np.array(SAMPLES)[:, None] * (np.array(RANKS)[:, None] > np.arange(2))
    return own / (own.sum(axis=0) if rule in ("raflora", "rbla") else sum(SAMPLES))


@pytest.mark.slow
@pytest.mark.parametrize(("time", "rounds"), [(0.05, 10_000), (0.6, 1_000)])
@pytest.mark.parametrize("rule", [*LOGISTIC, "ffa", "hetlora"])
def test_unequal_targets_with_all_clients(rule, time, rounds):
    asked = {"num_samples": SAMPLES}
    path = closed_form.flow_trajectory(
        Scenario(RANKS, rounds=rounds, local_time=time, local_loss="quadratic", **asked),
        rule,
        target=TARGETS,
        initial_amplitude=0.7,
    )
    x = np.full(2, 0.7)
    for t in range(4):
        x = one_round(rule, full_weights(rule), x, TARGETS, time)
        np.testing.assert_allclose(path[t + 1], x, rtol=CLOSE)
    floor = closed_form.flow_floor(
        Scenario(RANKS, local_time=time, local_loss="quadratic", **asked), rule, target=TARGETS
    )
    np.testing.assert_allclose(path[-1], floor, rtol=ITERATED, atol=ITERATED)
    if rule != "hetlora":
        rate = closed_form.flow_rate(
            Scenario(RANKS, local_time=time, local_loss="quadratic", **asked), rule, target=TARGETS
        )
        nudge = relative("training")
        slope = one_round(rule, full_weights(rule), floor + nudge, TARGETS, time) - floor
        np.testing.assert_allclose(slope / nudge, rate, rtol=relative("training") ** 0.5)


@pytest.mark.parametrize("rule", [*LOGISTIC, "ffa"])
def test_equal_and_unequal_targets_agree(rule):
    near = np.tile([1.0, 0.5], (3, 1)) + np.array([0, 1, -1])[:, None] * relative("exact")
    near[1] *= 1 + 1e-15  # so close that only the branch differs
    for time in (0.05, 0.7):
        for function in (closed_form.flow_floor, closed_form.flow_rate):
            one = function(
                Scenario(RANKS, local_time=time, num_samples=SAMPLES, local_loss="quadratic"),
                rule,
                target=[[1.0, 0.5]],
            )
            other = function(
                Scenario(RANKS, local_time=time, num_samples=SAMPLES, local_loss="quadratic"),
                rule,
                target=near,
            )
            np.testing.assert_allclose(one, other, rtol=ITERATED, atol=ITERATED)
    one = closed_form.collapse_threshold(
        Scenario(RANKS, num_samples=SAMPLES, local_loss="quadratic"), rule, target=[[1.0, 0.5]]
    )
    other = closed_form.collapse_threshold(
        Scenario(RANKS, num_samples=SAMPLES, local_loss="quadratic"), rule, target=near
    )
    np.testing.assert_allclose(one, other, rtol=ITERATED, atol=ITERATED)


@pytest.mark.parametrize("allocation", ["svd", "random"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rule", [*LOGISTIC, "ffa"])
def test_random_cohorts_round_by_round(rule, sampling, allocation):
    asked = federation_keywords(sampling) | {"allocation": allocation}
    fed = Federation(RANKS, asked["num_samples"], asked["cohort_size"], sampling)
    for policy in ("zero", "carry") if rule in ("raflora", "rbla") else ("zero",):
        path = closed_form.flow_trajectory(
            Scenario(
                RANKS,
                rounds=3,
                local_time=0.4,
                empty_partition=policy,
                local_loss="quadratic",
                **asked,
            ),
            rule,
            target=0.8,
            initial_amplitude=0.3,
        )
        for i in range(fed.r_max):
            x, p = np.array([0.3]), np.ones(1)
            for _ in range(3):
                parts = []
                for chance, weights in outcomes(rule, fed, allocation, i):
                    share = weights.sum()
                    if rule == "ffa":
                        new = share * (0.8 + (x - 0.8) * math.exp(-0.4))
                    elif share == 0:
                        if policy == "zero":
                            continue  # given that a client carried it
                        new = x
                    else:
                        power = 2 if rule in FACTOR else 1
                        new = share**power * closed_form.flow_map(x, 0.8, 0.4)
                    parts.append((new, chance * p))
                x, p = (np.concatenate(part) for part in zip(*parts, strict=True))
            mean = p @ x if rule == "ffa" else p.sum() / (p @ (1 / x))
            assert path[-1, i] == pytest.approx(mean, rel=CLOSE)


@pytest.mark.parametrize("rule", [*LOGISTIC, "ffa"])
@pytest.mark.parametrize("size", [2, 3])
def test_trajectories_tend_to_the_floor_at_the_stated_rate(rule, size):
    for time in (0.05, 1.5):
        asked = {"target_amplitude": 1.2, "local_time": time, "cohort_size": size}
        path = closed_form.flow_trajectory(
            Scenario(RANKS, rounds=3000, local_loss="quadratic", **asked),
            rule,
            initial_amplitude=0.4,
        )
        floor = closed_form.flow_floor(Scenario(RANKS, local_loss="quadratic", **asked), rule)
        rate = closed_form.flow_rate(Scenario(RANKS, local_loss="quadratic", **asked), rule)
        np.testing.assert_allclose(path[-1], floor, rtol=ITERATED, atol=ITERATED)
        # where 1/x is affine its distance to the fixed point, or x itself, shrinks by the rate
        value = path if rule == "ffa" else 1 / np.where(path > 0, path, 1)
        rest = np.where(floor > 0, floor if rule == "ffa" else 1 / np.where(floor, floor, 1), 0)
        gap = np.abs(value - rest)[:4]
        grows = floor == 0
        np.testing.assert_allclose(gap[3, ~grows], (rate**3 * gap[0])[~grows], rtol=ITERATED)
        late = path[40:42, grows]
        np.testing.assert_allclose(late[1] / late[0], rate[grows], rtol=relative("training") ** 0.5)


def test_decay_at_the_critical_point_is_algebraic():
    share = closed_form.coverage(Scenario(RANKS, num_samples=SAMPLES))
    for rule, power in (("fedavg", 1), ("zero_pad", 2)):
        critical = closed_form.collapse_threshold(
            Scenario(RANKS, num_samples=SAMPLES, local_loss="quadratic"), rule, target=1.0
        )
        np.testing.assert_allclose(critical, -power * np.log(share) / 2, rtol=CLOSE)
        asked = {"local_time": float(critical[1]), "num_samples": SAMPLES}
        path = closed_form.flow_trajectory(
            Scenario(RANKS, rounds=4000, local_loss="quadratic", **asked),
            rule,
            initial_amplitude=0.5,
        )[:, 1]
        slope = math.log(path[4000] / path[2000]) / math.log(2)
        assert slope == pytest.approx(-1, abs=1e-2)
        assert closed_form.flow_rate(
            Scenario(
                RANKS, local_time=float(critical[1]), num_samples=SAMPLES, local_loss="quadratic"
            ),
            rule,
            target=1.0,
        )[1] == pytest.approx(1, rel=CLOSE)


CASES = [(rule, targets) for rule in LOGISTIC for targets in (1.3, TARGETS)]


@pytest.mark.parametrize(("rule", "targets"), [*CASES, ("hetlora", 1.3)])
def test_floors_open_at_the_threshold(rule, targets):
    samples = None if rule == "hetlora" else SAMPLES
    critical = closed_form.collapse_threshold(
        Scenario(RANKS, num_samples=samples, local_loss="quadratic"), rule, target=targets
    )
    assert (critical >= 0).all()
    for i in np.flatnonzero((critical > 0) & np.isfinite(critical)):
        below, above = (
            closed_form.flow_floor(
                Scenario(
                    RANKS, local_time=f * critical[i], num_samples=samples, local_loss="quadratic"
                ),
                rule,
                target=targets,
            )[i]
            for f in (0.9, 1.1)
        )
        assert below == 0
        assert above > 0


def test_a_typical_run_survives_above_its_threshold_only():
    asked = {"cohort_size": 2}
    critical = closed_form.collapse_threshold(
        Scenario(RANKS, local_loss="quadratic", **asked), "fedavg", target=0.9
    )[1]
    fed = Federation(RANKS, None, 2, None)
    table = [(p, w.sum()) for p, w in outcomes("fedavg", fed, "svd", 1) if w.sum() > 0]
    drift = sum(p * math.log(share) for p, share in table) / sum(p for p, _ in table)
    assert critical == pytest.approx(-drift / (2 * 0.9), rel=CLOSE)


def test_limits_of_floors_and_thresholds():
    share = closed_form.coverage(Scenario(RANKS, num_samples=SAMPLES))
    asked = {"num_samples": SAMPLES}
    for rule, power in (("fedavg", 1), ("zero_pad", 2), ("ffa", 1)):
        far = closed_form.flow_floor(
            Scenario(RANKS, local_time=1e5, local_loss="quadratic", **asked), rule, target=2.0
        )
        np.testing.assert_allclose(far, 2 * share**power, rtol=CLOSE)
        still = closed_form.flow_floor(
            Scenario(RANKS, local_time=0.0, local_loss="quadratic", **asked), rule, target=2.0
        )
        np.testing.assert_array_equal(still, np.where(share == 1, 2.0, 0.0))
        rate = closed_form.flow_rate(
            Scenario(RANKS, local_time=0.0, local_loss="quadratic", **asked), rule, target=2.0
        )
        np.testing.assert_allclose(rate, share**power, rtol=CLOSE)
    for rule in ("raflora", "rbla", "flora"):
        floor = closed_form.flow_floor(
            Scenario(RANKS, local_time=0.3, cohort_size=2, local_loss="quadratic"), rule, target=2.0
        )
        np.testing.assert_allclose(floor, 2.0, rtol=CLOSE)
    for rule in ("fedex", "ffa", "flora", "raflora", "rbla"):
        threshold = closed_form.collapse_threshold(
            Scenario(RANKS, cohort_size=2, local_loss="quadratic"), rule, target=1.0
        )
        np.testing.assert_array_equal(threshold, 0.0)
    for rule in [*LOGISTIC, "ffa", "flora", "hetlora"]:
        for target in (0.0, -1.0):
            threshold = closed_form.collapse_threshold(
                Scenario(RANKS, local_loss="quadratic"), rule, target=target
            )
            np.testing.assert_array_equal(threshold, np.inf)
        np.testing.assert_array_equal(
            closed_form.collapse_threshold(
                Scenario(RANKS, local_loss="quadratic"), rule, target=1.0
            )[0],
            0.0,
        )


def test_extreme_training_overflows_nowhere():
    unequal = np.array([[1.0, -2.0], [1e5, 1e-5], [-1e5, -1e5]])
    for rule in [*LOGISTIC, "ffa", "hetlora"]:
        for target in (1e5, -1e5, 1e200, unequal):
            scenario = Scenario(RANKS, rounds=5, local_time=1e3, local_loss="quadratic")
            values = [
                closed_form.flow_trajectory(scenario, rule, target=target, initial_amplitude=0.5),
                closed_form.flow_floor(scenario, rule, target=target),
            ]
            if rule != "hetlora":
                values.append(closed_form.flow_rate(scenario, rule, target=target))
                values.append(closed_form.collapse_threshold(scenario, rule, target=target))
            assert not any(np.isnan(value).any() for value in values)


def test_thresholds_with_a_client_that_carries_nothing_and_aims_high():
    targets = [[1000.0], [0.01], [0.02]]
    for rule, wanted in (("fedavg", 13.2248547157854), ("zero_pad", 26.4497094315709)):
        found = closed_form.collapse_threshold(
            Scenario([1, 2, 2], local_loss="quadratic"), rule, target=targets
        )
        np.testing.assert_allclose(found, [0, wanted], rtol=CLOSE)


TARGET = st.floats(-300, 300) | st.floats(-1e-3, 1e-3) | st.sampled_from([1e3, -1e3, 1e300, -1e300])


@settings(max_examples=examples(40))
@given(data=st.data(), rule=st.sampled_from(LOGISTIC))
def test_thresholds_of_unequal_targets_equal_those_of_arithmetic_without_limits(data, rule):
    count = data.draw(st.integers(2, 5))
    ranks = data.draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    given_targets = [[data.draw(TARGET)] for _ in range(count)]
    samples = data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    found = closed_form.collapse_threshold(
        Scenario(ranks, num_samples=samples, local_loss="quadratic"), rule, target=given_targets
    )
    scale = 1 if rule in FACTOR else 2
    for i, time in enumerate(found):
        own = [
            (n, mpmath.mpf(target))
            for r, n, [target] in zip(ranks, samples, given_targets, strict=True)
            if r > i
        ]
        whole = sum(n for n, _ in own) if rule in ("raflora", "rbla") else sum(samples)

        def growth(t, own=own, whole=whole):
            """Return the factor of a small amplitude, or its root, over a round, minus 1."""
            with mpmath.workdps(700):
                return sum(n * mpmath.exp(scale * m * mpmath.mpf(t)) for n, m in own) / whole - 1

        if np.isinf(time):
            assert growth(np.finfo(np.float64).max) <= 0
        elif time == 0:
            assert growth(5e-324) >= 0
        else:
            assert growth(time * (1 - ITERATED)) < 0 < growth(time * (1 + ITERATED))


@pytest.mark.parametrize("rule", [*LOGISTIC, "ffa", "hetlora"])
def test_targets_of_clients_that_do_not_carry_a_direction_change_nothing(rule):
    asked = {"num_samples": SAMPLES, "local_time": 0.7}
    idle = np.array(RANKS)[:, None] <= np.arange(2)
    results = []
    for other in (0.0, 1e3, -1e3, 1e300, -1e300):
        target = np.where(idle, other, TARGETS)
        row = [
            closed_form.flow_trajectory(
                Scenario(RANKS, rounds=4, local_loss="quadratic", **asked),
                rule,
                target=target,
                initial_amplitude=0.4,
            )[-1],
            closed_form.flow_floor(
                Scenario(RANKS, local_loss="quadratic", **asked), rule, target=target
            ),
        ]
        if rule != "hetlora":
            row.append(
                closed_form.flow_rate(
                    Scenario(RANKS, local_loss="quadratic", **asked), rule, target=target
                )
            )
            row.append(
                closed_form.collapse_threshold(
                    Scenario(RANKS, num_samples=SAMPLES, local_loss="quadratic"),
                    rule,
                    target=target,
                )
            )
        results.append(np.stack(row))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("rule", LOGISTIC)
def test_floors_of_unequal_targets_have_a_limit_for_short_training(rule):
    targets = np.array([[1.0, 1.0], [2.0, 0.5], [0.5, 3.0]])
    weights = full_weights(rule)
    whole = rule in ("raflora", "rbla") or np.array([True, False])
    wanted = np.where(whole, (weights * targets).sum(0), 0.0)
    for time in (0.0, 1e-9):
        found = closed_form.flow_floor(
            Scenario(RANKS, local_time=time, num_samples=SAMPLES, local_loss="quadratic"),
            rule,
            target=targets,
        )
        np.testing.assert_allclose(found, wanted, rtol=relative("training"))


def test_heterogeneous_targets_delay_the_collapse():
    spread = np.array([[0.6], [1.0], [1.4]])
    ranks = (2, 2, 2, 1, 1)
    unequal = np.concatenate([spread, np.ones((2, 1))])
    for rule in ("fedavg", "zero_pad"):
        same = closed_form.collapse_threshold(
            Scenario(ranks, local_loss="quadratic"), rule, target=1.0
        )[1]
        assert (
            closed_form.collapse_threshold(
                Scenario(ranks, local_loss="quadratic"), rule, target=unequal
            )[1]
            < same
        )


def test_more_training_and_larger_cohorts_keep_more():
    times = np.linspace(0.1, 3, 12)
    for rule in LOGISTIC:
        floors = [
            closed_form.flow_floor(
                Scenario("1x3,2x3", local_time=T, cohort_size=4, local_loss="quadratic"),
                rule,
                target=1.0,
            )
            for T in times
        ]
        assert (np.diff(floors, axis=0) >= -CLOSE).all()
        held = [
            closed_form.flow_floor(
                Scenario("1x3,2x3", local_time=2.0, cohort_size=m, local_loss="quadratic"),
                rule,
                target=1.0,
            )
            for m in (4, 5, 6)
        ]
        assert (np.diff(held, axis=0) >= -CLOSE).all()


@pytest.mark.parametrize("rule", ["flora", "fedex"])
def test_rules_that_change_the_base_state_the_reason(rule):
    with pytest.raises(ValueError, match=f"rule='{rule}': expected a rule whose clients train all"):
        closed_form.flow_trajectory(
            Scenario(RANKS, rounds=3, local_time=0.1, local_loss="quadratic"),
            rule,
            target=1.0,
            initial_amplitude=1.0,
        )
    with pytest.raises(ValueError, match=f"rule='{rule}': expected a rule whose clients train all"):
        closed_form.flow_rate(
            Scenario(RANKS, local_time=0.1, local_loss="quadratic"), rule, target=1.0
        )
    with pytest.raises(ValueError, match=f"rule='{rule}'"):
        closed_form.flow_floor(
            Scenario(RANKS, local_time=0.1, local_loss="quadratic"), rule, target=TARGETS
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"local_time": -1.0}, "local_time=-1.0: expected a finite number of at least 0"),
        ({"target": math.nan}, "target=nan: expected finite numbers: a scalar"),
        ({"target": [1.0] * 5}, r"target=\[.*\]: expected finite numbers: a scalar, \(2,\)"),
        ({"target": "far"}, "target='far'"),
        ({"target": TARGETS, "cohort_size": 2}, r"cohort_size=2: expected full .*targets differ"),
        ({"initial_amplitude": -0.1}, "initial_amplitude=-0.1: expected finite numbers of at le"),
        ({"rule": "hetlora", "cohort_size": 2}, "hetlora's weights depend on the state"),
        ({"rule": "fedagv"}, "did you mean 'fedavg'"),
        ({"ranks": (1, 2), "target": [1.0, 2.0]}, r"expected shape \(2, 1\) per client or \(1, 2"),
    ],
)
def test_bad_input_is_named(change, message):
    asked = {"target": 1.0, "local_time": 0.1, "initial_amplitude": 0.5} | change
    values = {name: asked.pop(name) for name in ("target", "initial_amplitude")}
    rule, ranks = asked.pop("rule", "fedavg"), asked.pop("ranks", RANKS)
    with pytest.raises(ValueError, match=message):
        closed_form.flow_trajectory(
            Scenario(ranks, rounds=3, local_loss="quadratic", **asked), rule, **values
        )


def test_hetlora_knows_its_limit_for_equal_targets_only():
    for function in (closed_form.collapse_threshold, closed_form.flow_rate):
        with pytest.raises(ValueError, match=r"expected targets that clients share for rule"):
            function(Scenario(RANKS, local_loss="quadratic"), "hetlora", target=TARGETS)


def test_bad_maps_are_named():
    for arguments, name in (((-1.0, 1.0, 1.0), "amplitude"), ((1.0, 1.0, -1.0), "local_time")):
        with pytest.raises(ValueError, match=f"{name}=-1.0: expected finite numbers of at least 0"):
            closed_form.flow_map(*arguments)
    with pytest.raises(ValueError, match="shapes that broadcast"):
        closed_form.flow_map([1.0, 2.0], [1.0, 2.0, 3.0], 1.0)
