"""Weight moments against brute force and in known limits."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from cohort_cases import CASES, RANKS, UNEQUAL, brute_laws, federation

from analysis.cohorts import shares
from analysis.cohorts.shares import (
    MonteCarloWarning,
    empty_probability,
    per_direction,
    weight_moments,
)
from fedlora_sim.federation import SAMPLINGS, Federation
from fedlora_sim.tolerances import relative

FIELDS = (
    "mean",
    "second",
    "fourth",
    "sum_of_squares",
    "log_mean",
    "log_variance",
    "inverse",
    "empty",
)
CLOSE = relative("factorization")
SIGMAS = 5.0  # one false alarm in a few million comparisons
every_case = pytest.mark.parametrize(("sampling", "normalizer", "allocation"), CASES)


def brute_moments(fed, normalizer, allocation):
    """Return all fields, shape (8, r_max); logarithms are the only floats."""
    rows = []
    for law in brute_laws(fed, normalizer, allocation):
        plain = [float(sum(p * W**k for W, (p, _) in law.items())) for k in (1, 2, 4)]
        plain.append(float(sum(p * q for p, q in law.values())))
        kept = sum(p for W, (p, _) in law.items() if W)
        given = {W: p / kept for W, (p, _) in law.items() if W}
        log_mean = math.fsum(p * math.log(W) for W, p in given.items())
        spread = math.fsum(p * (math.log(W) - log_mean) ** 2 for W, p in given.items())
        inverse = float(sum(p / W for W, p in given.items()))
        rows.append([*plain, log_mean, spread, inverse, float(1 - kept)])
    return per_direction(fed, np.array(rows).T)


def values_of(moments):
    return np.stack([getattr(moments, name) for name in FIELDS])


@pytest.mark.slow
@pytest.mark.parametrize("samples", [None, UNEQUAL])
@every_case
def test_equals_brute_force(sampling, normalizer, allocation, samples):
    fed = federation(sampling, samples)
    found = weight_moments(normalizer, fed, allocation)
    assert found.standard_error is None
    wanted = brute_moments(fed, normalizer, allocation)
    np.testing.assert_allclose(values_of(found), wanted, rtol=CLOSE, atol=CLOSE)
    empty = empty_probability(fed, allocation, normalizer)
    np.testing.assert_array_equal(empty, found.empty)


def test_fields_are_all_compared():
    assert {f.name for f in fields(weight_moments("cohort", Federation(RANKS)))} == {
        *FIELDS,
        "standard_error",
    }


@pytest.mark.parametrize("allocation", ["svd", "random"])
@pytest.mark.parametrize("samples", [None, (7, 1, 12, 3, 3, 5, 40)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_without_renormalization_the_mean_is_the_coverage(sampling, samples, allocation):
    fed = federation(sampling, samples, 3, (1, 2, 2, 3, 5, 5, 5))
    found = weight_moments("federation", fed, allocation)
    np.testing.assert_allclose(found.mean, fed.coverage(allocation), rtol=CLOSE)


@pytest.mark.parametrize("samples", [None, UNEQUAL])
@pytest.mark.parametrize("sampling", ["without_replacement", "bernoulli"])
def test_whole_federation_in_the_cohort_is_full_participation(sampling, samples):
    whole = weight_moments("cohort", federation(sampling, samples, size=4))
    pi = Federation(RANKS, samples).coverage()
    np.testing.assert_allclose(whole.second, pi**2, rtol=CLOSE)
    np.testing.assert_allclose(whole.log_mean, np.log(pi), rtol=CLOSE)
    np.testing.assert_allclose(whole.inverse, 1 / pi, rtol=CLOSE)
    np.testing.assert_array_equal(whole.log_variance, 0.0)
    np.testing.assert_array_equal(whole.empty, 0.0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("normalizer", ["cohort", "contributors"])
@pytest.mark.parametrize("samples", [None, UNEQUAL, (0.1, 0.2, 0.3, 0.7)])
def test_direction_carried_by_all_has_weight_exactly_one(sampling, normalizer, samples):
    found = values_of(weight_moments(normalizer, federation(sampling, samples)))[:, 0]
    assert found[[0, 1, 2, 4, 5, 6, 7]].tolist() == [1, 1, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement", "bernoulli"])
def test_contributors_normalizer_leaves_one_over_their_number(sampling):
    """Equal samples: raFLoRA's share is 1 or 0 and only the noise distinguishes cohorts."""
    fed = Federation("2x40,5x60", cohort_size=7, sampling=sampling)
    found = weight_moments("contributors", fed)
    np.testing.assert_array_equal(found.mean, 1 - found.empty)
    np.testing.assert_array_equal(found.second, found.mean)
    np.testing.assert_array_equal(found.log_mean, 0.0)
    assert np.all(found.sum_of_squares > (1 - found.empty) / 100)
    if sampling == "without_replacement":
        assert found.sum_of_squares[0] == pytest.approx(1 / 7, rel=CLOSE)


def test_directions_of_one_partition_share_their_values():
    found = weight_moments("cohort", Federation("2x3,5x4", cohort_size=3))
    assert found.mean.shape == (5,)
    assert np.unique(found.second).size == 2
    assert found.second[1] > found.second[2] == found.second[4]


def test_closed_form_of_uniform_cohorts_in_large_federations():
    """`E[W^2] = pi^2 + pi (1 - pi) (K - m) / (m (K - 1))` to all digits."""
    K, m = 3000, 400
    fed = Federation("2x1900,4x1000,7x100", cohort_size=m)
    pi = fed.coverage()
    wanted = pi**2 + pi * (1 - pi) * (K - m) / (m * (K - 1))
    found = weight_moments("cohort", fed)
    np.testing.assert_allclose(found.second, wanted, rtol=relative("reduction"))
    np.testing.assert_allclose(found.sum_of_squares, pi / m, rtol=relative("reduction"))


def test_bernoulli_scales_to_a_thousand_clients():
    fed = Federation("4x400,8x300,16x300", cohort_size=10, sampling="bernoulli")
    second = weight_moments("cohort", fed).second
    # a fixed cohort of 10 fluctuates less than a random one with mean 10
    fixed = weight_moments("cohort", Federation(fed.ranks, cohort_size=10)).second
    assert np.all(second[4:] > fixed[4:])
    assert np.all(second[4:] > fed.coverage()[4:] ** 2)


@pytest.fixture
def no_exact_route(monkeypatch):
    monkeypatch.setattr(shares, "ENUMERATION_LIMIT", 0)
    monkeypatch.setattr(shares, "CELL_LIMIT", 0)


@pytest.mark.parametrize("allocation", ["svd", "random"])
@pytest.mark.parametrize("normalizer", ["cohort", "contributors", "federation"])
def test_estimates_lie_within_the_standard_errors_returned(normalizer, allocation, no_exact_route):
    fed = federation("without_replacement", UNEQUAL, size=2)
    with pytest.warns(MonteCarloWarning, match=r"largest relative standard error \d") as caught:
        found = weight_moments(normalizer, fed, allocation)
    assert caught[0].filename == __file__
    wanted = brute_moments(fed, normalizer, allocation)
    assert found.standard_error is not None
    errors = values_of(found.standard_error)
    assert errors.shape == wanted.shape
    assert np.all(np.abs(values_of(found) - wanted) <= SIGMAS * errors + CLOSE)
    assert not errors[-1].any()  # emptiness is always exact
    with pytest.warns(MonteCarloWarning):
        again = weight_moments(normalizer, fed, allocation)
    np.testing.assert_array_equal(values_of(found), values_of(again))


@pytest.mark.parametrize("sampling", [s for s in SAMPLINGS if s != "full"])
@pytest.mark.usefixtures("no_exact_route")
def test_values_that_need_no_law_are_exact_next_to_estimates(sampling):
    fed = federation(sampling, UNEQUAL, size=2)
    with pytest.warns(MonteCarloWarning):
        found = weight_moments("federation", fed, "random")
    rows = [0, 1, 3]
    wanted = brute_moments(fed, "federation", "random")[rows]
    np.testing.assert_allclose(values_of(found)[rows], wanted, rtol=CLOSE)
    assert found.standard_error is not None
    errors = values_of(found.standard_error)
    assert not errors[rows].any()
    assert errors[4:7].all()


@pytest.mark.usefixtures("no_exact_route")
def test_sampling_keeps_exact_values_of_contributors():
    with pytest.warns(MonteCarloWarning):
        found = weight_moments("contributors", federation("bernoulli", UNEQUAL))
    np.testing.assert_array_equal(found.second, 1 - found.empty)
    assert found.standard_error is not None
    assert not found.standard_error.second.any()
    # the last level has a single contributor, whose weight is 1
    assert (found.standard_error.sum_of_squares > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("allocation", ["svd", "random"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_empty_probability_ignores_samples_unless_they_decide_the_draw(sampling, allocation):
    equal = empty_probability(federation(sampling), allocation)
    unequal = empty_probability(federation(sampling, UNEQUAL), allocation)
    assert np.array_equal(equal, unequal) == (sampling != "size_weighted")


@pytest.mark.parametrize("function", [weight_moments, lambda n, f, a: empty_probability(f, a, n)])
@pytest.mark.parametrize(
    ("normalizer", "allocation", "message"),
    [
        ("fedavg", "svd", r"normalizer='fedavg': expected one of cohort, contributors, federation"),
        ("cohort", "importance", r"allocation='importance': expected 'svd' or 'random'"),
        ("cohort", "rndom", r"allocation='rndom'.*did you mean 'random'"),
    ],
)
def test_unknown_words_are_refused(function, normalizer, allocation, message):
    with pytest.raises(ValueError, match=message):
        function(normalizer, Federation(RANKS), allocation)
