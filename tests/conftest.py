"""Fixtures of all tests, and the Hypothesis profile that they run under."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis_profiles
import pytest

from fedlora_sim import runtime

hypothesis_profiles.load()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread, as in a run: sums in the same order, whatever the machine."""
    with runtime.one_thread():
        yield
