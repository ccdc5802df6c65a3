"""Properties of all splits, and data sets to split."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

LABELS = np.repeat(np.arange(10), 30)


def assert_partition(clients: list[np.ndarray], num_clients: int, num_samples: int) -> None:
    assert len(clients) == num_clients
    for own in clients:
        assert own.dtype == np.int64
        np.testing.assert_array_equal(own, np.sort(own))
    np.testing.assert_array_equal(np.sort(np.concatenate(clients)), np.arange(num_samples))


@st.composite
def labels_and_clients(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Return labels (n,), a number of clients and a least number of samples that can be served."""
    labels = np.array(draw(st.lists(st.integers(0, 5), min_size=1, max_size=80)))
    clients = draw(st.integers(1, len(labels)))
    return labels, clients, draw(st.integers(1, len(labels) // clients))
