"""Cohort laws: sizes, marginal and joint frequencies, no empty cohort, draws fixed by the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator_cases import LAWS, SIGMAS, quick

from fedlora_sim import Federation, Scenario
from fedlora_sim.engines.cohort_draws import cohort_counts
from fedlora_sim.federation import cohort_slots, draw_cohorts
from fedlora_sim.randomness import stream

SAMPLES = (5, 1, 2, 7, 3, 3)
K, M, ROUNDS = len(SAMPLES), 3, 20_000


def by_generator(sampling, size=M, rounds=ROUNDS, seed=0):
    federation = Federation([1] * K, SAMPLES, K if sampling == "full" else size, sampling)
    return draw_cohorts(federation, rounds, stream(seed, "cohorts"))


def by_number(sampling, size=M, rounds=ROUNDS, seed=0):
    size = K if sampling == "full" else size
    ranks = (2, 1, 4, 1, 2, 2)
    scenario = Scenario(
        ranks, num_samples=SAMPLES, cohort_size=size, sampling=sampling, rounds=rounds
    )
    return cohort_counts(scenario, seed)


@pytest.fixture(params=[by_generator, by_number], ids=lambda draw: draw.__name__)
def draw(request):
    """Return one of the two ways to draw cohorts: of fine-tuning, and of the simulators."""
    return request.param


def assert_frequency(hits, probability):
    """Check the relative frequency over the first axis within the spread of a binomial share."""
    spread = np.sqrt(np.asarray(probability) * (1 - np.asarray(probability)) / len(hits))
    assert np.all(np.abs(hits.mean(0) - probability) <= SIGMAS * spread)


def test_full_takes_every_client_once(draw):
    np.testing.assert_array_equal(draw("full"), 1)


@pytest.mark.parametrize("size", [1, M, K - 1, K])
def test_without_replacement_draws_uniform_subsets(draw, size):
    counts = draw("without_replacement", size)
    assert set(np.unique(counts)) <= {0, 1}
    np.testing.assert_array_equal(counts.sum(1), size)
    assert_frequency(counts, np.full(K, size / K))
    i, j = np.triu_indices(K, 1)
    pair = size * (size - 1) / (K * (K - 1))
    assert_frequency(counts[:, i] * counts[:, j], np.full(len(i), pair))


@pytest.mark.parametrize("law", ["with_replacement", "size_weighted"])
def test_repeated_draws_are_multinomial(draw, law):
    counts = draw(law)
    p = np.full(K, 1 / K) if law == "with_replacement" else np.divide(SAMPLES, sum(SAMPLES))
    np.testing.assert_array_equal(counts.sum(1), M)
    for times in range(M + 1):
        choose = [1, 3, 3, 1][times]
        assert_frequency(counts == times, choose * p**times * (1 - p) ** (M - times))


@pytest.mark.parametrize("size", [1, M, K])
def test_bernoulli_is_independent_given_that_the_cohort_is_not_empty(draw, size):
    counts = draw("bernoulli", size)
    p = size / K
    somebody = 1 - (1 - p) ** K
    assert set(np.unique(counts)) <= {0, 1}
    assert counts.sum(1).min() >= 1
    assert_frequency(counts, np.full(K, p / somebody))
    assert_frequency(counts[:, :1] * counts[:, 1:], np.full(K - 1, p**2 / somebody))


def test_rounds_are_independent(draw):
    first, second = draw("without_replacement")[:-1], draw("without_replacement")[1:]
    # Neighboring pairs overlap; every second pair is independent.
    assert_frequency((first * second)[::2], np.full(K, (M / K) ** 2))


@pytest.mark.parametrize("law", LAWS)
def test_a_seed_is_its_draws(draw, law):
    np.testing.assert_array_equal(draw(law, rounds=50), draw(law, rounds=50))
    assert draw(law, rounds=50).dtype == np.int64
    assert law == "full" or not np.array_equal(draw(law, rounds=50), draw(law, rounds=50, seed=1))
    assert draw(law, size=1, rounds=2000).sum(1).min() >= 1


def test_rules_and_fidelities_use_the_same_cohorts():
    one = Scenario("1x6", cohort_size=2, rounds=20)
    other = one.replace(fidelity="matrix", gain_std=0.3, heterogeneity="persistent")
    np.testing.assert_array_equal(cohort_counts(one, 7), cohort_counts(other, 7))


def test_streams_of_different_purposes_differ():
    purposes = [("a",), ("b",), ("a", 0), ("a", 0, 0), ("a", 1), ("a", 0, 1), ("a", 1, 0)]
    firsts = {stream(3, *purpose).random() for purpose in purposes}
    assert len(firsts) == len(purposes)
    assert stream(3, "a").random() == stream(3, "a").random() != stream(4, "a").random()


@quick
@given(
    st.lists(
        st.lists(st.integers(0, 3), min_size=4, max_size=4).filter(any), min_size=1, max_size=6
    )
)
def test_slots_list_the_clients_drawn(rows):
    counts = np.array(rows)
    clients, drawn = cohort_slots(counts, counts.shape[1])
    assert clients.shape == drawn.shape == counts.shape
    for row, slots, times in zip(counts, clients, drawn, strict=True):
        present = times > 0
        np.testing.assert_array_equal(slots[present], np.flatnonzero(row))
        np.testing.assert_array_equal(times[present], row[row > 0])
        np.testing.assert_array_equal(slots[~present], 0)


def test_slots_keep_leading_dimensions():
    counts = np.array([[[1, 0, 2], [0, 1, 0]]])
    clients, drawn = cohort_slots(counts, 2)
    np.testing.assert_array_equal(clients, [[[0, 2], [1, 0]]])
    np.testing.assert_array_equal(drawn, [[[1, 2], [1, 0]]])
