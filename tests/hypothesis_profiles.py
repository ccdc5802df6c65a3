"""Hypothesis profiles of all tests: HYPOTHESIS_PROFILE = quick | ci | deep.

quick: a few examples, for `make check`. ci, the default: what `make test` and the gate run. deep:
thousands, and others every time, for `make test-deep`. Only deep draws at random: a red test of the
other two means a changed source, never an unlucky day.
"""

from __future__ import annotations

import os

from hypothesis import settings

CI = 100
settings.register_profile("quick", max_examples=CI // 4, deadline=None, derandomize=True)
settings.register_profile("ci", max_examples=CI, deadline=None, derandomize=True)
settings.register_profile("deep", max_examples=20 * CI, deadline=None, derandomize=False)


def load() -> None:
    """Put the profile of the environment in force."""
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def is_random() -> bool:
    """Return whether the profile in force draws other examples every time."""
    return not settings().derandomize


def examples(count: int) -> int:
    """Examples of a test that has `count` of them under ci, under the profile in force."""
    return max(1, count * settings().max_examples // CI)
