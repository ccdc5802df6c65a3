"""Laws of the weight share: every route against brute force, and against each other."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from cohort_cases import (
    ALLOCATIONS,
    CASES,
    NORMALIZERS,
    RANKS,
    UNEQUAL,
    brute_laws,
    cohorts,
    federation,
    federations,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples

from analysis import closed_form
from analysis.cohorts import shares
from analysis.cohorts.exact import (
    count_cohorts,
    enumerate_sums,
    equal_sums,
    group_clients,
    hypergeometric,
    is_equal,
    plan_tables,
    tabulate_sums,
)
from analysis.cohorts.law import DirectionClients, MonteCarloWarning, ShareLaw, views
from analysis.cohorts.shares import expect, sample_laws, share_laws, weight_moments
from fedlora_sim import Scenario
from fedlora_sim.federation import SAMPLINGS, Federation
from fedlora_sim.tolerances import relative

CLOSE = relative("factorization")
SIGMAS = 5.0  # one false alarm in a few million comparisons
every_case = pytest.mark.parametrize(("sampling", "normalizer", "allocation"), CASES)


def assert_same_law(found: ShareLaw, share, probability, squares) -> None:
    np.testing.assert_allclose(found.share, share, rtol=CLOSE)
    np.testing.assert_allclose(found.probability, probability, rtol=CLOSE)
    np.testing.assert_allclose(found.squares, squares, rtol=CLOSE)


def assert_brute(found: ShareLaw, wanted) -> None:
    rows = [(W, p, q) for W, (p, q) in wanted.items()]
    assert_same_law(found, *np.array(rows, dtype=np.float64).T)
    assert found.empty == pytest.approx(float(wanted.get(0, (0, 0))[0]), rel=CLOSE, abs=0)
    assert found.draws is None


def by_enumeration(clients: DirectionClients) -> ShareLaw:
    return enumerate_sums(clients, group_clients(clients)).law(clients)


def by_tables(clients: DirectionClients) -> ShareLaw:
    plan = plan_tables(clients)
    assert plan is not None
    return tabulate_sums(clients, plan).law(clients)


def by_equal_weights(clients: DirectionClients) -> ShareLaw:
    assert is_equal(clients)
    return equal_sums(clients).law(clients)


ROUTES = (by_enumeration, by_tables, by_equal_weights)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [None, UNEQUAL, (6, 2, 2, 6), (0.5, 1.25, 1.0, 0.5)])
@every_case
def test_laws_equal_brute_force(sampling, normalizer, allocation, samples):
    fed = federation(sampling, samples)
    found = share_laws(fed, normalizer, allocation)
    wanted = brute_laws(fed, normalizer, allocation)
    for law, brute in zip(found, wanted, strict=True):
        assert_brute(law, brute)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [(2, 2, 2, 2), UNEQUAL])
@every_case
def test_every_route_equals_brute_force(sampling, normalizer, allocation, samples):
    fed = federation(sampling, samples, size=2)
    levels = views(fed, normalizer, allocation)
    for clients, brute in zip(levels, brute_laws(fed, normalizer, allocation), strict=True):
        for route in ROUTES if is_equal(clients) else ROUTES[:2]:
            assert_brute(route(clients), brute)


@settings(max_examples=examples(40))
@given(
    data=st.data(),
    sampling=st.sampled_from(SAMPLINGS),
    normalizer=st.sampled_from(NORMALIZERS),
    allocation=st.sampled_from(ALLOCATIONS),
)
def test_routes_equal_brute_force_in_random_federations(data, sampling, normalizer, allocation):
    fed = data.draw(federations(sampling))
    levels = views(fed, normalizer, allocation)
    for clients, brute in zip(levels, brute_laws(fed, normalizer, allocation), strict=True):
        assert_brute(by_enumeration(clients), brute)
        assert_brute(by_tables(clients), brute)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [(2,) * 14, (1, 2) * 7, (3, 5, 5, 1, 3, 3, 1) * 2])
@every_case
def test_routes_agree_in_larger_federations(sampling, normalizer, allocation, samples):
    fed = federation(sampling, samples, 4, (2,) * 5 + (3,) * 5 + (8,) * 4)
    for clients in views(fed, normalizer, allocation)[-2:]:
        law = by_enumeration(clients)
        for route in ROUTES[1:] if is_equal(clients) else ROUTES[1:2]:
            assert_same_law(route(clients), law.share, law.probability, law.squares)


@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement", "bernoulli"])
def test_random_carriers_of_a_thousand_clients(sampling):
    """No other route is fast enough; mean and emptiness have closed forms."""
    fed = Federation("2x300,4x500,8x200", cohort_size=40, sampling=sampling)
    [law] = share_laws(fed, "cohort", "random")
    assert law.expect(law.share) == pytest.approx(fed.coverage("random")[0], rel=CLOSE)
    [law] = share_laws(fed, "federation", "random")
    assert law.expect(law.share) == pytest.approx(fed.coverage("random")[0], rel=CLOSE)
    if sampling == "bernoulli":
        empty = np.prod([1 - 0.04 * r / 8 for r in fed.ranks])
        assert law.empty == pytest.approx(empty, rel=CLOSE)


@pytest.mark.parametrize(("total", "marked", "size"), [(7, 3, 4), (7, 5, 4), (6, 0, 3), (5, 5, 5)])
def test_hypergeometric_is_that_of_binomial_coefficients(total, marked, size):
    law = [math.comb(marked, d) * math.comb(total - marked, size - d) for d in range(size + 1)]
    np.testing.assert_array_equal(
        hypergeometric(total, marked, size), np.array(law) / math.comb(total, size)
    )


def test_moments_are_computed_once_and_cannot_be_changed():
    federation = Federation("2x3,4x2", (1, 2, 3, 4, 5), 3)
    moments = weight_moments("cohort", federation)
    assert weight_moments("cohort", federation) is moments
    with pytest.raises(ValueError, match="read-only"):
        moments.mean[0] = 0.0
    gain = closed_form.noise_gain(Scenario("2x3,4x2", cohort_size=3), "fedavg")
    gain[:] = 0.0
    assert (closed_form.noise_gain(Scenario("2x3,4x2", cohort_size=3), "fedavg") > 0).all()


def test_cheapest_route_is_taken(monkeypatch):
    """Many cohorts with few sums use tables; few cohorts with many sums use enumeration."""
    taken = []
    for name in ("enumerate_sums", "tabulate_sums", "equal_sums"):
        original = getattr(shares, name)
        monkeypatch.setattr(shares, name, lambda *a, o=original, n=name: taken.append(n) or o(*a))
    share_laws(Federation("1x10,2x10", tuple(range(1, 21)), 10))
    assert taken[-1] == "tabulate_sums"
    taken.clear()
    share_laws(Federation((1, 2, 2), (100_003, 7, 30_011), 2))
    assert set(taken) == {"enumerate_sums"}
    taken.clear()
    share_laws(Federation((1, 2, 2), (5, 5, 5), 2))
    assert set(taken) == {"equal_sums"}


@pytest.mark.parametrize("sampling", [s for s in SAMPLINGS if s != "full"])
@pytest.mark.parametrize("size", [1, 3])
def test_count_of_cohorts_is_the_number_of_them(sampling, size):
    fed = federation(sampling, (1, 2, 3, 4), size)
    clients = views(fed, "cohort", "svd")[1]
    distinct = {counts for _, counts in cohorts(fed, redrawn=False)}
    assert count_cohorts(clients, group_clients(clients)) == len(distinct)


@pytest.mark.parametrize("samples", [(0.5, 1.5, 1.0, 2.0), (2.0**60, 1.0, 1.0, 2.0)])
def test_tables_refuse_fractions(samples):
    clients = views(federation("without_replacement", samples), "cohort", "svd")[0]
    assert plan_tables(clients) is None


def test_common_divisor_keeps_tables_small():
    plain = plan_tables(views(federation("bernoulli", UNEQUAL), "cohort", "random")[0])
    scaled = tuple(1000 * n for n in UNEQUAL)
    large = plan_tables(views(federation("bernoulli", scaled), "cohort", "random")[0])
    assert plain is not None
    assert large is not None
    assert (plain.cells, plain.work) == (large.cells, large.work)
    assert large.unit == 1000


@pytest.mark.parametrize("sampling", ["without_replacement", "bernoulli"])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_whole_federation_in_the_cohort_is_full_participation(sampling, normalizer, allocation):
    for samples in (None, UNEQUAL):
        whole = share_laws(federation(sampling, samples, 4), normalizer, allocation)
        full = share_laws(federation("full", samples), normalizer, allocation)
        for law, other in zip(whole, full, strict=True):
            assert_same_law(law, other.share, other.probability, other.squares)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("samples", [None, UNEQUAL, (0.1, 0.2, 0.3, 0.7)])
def test_direction_carried_by_all_has_share_exactly_one(sampling, samples):
    for normalizer in ("cohort", "contributors"):
        law = share_laws(federation(sampling, samples), normalizer)[0]
        assert (law.share.tolist(), law.probability.tolist(), law.empty) == ([1.0], [1.0], 0.0)
        [law] = share_laws(federation(sampling, samples, ranks=(3,) * 4), normalizer, "random")
        assert (law.share.tolist(), law.probability.tolist(), law.empty) == ([1.0], [1.0], 0.0)


@every_case
def test_sampled_laws_lie_within_their_standard_errors(sampling, normalizer, allocation):
    fed = federation(sampling, UNEQUAL, size=2)
    exact = share_laws(fed, normalizer, allocation)
    sampled = sample_laws(fed, views(fed, normalizer, allocation), 20_000, seed=3)
    for law, wanted in zip(sampled, exact, strict=True):
        assert law.empty == wanted.empty
        assert law.probability.sum() == pytest.approx(1.0, rel=CLOSE)
        pairs = [(law.share**k, wanted.share**k) for k in (1, 2, 4)]
        for values, other in [*pairs, (law.squares, wanted.squares)]:
            gap = abs(law.expect(values) - wanted.expect(other))
            assert gap <= SIGMAS * law.standard_error(values) + CLOSE


def test_too_many_cohorts_warn_and_state_the_error(monkeypatch):
    fed = federation("bernoulli", UNEQUAL)
    exact = share_laws(fed)
    monkeypatch.setattr(shares, "ENUMERATION_LIMIT", 3)
    monkeypatch.setattr(shares, "CELL_LIMIT", 3)
    with pytest.warns(MonteCarloWarning, match=r"largest relative standard error \d") as caught:
        found = share_laws(fed)
    assert caught[0].filename == __file__
    stated = float(str(caught[0].message).split()[-1])
    worst = max(
        law.standard_error(v) / law.expect(v)
        for law in found
        for v in (law.share, law.share**2, law.share**4, law.squares)
    )
    assert stated == pytest.approx(worst, rel=0.01)
    with pytest.warns(MonteCarloWarning):
        means = expect(fed, "cohort", np.square)
    wanted = [law.expect(law.share**2) for law in exact]
    for mean, value, law in zip(means[[0, 1, 3]], wanted, found, strict=True):
        assert abs(mean - value) <= SIGMAS * law.standard_error(law.share**2)


def test_laws_within_limits_never_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        share_laws(Federation(RANKS * 5, UNEQUAL * 5, 6), "cohort", "svd")


def test_no_contributor_in_any_random_cohort_is_refused():
    fed = Federation("1x60,2", tuple(range(1, 62)), 1)
    with pytest.raises(ValueError, match=r"cohort_size=1: expected a contributor in 2 random"):
        sample_laws(fed, views(fed, "cohort", "svd"), 2, seed=0)


def test_expect_per_direction_and_conditional_law():
    fed = federation("without_replacement", UNEQUAL, size=1)
    found = expect(fed, "cohort", lambda W: np.where(W > 0, 1.0, 0.0))
    np.testing.assert_allclose(found, [1, 3 / 4, 1 / 4, 1 / 4], rtol=CLOSE)
    law = share_laws(fed)[1].given_contributor()
    assert law.empty == 0
    assert law.share.tolist() == [1.0]
    assert expect(fed, "cohort", np.square, "random").shape == (fed.r_max,)


def test_laws_are_read_only():
    law = share_laws(federation("bernoulli"))[0]
    with pytest.raises(ValueError, match="read-only"):
        law.share[0] = 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cohrot", "svd"), r"normalizer='cohrot'.*did you mean 'cohort'"),
        (("cohort", "rand"), r"allocation='rand'.*did you mean 'random'"),
        (("cohort", "importance"), r"allocation='importance'.*no closed form"),
    ],
)
def test_unknown_words_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        share_laws(Federation(RANKS), *arguments)
