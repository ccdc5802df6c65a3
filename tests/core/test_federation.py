"""The federation: ranks as text, levels, partitions, coverage, cohort weights, bad input."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator_cases import assert_close, quick

from fedlora_sim import Federation, parse_ranks
from fedlora_sim.errors import InputError

EPS = float(np.finfo(np.float64).eps)
TINY = Fraction(5e-324)  # shares below the normal range keep fewer digits
RANKS = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("4x8,8x6", (4,) * 8 + (8,) * 6),
        ("8x1,4x2", (8, 4, 4)),
        (" 2 x 3 , 5 ", (2, 2, 2, 5)),
        ("7", (7,)),
        ([3, 1, 2], (3, 1, 2)),
        (np.array([3, 1]), (3, 1)),
        ((2.0, 4), (2, 4)),
    ],
)
def test_ranks_read_as_rank_x_clients(text, ranks):
    assert parse_ranks(text) == ranks
    assert Federation(text).ranks == ranks
    assert all(type(rank) is int for rank in parse_ranks(text))


@pytest.mark.parametrize(
    "ranks",
    [
        *("", "4x", "x8", "4x8,", "4x8;8x6", "4x-1", "-4x8", "4.5x2", "four", "4x0", "0x3"),
        *([], [4, 0], [-1], [2.5], [True], [float("nan")], [None], ["4x8"], 4, None),
    ],
)
def test_ranks_that_cannot_be_read_are_named(ranks):
    with pytest.raises(InputError, match="ranks="):
        parse_ranks(ranks)


WEIGHT = st.floats(0, 2.0**1023, exclude_min=True) | st.floats(0.1, 100) | st.integers(1, 10**6)


@given(RANKS, st.data())
def test_shares_are_exact_ordered_and_independent_of_the_order_of_the_clients(ranks, data):
    samples = data.draw(st.lists(WEIGHT, min_size=len(ranks), max_size=len(ranks)))
    federation = Federation(ranks, samples)
    order = data.draw(st.permutations(range(len(ranks))))
    other = Federation([ranks[k] for k in order], [samples[k] for k in order])
    exact = [Fraction(n) for n in federation.num_samples]
    total = sum(exact)
    for allocation in ("svd", "random"):
        coverage = federation.coverage(allocation)
        np.testing.assert_array_equal(other.coverage(allocation), coverage)
        assert ((coverage >= 0) & (coverage <= 1)).all()
        assert (np.diff(coverage) <= 0).all()
        for i, found in enumerate(coverage):
            carried = [Fraction(min(r, i + 1) - min(r, i)) for r in ranks]
            if allocation == "random":
                carried = [Fraction(r, max(ranks)) for r in ranks]
            wanted = sum(n * c for n, c in zip(exact, carried, strict=True)) / total
            assert abs(Fraction(float(found)) - wanted) <= wanted * Fraction(4 * EPS) + TINY
            assert wanted < 1 or found == 1
    assert abs(math.fsum(federation.weights) - 1) <= len(ranks) * EPS


@quick
@given(RANKS, st.data())
def test_levels_partitions_and_coverage_follow_from_the_ranks(ranks, data):
    sizes = st.lists(st.floats(0.1, 100), min_size=len(ranks), max_size=len(ranks))
    samples = data.draw(sizes)
    federation = Federation(ranks, samples)
    assert federation.levels == tuple(sorted(set(ranks)))
    assert federation.r_max == max(ranks)
    assert federation.num_clients == len(ranks)
    indices = [i for part in federation.partitions for i in range(part.start, part.stop)]
    assert indices == list(range(max(ranks)))
    assert [part.stop for part in federation.partitions] == list(federation.levels)
    wanted = [
        sum(n for r, n in zip(ranks, samples, strict=True) if r > i) / sum(samples)
        for i in range(max(ranks))
    ]
    assert_close(federation.coverage(), wanted)
    assert_close(federation.members.T @ federation.weights, wanted)


def test_coverage_by_hand():
    federation = Federation("1x2,3x2", num_samples=[1, 2, 3, 4])
    assert_close(federation.coverage(), [1, 0.7, 0.7])
    assert_close(Federation("1x2,3x2").coverage(), [1, 0.5, 0.5])


def test_the_default_cohort_is_all_clients():
    assert Federation("1x3").sampling == "full"
    assert Federation("1x3").cohort_size == 3
    assert Federation("1x3", cohort_size=2).sampling == "without_replacement"


def test_cohort_weights_count_samples_and_repeats():
    clients, counts = np.array([0, 2]), np.array([1, 3])
    federation = Federation("1x3", [5, 1, 2], 2, "with_replacement")
    np.testing.assert_array_equal(federation.cohort_weights(clients, counts), [5, 6])
    # The drawing probabilities already include the samples.
    federation = Federation("1x3", [5, 1, 2], 2, "size_weighted")
    np.testing.assert_array_equal(federation.cohort_weights(clients, counts), [1, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": [1, 2]}, r"num_samples=\[1.0, 2.0\].*3 values"),
        ({"num_samples": [1, 2, 0]}, "num_samples="),
        ({"num_samples": [0, 0, 0]}, "num_samples="),
        ({"num_samples": [1, -2, 3]}, "num_samples=-2"),
        ({"num_samples": [1, float("nan"), 3]}, "num_samples=nan"),
        ({"num_samples": [1, float("inf"), 3]}, "num_samples=inf"),
        ({"num_samples": [1, "two", 3]}, "num_samples='two'"),
        ({"num_samples": 5}, "num_samples=5"),
        ({"cohort_size": 0}, "cohort_size=0"),
        ({"cohort_size": -1}, "cohort_size=-1"),
        ({"cohort_size": 1.5}, "cohort_size=1.5"),
        ({"cohort_size": 4}, "cohort_size=4.*3 clients"),
        ({"cohort_size": 2, "sampling": "full"}, "cohort_size=2"),
        ({"sampling": "bernouli"}, "sampling='bernouli'.*'bernoulli'"),
        ({"sampling": ""}, "sampling=''"),
    ],
)
def test_bad_federations_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        Federation([1, 2, 3], **arguments)
