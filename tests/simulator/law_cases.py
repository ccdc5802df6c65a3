"""What the tests of the laws of aggregation share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from simulator_cases import (
    ALL_RULES,
    assert_close,
    map_factors,
    orthogonal,
)

SEEDS = st.integers(0, 2**32 - 1)
every_rule = pytest.mark.parametrize("rule", ALL_RULES)


def all_rules_but(*exceptions):
    """Every rule that states the law; the test says why the others do not."""
    return pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if rule not in exceptions])


def size(cohort):
    parts = (*cohort.updates, cohort.previous)
    return sum(float(torch.linalg.matrix_norm(u.delta())) for u in parts)


def assert_same(rule, one, other, kind="factorization"):
    """Equal global updates; cutting to r_max is left out by rounds of full rank."""
    assert_close(one.delta(rule), other.delta(rule), kind, scale=size(one))


def gauges(cohort, seed):
    """The same updates, each written with an invertible G of its own: `B G`, `G^-1 A`."""
    rng = np.random.default_rng(seed)

    def change(update):
        left, right = orthogonal(rng, update.rank), orthogonal(rng, update.rank)
        g = left * torch.from_numpy(rng.uniform(0.5, 2, update.rank)) @ right
        return map_factors(update, lambda a: torch.linalg.inv(g) @ a, lambda b: b @ g)

    return replace(cohort, updates=tuple(map(change, cohort.updates)))
