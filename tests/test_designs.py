"""Covering designs: complete, with few cases; the deep profile runs the full product."""

from __future__ import annotations

from itertools import combinations, product

import hypothesis_profiles
import pytest
from designs import covering, each_value, pairwise

AXES = {"rule": "abcdefg", "law": range(5), "allocation": ("svd", "random"), "noise": (0.0, 0.1)}
SIZES = [len(values) for values in AXES.values()]


def possible(rule, law, allocation, noise):
    return not (rule == "a" and allocation == "random") and not (law == 4 and noise)


@pytest.mark.parametrize("only", [None, possible])
@pytest.mark.parametrize("strength", [1, 2, 3, 4])
def test_every_combination_of_values_occurs(strength, only):
    whole = [c for c in product(*AXES.values()) if only is None or only(*c)]
    chosen = covering(AXES, strength, only)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(whole)
    for places in combinations(range(4), strength):
        assert {tuple(c[i] for i in places) for c in chosen} == {
            tuple(c[i] for i in places) for c in whole
        }


def test_a_design_has_few_cases_and_is_the_same_every_time():
    first, second = sorted(SIZES)[-2:]
    assert first * second <= len(covering(AXES, 2)) <= 1.2 * first * second
    assert len(covering(AXES, 1)) == max(SIZES)
    assert len(covering(AXES, 4)) == len(list(product(*AXES.values())))
    assert covering(AXES, 2) == covering(AXES, 2)


@pytest.mark.parametrize(("design", "strength"), [(pairwise, 2), (each_value, 1)])
@pytest.mark.parametrize("deep", [False, True])
def test_the_deep_profile_runs_the_full_product(design, strength, deep, monkeypatch):
    monkeypatch.setattr(hypothesis_profiles, "is_random", lambda: deep)

    @design(**AXES)
    def test(rule, law, allocation, noise):
        pass

    marks = {mark.name: mark for mark in test.pytestmark}
    names, cases = marks["parametrize"].args
    assert names == tuple(AXES)
    assert cases == covering(AXES, 4 if deep else strength)
    assert "design" in marks  # by which `make test-deep` finds it
