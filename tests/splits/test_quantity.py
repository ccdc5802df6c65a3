"""Quantity skew: sizes differ, classes do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from split_cases import LABELS, assert_partition, labels_and_clients

from fedlora_sim.errors import InputError
from fedlora_sim.randomness import stream
from fedlora_sim.splits import quantity_split


@given(labels_and_clients(), st.floats(1e-8, 1e6), st.integers(0, 2**32))
def test_it_is_a_partition(case: tuple[np.ndarray, int, int], alpha: float, seed: int) -> None:
    labels, num_clients, least = case
    clients = quantity_split(labels, num_clients, alpha, stream(seed), min_samples=least)
    assert_partition(clients, num_clients, len(labels))
    assert min(len(own) for own in clients) >= least


@given(st.permutations(range(10)), st.integers(0, 2**32))
def test_labels_do_not_matter(order: list[int], seed: int) -> None:
    first, second = (
        quantity_split(labels, 7, 0.5, stream(seed)) for labels in (LABELS, np.repeat(order, 30))
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_sizes_are_the_rounded_dirichlet_shares() -> None:
    rng = stream(3)
    rng.permutation(len(LABELS))
    ends = np.rint(np.cumsum(rng.dirichlet(np.full(4, 5.0))) * len(LABELS))
    sizes = [len(own) for own in quantity_split(LABELS, 4, 5.0, stream(3))]
    np.testing.assert_array_equal(sizes, np.diff(ends, prepend=0))


def test_small_alpha_skews_sizes_and_leaves_classes_alike() -> None:
    labels = np.tile(np.arange(4), 5000)
    skewed = quantity_split(labels, 10, 0.1, stream(1))
    sizes = np.array([len(own) for own in skewed])
    assert sizes.max() > 10 * np.median(sizes)
    largest = labels[skewed[int(sizes.argmax())]]
    # A class is a quarter of the samples; its count is within five standard deviations of that.
    spread = 5 * np.sqrt(len(largest) * 0.25 * 0.75)
    assert np.abs(np.bincount(largest) - len(largest) / 4).max() < spread
    equal = [len(own) for own in quantity_split(labels, 10, 1e6, stream(1))]
    assert max(equal) < 1.1 * min(equal)


@pytest.mark.parametrize(
    ("alpha", "clients", "least", "message"),
    [
        (0.0, 3, 1, "alpha=0.0"),
        (float("inf"), 3, 1, "alpha=inf"),
        (1.0, 301, 1, "num_clients=301: expected at most 300 samples / 1 each"),
        (1.0, 0, 1, "num_clients=0"),
        (1.0, 30, 11, "at most 300 samples / 11 each"),
        (1.0, 3, 0, "min_samples=0"),
    ],
)
def test_bad_input_names_the_argument(alpha: float, clients: int, least: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantity_split(LABELS, clients, alpha, stream(0), min_samples=least)


def test_more_than_one_label_per_sample_is_refused() -> None:
    with pytest.raises(InputError, match=r"labels='shape \(2, 150\)'"):
        quantity_split(LABELS.reshape(2, -1), 3, 1.0, stream(0))
