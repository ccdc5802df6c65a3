"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedlora_sim import threads


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread, as in a run: sums in the same order, whatever the machine."""
    with threads.one_thread():
        yield
