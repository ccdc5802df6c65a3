"""Claims on the limits of the theory and on how energy settles: sweeps, predictions, datasets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis import closed_form
from analysis.claims import breakdown, settling
from analysis.claims.base import RunContext
from fedlora_sim.tolerances import relative

CLOSE = relative("iteration")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", breakdown.SWEEPS)
def test_sweeps_ascend_and_controls_lie_outside(name: str) -> None:
    sweep = breakdown.SWEEPS[name]
    assert 6 <= len(sweep.values) == len(sweep.scenarios) <= 8
    assert list(sweep.values) == sorted(set(sweep.values))
    assert sweep.inside < sweep.outside < len(sweep.values)


def test_predicted_rates_without_training_are_coverage_squared() -> None:
    coverage = closed_form.coverage(breakdown.AFFINE)[[2, 4]]
    np.testing.assert_allclose(breakdown.predicted_rates(breakdown.AFFINE), coverage**2, rtol=CLOSE)


def test_predicted_rates_of_short_training_approach_them() -> None:
    short = breakdown.FITTING.replace(local_time=1e-9)
    np.testing.assert_allclose(
        breakdown.predicted_rates(short), breakdown.predicted_rates(breakdown.AFFINE), rtol=1e-6
    )


@pytest.mark.slow
def test_nothing_deviates_where_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = breakdown.SWEEPS["drift"]
    still = replace(sweep, scenarios=tuple(s.replace(basis_drift=0.0) for s in sweep.scenarios))
    monkeypatch.setitem(breakdown.SWEEPS, "drift", still)
    found = breakdown.deviation("drift", [0, 1], range(2), RunContext(seed=1))
    assert found.shape == (2, 4)
    assert (found < 1e-9).all()


def test_adam_does_not_follow_the_flow() -> None:
    found = breakdown.deviation("adam", [5], range(2), RunContext(seed=1))
    assert (found > 10 * breakdown.TOLERANCE).all()


@pytest.mark.slow
def test_breakdown_curves_share_the_runs_of_the_claims() -> None:
    context = RunContext(seed=1)
    points = range(breakdown.SWEEPS["drift"].inside)
    samples = breakdown.deviation("drift", points, range(4), context)
    known = set(context._runs)
    curves = breakdown.gather(context, count=4)
    assert known < set(context._runs)
    assert curves.deviation.dims == ("sweep", "point", "partition")
    drawn = curves.deviation.sel(sweep="drift").values[: len(points)]
    np.testing.assert_allclose(drawn.ravel(), samples.mean(0), rtol=CLOSE)
    assert (curves.low <= curves.deviation).all()
    assert (curves.deviation <= curves.high).all()


def test_predicted_fractions_settle_into_the_first_partition() -> None:
    fractions = settling.predicted_fractions()
    energy = settling.partition_sums(settling.predicted_energy())[1:]
    np.testing.assert_allclose(fractions.sum(1), 1 - energy[:, 0] / energy.sum(1), rtol=CLOSE)
    assert (np.diff(fractions, axis=0) < 0).all()


def test_speeds_are_the_rates_of_the_closed_form() -> None:
    last = np.array(settling.SETTLING.federation.levels) - 1
    alike = closed_form.coverage(settling.SETTLING)[last] ** 2
    np.testing.assert_allclose(settling.predicted_speeds(controlled=False), alike, rtol=CLOSE)
    assert (settling.predicted_speeds() > alike * (1 + settling.SPEED_MARGIN / 2)).all()


def test_both_settling_claims_and_the_figure_look_at_one_run() -> None:
    context, numbers = RunContext(seed=1), range(20)
    fractions = settling.fractions(numbers, context)
    left = settling.energy_left(numbers, context)
    assert list(context._runs) == ["settling-0-19"]
    rounds, partitions = settling.SETTLING.rounds, len(settling.PARTITIONS)
    assert fractions.shape == (20, rounds * (partitions - 1), 2)
    assert left.shape == (20, partitions)
    data = settling.gather(context, count=20)
    assert list(context._runs) == ["settling-0-19"]
    drawn = data.fraction.groupby("partition").sum()
    drawn = drawn.isel(round=slice(1, None), partition=slice(1, None)).values
    ratio = fractions[..., 0].mean(0) / fractions[..., 1].mean(0)
    np.testing.assert_allclose(drawn.ravel(), ratio, rtol=CLOSE)
    np.testing.assert_allclose(data.fraction.sum("direction"), 1.0, rtol=CLOSE)
