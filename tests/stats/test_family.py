"""Families of claims: wrong verdicts of a whole report, and p-values adjusted over it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interval_cases import slack

from analysis.stats import (
    FAMILY_ERROR,
    Prediction,
    Verdict,
    claim_error,
    holm,
    mean_interval,
    measure_until_decided,
)
from fedlora_sim.errors import InputError

CLAIMS, REPORTS = 40, 300
ON_THE_EDGE = Prediction.near(1.0, 1.0)  # contains the true value, zero, as its low end


def share_of_wrong_reports(error: float) -> float:
    """Return the share of reports with a wrong verdict if all claims are just true."""
    rng, wrong = np.random.default_rng(10), 0
    for _ in range(REPORTS):
        noise = rng.standard_normal((CLAIMS, 24, 1))
        wrong += any(
            measure_until_decided(
                lambda i, x=x: x[list(i)], mean_interval, ON_THE_EDGE, 6, 24, error
            )[1]
            is Verdict.REFUTED
            for x in noise
        )
    return wrong / REPORTS


@pytest.mark.slow
def test_a_report_of_forty_true_claims_is_wrong_at_most_at_the_familys_rate() -> None:
    assert share_of_wrong_reports(claim_error(CLAIMS)) < FAMILY_ERROR + slack(FAMILY_ERROR, REPORTS)


@pytest.mark.slow
def test_claims_that_do_not_share_the_error_fail_the_same_test() -> None:
    assert share_of_wrong_reports(FAMILY_ERROR) > FAMILY_ERROR + slack(FAMILY_ERROR, REPORTS)


def test_parts_add_up_to_the_familys_error() -> None:
    assert 17 * claim_error(17) == pytest.approx(FAMILY_ERROR)
    with pytest.raises(InputError, match="claims=0"):
        claim_error(0)


def test_holm_on_a_textbook_example() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, 0.04], size=4), [0.04, 0.12])
    assert holm([]).shape == (0,)
    with pytest.raises(InputError, match="size=1"):
        holm([0.1, 0.2], size=1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 5))
def test_holm_lies_between_the_p_value_and_bonferronis(p: list[float], absent: int) -> None:
    size = len(p) + absent
    adjusted = holm(p, size)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(size * np.array(p), 1)).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    np.testing.assert_array_equal(holm([*p, *([1.0] * absent)])[: len(p)], adjusted)
