"""Groups are not divided, and clients are as equal as possible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from split_cases import assert_partition

from fedlora_sim.errors import InputError
from fedlora_sim.randomness import stream
from fedlora_sim.splits import writer_split

WRITERS = st.lists(st.integers(-3, 12), min_size=1, max_size=80).map(np.array)


@given(WRITERS, st.data(), st.integers(0, 2**32))
def test_every_writer_goes_to_one_client(
    groups: np.ndarray, data: st.DataObject, seed: int
) -> None:
    num_clients = data.draw(st.integers(1, len(np.unique(groups))))
    clients = writer_split(groups, num_clients, stream(seed))
    assert_partition(clients, num_clients, len(groups))
    owners = [set(groups[own].tolist()) for own in clients]
    assert all(owners)
    assert sum(len(own) for own in owners) == len(np.unique(groups))
    for one, other in zip(clients, writer_split(groups, num_clients, stream(seed)), strict=True):
        np.testing.assert_array_equal(one, other)


@given(WRITERS, st.data(), st.integers(0, 2**32))
def test_sizes_differ_by_at_most_the_largest_writer(
    groups: np.ndarray, data: st.DataObject, seed: int
) -> None:
    """Graham's bound for any greedy order: the fullest was the emptiest before its last group."""
    _, counts = np.unique(groups, return_counts=True)
    num_clients = data.draw(st.integers(1, len(counts)))
    sizes = [len(own) for own in writer_split(groups, num_clients, stream(seed))]
    assert max(sizes) - min(sizes) <= counts.max()


def test_the_largest_go_first() -> None:
    groups = np.repeat([5, 6, 7, 8, 9], [4, 9, 3, 2, 6])
    owners = [set(groups[own].tolist()) for own in writer_split(groups, 2, stream(0))]
    # 9 | 6, then 4 to the 6, 3 to the 9, 2 to the 10: 12 samples each
    assert sorted(owners, key=len) == [{6, 7}, {5, 8, 9}]


def test_ties_are_broken_by_the_seed() -> None:
    groups = np.repeat(np.arange(6), 5)
    found = {
        tuple(tuple(own.tolist()) for own in writer_split(groups, 3, stream(seed)))
        for seed in range(20)
    }
    assert len(found) > 10


@pytest.mark.parametrize(
    ("groups", "clients", "least", "message"),
    [
        (None, 2, 1, "groups=None: expected the writer of every sample for split='by_writer'"),
        (np.array([1, 1, 2, 2]), 3, 1, "num_clients=3: expected at most 2, the number of groups"),
        (np.array([1, 1, 2, 2]), 5, 1, "num_clients=5: expected at most 4 samples / 1 each"),
        (np.array([1, 1, 1, 2]), 2, 2, "min_samples=2: expected at most 1, the smallest client"),
        (np.array([[1, 2]]), 1, 1, r"groups='shape \(1, 2\)'"),
        (np.array([1, 2]), 0, 1, "num_clients=0"),
    ],
)
def test_bad_input_names_the_argument(
    groups: np.ndarray | None, clients: int, least: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        writer_split(groups, clients, stream(0), min_samples=least)
