"""The figure on participation: measurements, predictions, and the ends of runs."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from analysis.claims.base import RunContext
from analysis.claims.participation import RANKS
from analysis.paper import participation
from fedlora_sim.tolerances import relative
from paper_figs import cohorts

pytestmark = pytest.mark.usefixtures("coarse_figures")


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(participation, "RUNS", 2_000)
        return participation.gather_participation(RunContext(seed=1))


@pytest.mark.slow
def test_measured_factors_lie_around_predicted_ones(data: xr.Dataset) -> None:
    predicted = data.predicted.sel(every_size=data.cohort_size.values).values
    held = (data.low.values <= predicted) & (predicted <= data.high.values)
    # 27 intervals at 95% each; exact ones may miss by a rounding
    close = np.isclose(data.measured.values, predicted, rtol=relative("reduction"))
    assert (held | close).mean() > 0.8
    mean, typical, survival = predicted
    assert (np.diff(mean) < 0).all()
    assert (np.diff(survival) >= 0).all()
    assert np.diff(typical).min() < 0 < np.diff(typical).max()


@pytest.mark.slow
def test_the_figure_shows_both(data: xr.Dataset) -> None:
    _, (factors, ends) = cohorts.draw_participation(data)
    assert "clients a round" in factors.get_xlabel()
    assert factors.get_yscale() == "log"
    lines = {line.get_label(): line for line in factors.lines}
    for factor in participation.FACTORS:
        np.testing.assert_array_equal(
            lines[factor].get_ydata(), data.predicted.sel(factor=factor).values
        )
        assert len(lines[factor].get_xdata()) == len(RANKS)
    alive = np.isfinite(data.log_energy.values).sum()
    assert f"{alive} surviving runs" in ends.get_ylabel()
    mean, typical = (line.get_xdata()[0] for line in ends.lines)
    assert typical < mean
