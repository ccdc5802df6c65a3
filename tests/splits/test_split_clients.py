"""A scenario's split, and the table of samples per client and class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from split_cases import LABELS, assert_partition, labels_and_clients

from fedlora_sim.errors import InputError
from fedlora_sim.finetune.batches import split_clients
from fedlora_sim.randomness import stream
from fedlora_sim.splits import (
    dirichlet_split,
    iid_split,
    pathological_split,
    quantity_split,
    split_table,
    writer_split,
)
from fedlora_sim.tasks import Examples

WRITERS = np.arange(len(LABELS)) // 7
CLASSES = Examples({"x": torch.zeros(len(LABELS), 2)}, torch.from_numpy(LABELS), groups=WRITERS)
TOKENS = Examples({"x": torch.zeros(len(LABELS), 2)}, torch.zeros(len(LABELS), 2).long())


def scenario(split: str) -> Any:
    """Return the fields that a split looks at."""
    return SimpleNamespace(
        ranks=(2, 4, 4, 8),
        split=split,
        dirichlet_alpha=0.3,
        classes_per_client=3,
        quantity_alpha=0.7,
    )


@pytest.mark.parametrize(
    ("split", "wanted"),
    [
        ("iid", lambda rng: iid_split(LABELS, 4, rng)),
        ("dirichlet", lambda rng: dirichlet_split(LABELS, 4, 0.3, rng)),
        ("pathological", lambda rng: pathological_split(LABELS, 4, 3, rng)),
        ("quantity", lambda rng: quantity_split(LABELS, 4, 0.7, rng)),
        ("by_writer", lambda rng: writer_split(WRITERS, 4, rng)),
    ],
)
def test_a_scenario_names_its_split(split: str, wanted: Any) -> None:
    found = split_clients(scenario(split), CLASSES, 5)
    assert_partition(found, 4, len(LABELS))
    for one, other in zip(found, wanted(stream(5, "split")), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("split", ["iid", "quantity"])
def test_tokens_can_be_split_without_classes(split: str) -> None:
    assert_partition(split_clients(scenario(split), TOKENS, 0), 4, len(LABELS))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("dirichlet", "classes=None"),
        ("pathological", "classes=None"),
        ("by_writer", "groups=None: expected the writer of every sample for split='by_writer'"),
    ],
)
def test_missing_data_for_a_split_are_named(split: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_clients(scenario(split), TOKENS, 0)


@given(labels_and_clients(), st.integers(0, 2**32))
def test_the_table_counts_every_sample_once(case: tuple[np.ndarray, int, int], seed: int) -> None:
    labels, num_clients, _ = case
    clients = iid_split(labels, num_clients, stream(seed))
    table = split_table(clients, labels, 6)
    assert table.shape == (num_clients, 6)
    np.testing.assert_array_equal(table.sum(1), [len(own) for own in clients])
    np.testing.assert_array_equal(table.sum(0), np.bincount(labels, minlength=6))


def test_the_table_of_a_small_split() -> None:
    clients = [np.array([0, 3]), np.array([1, 2, 4])]
    table = split_table(clients, np.array([0, 2, 2, 0, 1]), 4)
    np.testing.assert_array_equal(table, [[2, 0, 0, 0], [0, 1, 2, 0]])
    assert table.dtype == np.int64


@pytest.mark.parametrize(
    ("classes", "number", "message"),
    [
        ([0, 1, 3], 3, "classes='0 to 3': expected 0 to 2, of 3 classes"),
        ([-1, 1, 2], 3, "classes='-1 to 2'"),
        ([0, 0, 0], 0, "num_classes=0"),
    ],
)
def test_classes_out_of_range_are_refused(classes: list[int], number: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_table([np.arange(3)], np.array(classes), number)
