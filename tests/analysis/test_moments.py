"""Weight moments against brute force: every cohort written out with itertools and fractions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.cohorts import laws as cohort_laws
from analysis.cohorts import moments
from analysis.cohorts.moments import MonteCarloWarning, empty_probability, weight_moments
from fedlora_sim.federation import SAMPLINGS, Federation
from fedlora_sim.tolerances import relative

RANKS = (1, 2, 2, 4, 4)
UNEQUAL = (3, 1, 4, 1, 5)
FIELDS = ("mean", "second", "fourth", "sum_of_squares", "empty")
CLOSE = relative("reduction")
SIGMAS = 5.0  # a false alarm in a few million comparisons


def cohorts(federation: Federation) -> Iterator[tuple[Fraction, tuple[int, ...]]]:
    """Probability and draw counts of every cohort, exactly."""
    K, m = federation.num_clients, federation.cohort_size
    assert m is not None
    samples = [Fraction(n) for n in federation.num_samples or ()]
    if federation.sampling == "full":
        yield Fraction(1), (1,) * K
    elif federation.sampling == "without_replacement":
        for chosen in itertools.combinations(range(K), m):
            yield Fraction(1, math.comb(K, m)), tuple(int(k in chosen) for k in range(K))
    elif federation.sampling == "bernoulli":
        p = Fraction(m, K)
        for counts in itertools.product((0, 1), repeat=K):
            if any(counts):
                mass = math.prod((p if c else 1 - p) for c in counts)
                yield mass / (1 - (1 - p) ** K), counts
    else:
        uniform = federation.sampling == "with_replacement"
        law = [Fraction(1, K) if uniform else n / sum(samples) for n in samples]
        for draws in itertools.product(range(K), repeat=m):
            mass = math.prod((law[k] for k in draws), start=Fraction(1))
            yield mass, tuple(draws.count(k) for k in range(K))


def brute_force(rule: str, federation: Federation) -> dict[str, np.ndarray]:
    totals = {name: [Fraction(0)] * federation.r_max for name in FIELDS}
    for mass, counts in cohorts(federation):
        samples = [Fraction(n) for n in federation.num_samples or ()]
        sized = federation.sampling == "size_weighted"
        v = [c if sized else c * n for c, n in zip(counts, samples, strict=True)]
        for i in range(federation.r_max):
            mine = [x for x, r in zip(v, federation.ranks, strict=True) if r > i]
            norm = sum(mine) if rule == "raflora" else sum(v)
            w = [Fraction(x) / norm for x in mine] if norm else []
            W = sum(w, Fraction(0))
            values = (W, W**2, W**4, sum((x**2 for x in w), Fraction(0)), Fraction(W == 0))
            for name, value in zip(FIELDS, values, strict=True):
                totals[name][i] += mass * value
    return {name: np.array([float(x) for x in row]) for name, row in totals.items()}


def federation(sampling: str, samples: tuple[int, ...] | None, size: int | None = 3) -> Federation:
    return Federation(RANKS, samples, None if sampling == "full" else size, sampling)


@pytest.mark.parametrize("samples", [None, UNEQUAL, (1, 2, 1, 2, 1)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rule", ["fedavg", "zero_pad", "raflora"])
def test_equals_brute_force(rule, sampling, samples):
    fed = federation(sampling, samples)
    found, wanted = weight_moments(rule, fed), brute_force(rule, fed)
    assert found.standard_error is None
    for name in FIELDS:
        np.testing.assert_allclose(getattr(found, name), wanted[name], rtol=CLOSE, atol=CLOSE)


@settings(max_examples=25, deadline=None)
@given(
    clients=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4),
    sampling=st.sampled_from([s for s in SAMPLINGS if s != "full"]),
    rule=st.sampled_from(["fedavg", "raflora"]),
    data=st.data(),
)
def test_equals_brute_force_on_random_federations(clients, sampling, rule, data):
    ranks, samples = zip(*clients, strict=True)
    fed = Federation(ranks, samples, data.draw(st.integers(1, len(clients))), sampling)
    found, wanted = weight_moments(rule, fed), brute_force(rule, fed)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(found, name), wanted[name], rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement", "bernoulli"])
@pytest.mark.parametrize("rule", ["fedavg", "raflora"])
def test_closed_form_equals_grouped_sum_for_many_equal_clients(rule, sampling):
    fed = Federation("2x11,3x7,8x9", cohort_size=6, sampling=sampling)
    found = weight_moments(rule, fed)
    members = cohort_laws.level_members(fed)
    for h, level in enumerate(fed.levels):
        groups = cohort_laws.client_groups(rule, fed, members[:, h])
        wanted = cohort_laws.enumerate_moments(fed, groups)
        row = [getattr(found, name)[level - 1] for name in FIELDS[:4]]
        np.testing.assert_allclose(row, wanted, rtol=relative("factorization"))


@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement", "bernoulli"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_count_of_cohorts_is_the_number_of_them(sampling, size):
    fed = Federation((1, 2, 2, 4, 4), (1, 2, 3, 4, 5), size, sampling)
    groups = cohort_laws.client_groups("fedavg", fed, cohort_laws.level_members(fed)[:, 1])
    distinct = {counts for _, counts in cohorts(fed)}
    # the count includes the empty Bernoulli cohort, which has probability zero
    assert cohort_laws.count_cohorts(fed, groups) == pytest.approx(
        len(distinct) if sampling != "bernoulli" else 2**5
    )


@pytest.mark.parametrize("samples", [None, UNEQUAL])
@pytest.mark.parametrize("sampling", ["without_replacement", "bernoulli"])
def test_whole_federation_in_the_cohort_is_full_participation(sampling, samples):
    whole = weight_moments("fedavg", federation(sampling, samples, size=5))
    pi = Federation(RANKS, samples).coverage()
    np.testing.assert_allclose(whole.mean, pi, rtol=CLOSE)
    np.testing.assert_allclose(whole.second, pi**2, rtol=CLOSE)
    np.testing.assert_allclose(whole.fourth, pi**4, rtol=CLOSE)
    np.testing.assert_array_equal(whole.empty, 0.0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rule", ["fedavg", "raflora"])
@pytest.mark.parametrize("samples", [None, UNEQUAL])
def test_direction_carried_by_all_has_weight_exactly_one(rule, sampling, samples):
    found = weight_moments(rule, federation(sampling, samples))
    assert (found.mean[0], found.second[0], found.fourth[0], found.empty[0]) == (1, 1, 1, 0)


def test_directions_of_one_partition_share_their_values():
    found = weight_moments("fedavg", Federation("2x3,5x4", cohort_size=3))
    assert found.mean.shape == (5,)
    assert np.unique(found.second).size == 2
    assert found.second[1] > found.second[2] == found.second[4]


def test_bernoulli_scales_to_a_thousand_clients():
    fed = Federation("4x400,8x300,16x300", cohort_size=10, sampling="bernoulli")
    second = weight_moments("fedavg", fed).second
    pi = fed.coverage()
    # a fixed cohort of 10 fluctuates less than a random one with mean 10
    fixed = weight_moments("fedavg", Federation(fed.ranks, cohort_size=10)).second
    assert np.all(second[4:] > fixed[4:])
    assert np.all(second[4:] > pi[4:] ** 2)


def test_sampled_moments_are_within_their_standard_errors():
    for sampling in ("without_replacement", "with_replacement", "bernoulli", "size_weighted"):
        fed = federation(sampling, UNEQUAL)
        for rule in ("fedavg", "raflora"):
            exact = weight_moments(rule, fed)
            estimate, error = cohort_laws.sample_moments(rule, fed, 20_000, seed=3)
            columns = [level - 1 for level in fed.levels]
            wanted = np.stack([getattr(exact, name)[columns] for name in FIELDS[:4]])
            gap = np.abs(estimate - wanted)
            assert np.all(gap <= SIGMAS * error + CLOSE)
            assert error[3].min() > 0


def test_too_many_cohorts_warn_and_return_standard_errors(monkeypatch):
    fed = federation("without_replacement", UNEQUAL)
    exact = weight_moments("fedavg", fed)
    monkeypatch.setattr(moments, "ENUMERATION_LIMIT", 3)
    with pytest.warns(MonteCarloWarning, match=r"largest relative standard error \d"):
        found = weight_moments("fedavg", fed)
    assert found.standard_error is not None
    for name in FIELDS:
        error = getattr(found.standard_error, name)
        assert error.shape == (fed.r_max,)
        gap = np.abs(getattr(found, name) - getattr(exact, name))
        assert np.all(gap <= SIGMAS * error + CLOSE)
    with pytest.warns(MonteCarloWarning):
        again = weight_moments("fedavg", fed)
    np.testing.assert_array_equal(found.second, again.second)


def test_sampling_leaves_what_is_exact_for_raflora_exact(monkeypatch):
    fed = federation("bernoulli", UNEQUAL)
    exact = weight_moments("raflora", fed)
    monkeypatch.setattr(moments, "ENUMERATION_LIMIT", 3)
    with pytest.warns(MonteCarloWarning):
        found = weight_moments("raflora", fed)
    np.testing.assert_array_equal(found.second, exact.second)
    assert found.standard_error is not None
    assert not found.standard_error.second.any()
    assert found.standard_error.sum_of_squares.all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_empty_probability_ignores_sample_counts_unless_they_decide_the_draw(sampling):
    equal = empty_probability(federation(sampling, None))
    unequal = empty_probability(federation(sampling, UNEQUAL))
    assert np.array_equal(equal, unequal) == (sampling != "size_weighted")


def test_unknown_rule_names_the_closest():
    with pytest.raises(ValueError, match=r"rule='fedagv'.*did you mean 'fedavg'"):
        weight_moments("fedagv", Federation(RANKS))
