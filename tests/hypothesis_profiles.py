"""Hypothesis profiles of all tests: HYPOTHESIS_PROFILE = quick | ci | deep.

quick: a tenth of the examples, for `make check`. ci, the default: for `make test` and the gate.
deep: thousands, new ones each time, for `make test-deep`. Only deep draws at random, so a failure
under the other two is caused by a change of the code.
"""

from __future__ import annotations

import os

from hypothesis import settings

CI = 100
settings.register_profile("quick", max_examples=CI // 10, deadline=None, derandomize=True)
settings.register_profile("ci", max_examples=CI, deadline=None, derandomize=True)
settings.register_profile("deep", max_examples=20 * CI, deadline=None, derandomize=False)


def load() -> None:
    """Load the profile of the environment."""
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def is_random() -> bool:
    """Return whether the loaded profile draws new examples each time."""
    return not settings().derandomize


def examples(count: int) -> int:
    """Return a test's number of examples in the loaded profile; `count` is that under ci."""
    return max(1, count * settings().max_examples // CI)
