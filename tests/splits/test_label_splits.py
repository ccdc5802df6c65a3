"""IID, Dirichlet and pathological splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from split_cases import LABELS, assert_partition, labels_and_clients

from fedlora_sim.errors import InputError
from fedlora_sim.randomness import stream
from fedlora_sim.splits import dirichlet_split, iid_split, pathological_split


@given(labels_and_clients(), st.floats(1e-8, 1e6), st.integers(0, 2**32))
def test_dirichlet_is_a_partition(case: tuple[np.ndarray, int, int], alpha: float, seed: int):
    labels, num_clients, least = case
    clients = dirichlet_split(labels, num_clients, alpha, stream(seed), min_samples=least)
    assert_partition(clients, num_clients, len(labels))
    assert min(len(own) for own in clients) >= least


@given(labels_and_clients(), st.integers(0, 2**32))
def test_iid_is_a_partition_into_equal_parts(case: tuple[np.ndarray, int, int], seed: int):
    labels, num_clients, least = case
    clients = iid_split(labels, num_clients, stream(seed), min_samples=least)
    assert_partition(clients, num_clients, len(labels))
    sizes = [len(own) for own in clients]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 20), st.integers(1, 10), st.integers(0, 2**32))
def test_pathological_gives_every_client_its_number_of_classes(
    num_clients: int, per_client: int, seed: int
):
    if num_clients * per_client < 10:
        with pytest.raises(InputError, match="classes_per_client"):
            pathological_split(LABELS, num_clients, per_client, stream(seed))
        return
    clients = pathological_split(LABELS, num_clients, per_client, stream(seed))
    assert_partition(clients, num_clients, len(LABELS))
    assert {len(np.unique(LABELS[own])) for own in clients} == {per_client}
    owners = [sum(label in LABELS[own] for own in clients) for label in range(10)]
    assert max(owners) - min(owners) <= 1


def test_same_seed_same_split():
    for split in (
        lambda rng: dirichlet_split(LABELS, 7, 0.3, rng),
        lambda rng: pathological_split(LABELS, 7, 3, rng),
        lambda rng: iid_split(LABELS, 7, rng),
    ):
        for first, second in zip(split(stream(5)), split(stream(5)), strict=True):
            np.testing.assert_array_equal(first, second)


def test_small_alpha_skews_and_large_alpha_does_not():
    def largest_class_share(alpha: float) -> float:
        clients = dirichlet_split(LABELS, 5, alpha, stream(1), min_samples=5)
        shares = [np.bincount(LABELS[own], minlength=10).max() / len(own) for own in clients]
        return float(np.mean(shares))

    assert largest_class_share(0.05) > 0.3
    assert largest_class_share(1e4) < 0.15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iid_split(LABELS, 0, stream(0)), "num_clients=0"),
        (lambda: iid_split(LABELS, 301, stream(0)), "num_clients=301"),
        (lambda: iid_split(LABELS, 30, stream(0), min_samples=11), "at most 300 samples / 11"),
        (lambda: iid_split(LABELS, 3, stream(0), min_samples=0), "min_samples=0"),
        (lambda: iid_split(LABELS.reshape(2, -1), 3, stream(0)), r"labels='shape \(2, 150\)'"),
        (lambda: dirichlet_split(LABELS, 3, 0.0, stream(0)), "alpha=0.0"),
        (lambda: dirichlet_split(LABELS, 3, float("nan"), stream(0)), "alpha=nan"),
        (lambda: pathological_split(LABELS, 3, 11, stream(0)), "classes_per_client=11"),
        (lambda: pathological_split(LABELS, 3, 2, stream(0)), "4 to 10"),
        (lambda: pathological_split(LABELS[::30], 3, 10, stream(0)), "at least 3 samples"),
        (
            lambda: pathological_split(LABELS, 10, 1, stream(0), min_samples=30),
            None,
        ),
        (
            lambda: pathological_split(LABELS, 20, 1, stream(0), min_samples=15),
            None,
        ),
        (
            lambda: pathological_split(LABELS[:295], 10, 1, stream(0), min_samples=29),
            "at most 25, the smallest client",
        ),
    ],
)
def test_bad_input_names_the_argument(call, message: str | None):
    if message is None:
        call()
        return
    with pytest.raises(InputError, match=message):
        call()
