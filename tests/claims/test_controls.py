"""Limits of the width of margins and of the distance of controls, so that no check is too easy."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from analysis.claims import CLAIMS, select
from analysis.claims.base import NEAR, Claim, Control
from analysis.stats import Prediction, every_run, median_interval
from analysis.stats.intervals import MEAN_RUNS
from analysis.stats.series import bracketed

# Maximum margins: of statistics over runs, and of statements on every run.
STATISTIC, EXACT = 0.05, 1e-9
RECORDED = Path(__file__).parents[2] / "results/recorded/report.json"


def too_wide(claim: Claim) -> bool:
    """Return whether a margin is more than 5% of the value, or 0.05 of a share or of a difference.

    Statements on every run have 1e-9. The unit of a one-sided bound, in which distances from it
    are counted, is at most 5% in either case.
    """
    prediction = claim.predict()
    two_sided = np.isfinite(prediction.low) & np.isfinite(prediction.high)
    exact = claim.estimator is every_run and not claim.wide_because
    bound = np.where(two_sided & exact, EXACT, STATISTIC)
    size = np.maximum(np.abs(prediction.value), 0.0 if "%" in prediction.margin else 1.0)
    # The last digit of a product may exceed the bound.
    return not bool((prediction.width <= bound * size * (1 + 1e-12)).all())


def far_or_vacuous(claim: Claim) -> bool:
    """Return whether the wrong prediction of a near control is not 2 to 5 margins from the claim's.

    If the simulation is wrong, or the bound is one-sided, the distance is known only from a run:
    `test_claims` applies the same limits.
    """
    assert claim.near is not None
    if claim.near.experiment is not None or claim.near.predict is None:
        return claim.near.experiment is None
    right, wrong = claim.predict(), claim.near.predict()
    if right.margin.startswith("at "):
        return False
    distance = np.abs(wrong.value - right.value) / wrong.width
    return not bool(((distance >= NEAR[0]) & (distance <= NEAR[1])).all())


def test_margins_are_narrow() -> None:
    assert [claim.id for claim in CLAIMS if too_wide(claim)] == []


def test_the_near_control_is_near() -> None:
    for claim in CLAIMS:
        assert claim.near is not None, claim.id
        assert claim.near.description.strip(), claim.id
        assert claim.near.description != claim.control.description, claim.id
    assert [claim.id for claim in CLAIMS if far_or_vacuous(claim)] == []


def test_a_conjecture_that_can_be_refuted_has_a_positive_control() -> None:
    assert {claim.kind for claim in CLAIMS if claim.positive is not None} <= {"conjecture"}


def test_every_refuted_conjecture_has_a_supported_positive_control() -> None:
    report = json.loads(RECORDED.read_text(encoding="utf-8"))
    refuted = [c for c in report["claims"] if c["verdict"] == "refuted"]
    assert refuted
    for claim in refuted:
        assert claim["kind"] == "conjecture"
        assert claim["positive_control"]["verdict"] == "supported", claim["id"]


def test_few_runs_are_judged_without_a_normal_law() -> None:
    for claim in CLAIMS:
        free = claim.estimator in (every_run, median_interval, bracketed)
        series = claim.estimator.__qualname__.startswith("stationary_mean")
        for quick in (False, True):
            assert free or series or claim.runs(quick)[0] >= MEAN_RUNS, claim.id


def widened(prediction: Prediction, factor: float) -> Prediction:
    """Multiply all margins by `factor`."""
    width = factor * prediction.width
    two_sided = {"low": prediction.value - width, "high": prediction.value + width}
    return replace(prediction, width=width, **two_sided)


@pytest.mark.parametrize("name", ["staircase", "cohort-rate", "raflora-carry-flat"])
def test_margins_a_thousand_times_as_wide_are_caught(name: str) -> None:
    (claim,) = select([name])
    wide = replace(claim, predict=lambda: widened(claim.predict(), 1000))
    assert too_wide(wide)


@pytest.mark.parametrize(
    ("near", "caught"),
    [
        (Control("3 margins away", partial(Prediction.within, 1.06, 0.02)), False),
        (Control("half a margin away", partial(Prediction.within, 1.01, 0.02)), True),
        (Control("absurd", partial(Prediction.within, 1e6, 0.02)), True),
        (Control("one quantity right", partial(Prediction.within, [1.06, 1.0], 0.02)), True),
        (Control("nothing wrong"), True),
    ],
    ids=lambda value: getattr(value, "description", ""),
)
def test_controls_that_are_not_near_are_caught(near: Control, caught: bool) -> None:
    (claim,) = select(["cohort-rate"])
    right = partial(Prediction.within, [1.0, 1.0], 0.02)
    assert far_or_vacuous(replace(claim, predict=right, near=near)) is caught


def test_a_wide_margin_states_its_reason() -> None:
    assert all(len(claim.wide_because) > 20 for claim in CLAIMS if claim.wide_because)
