"""Derivations of rotated directions, against matrices."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from derivation_cases import CLOSE, evaluate
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples

from analysis.derivations import alignment
from analysis.derivations.symbols import x


@pytest.mark.slow
@settings(max_examples=examples(20))
@given(angle=st.floats(0.0, 1.5), first=st.floats(0.1, 5.0), second=st.floats(0.1, 5.0))
def test_indices_are_those_of_a_turned_matrix(angle, first, second):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    values = {alignment.theta: angle, x: first, alignment.x_other: second}
    for amplitudes, index in (
        ((first, 0.0), alignment.preservation_index()),
        ((first, second), alignment.exchange_index()),
    ):
        update = turn @ np.diag(amplitudes) @ turn.T
        seen = np.diag(update)[: np.count_nonzero(amplitudes)]
        found = (seen**2).sum() / (update**2).sum()
        assert found == pytest.approx(evaluate(index, values), rel=CLOSE, abs=CLOSE)
    lone = turn @ np.diag((first, 0.0)) @ turn.T
    assert lone[0, 0] / first == pytest.approx(evaluate(alignment.gain(), values), abs=CLOSE)


@pytest.mark.slow
def test_tolerated_angle_costs_what_is_tolerated():
    at = alignment.gain().subs(alignment.theta, alignment.tolerated_angle()) ** 2
    assert sp.simplify(at - (1 - alignment.epsilon)) == 0
    assert alignment.small_angle_loss() == -2 * alignment.theta**2
    same = alignment.exchange_index().subs(alignment.x_other, x)
    assert sp.simplify(same - 1) == 0
