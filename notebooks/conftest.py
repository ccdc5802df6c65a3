"""The notebooks as tests, `pytest --nbmake`: each runs to its end, within what a reader waits."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

LIMIT = 120.0
"""Seconds of computing that a notebook may take; not by the clock, which other work slows down."""


def computing() -> float:
    """Seconds that the processes of this one have computed, once they have ended."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """A notebook that takes too long has failed."""
    before = computing()
    yield
    if item.path.suffix == ".ipynb":
        spent = computing() - before
        assert spent <= LIMIT, f"{item.path.name} computes for {spent:.0f} s, more than {LIMIT:g}"
