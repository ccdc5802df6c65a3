"""Functions with which the notebooks compute and draw."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from analysis import closed_form, notebook
from analysis.derivations import contributors, multipliers
from analysis.stats import Measurement
from fedlora_sim import Scenario, simulate
from fedlora_sim.errors import InputError
from fedlora_sim.tolerances import relative
from paper_figs import notebook as pictures

SCENARIO = Scenario("2x4,4x3,8x2", rounds=4)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def measured(*values):
    x = np.array(values)
    return Measurement(x, x - 0.01, x + 0.01, 10)


def test_measurements_need_a_prediction():
    ledger = notebook.Ledger()
    with pytest.raises(InputError, match="predict"):
        ledger.measure("rate", measured(0.5))
    ledger.predict("rate", 0.5, within=0.1)
    ledger.measure("rate", measured(0.5))
    with pytest.raises(InputError, match="not measured yet"):
        ledger.measure("rate", measured(0.5))


def test_the_ledger_judges_and_lists_open_predictions():
    ledger = notebook.Ledger()
    for name in ("right", "wrong", "open"):
        ledger.predict(name, [0.5, 0.2], within=0.1)
    ledger.measure("right", measured(0.5, 0.2))
    ledger.measure("wrong", measured(0.5, 0.4))
    table = ledger.table()
    assert table.verdict.tolist() == ["supported", "", "refuted", "", "", ""]
    assert table.measured.isna().tolist() == [False] * 4 + [True] * 2
    assert "supported" in ledger._repr_html_()


def test_equations_have_both_sides_of_every_line():
    (line,) = notebook.equations(multipliers.zero_pad).lines
    assert line == (r"x'_{\mathrm{zero\,pad}} / x", "W^{2}")
    assert len(notebook.equations(contributors.extinction, multipliers.fedavg).lines) == 5
    assert "aligned" in notebook.equations(multipliers.fedavg)._repr_latex_()


def test_functions_that_are_not_derivations_are_refused():
    with pytest.raises(InputError, match="simulate"):
        notebook.equations(simulate)


def test_rates_of_runs_without_randomness_are_exact():
    rate = notebook.mean_rate(simulate(SCENARIO, rule="fedavg", seed=range(3)))
    told = closed_form.energy_rate(SCENARIO, "fedavg")[[2, 4]]
    np.testing.assert_allclose(rate.value, told, rtol=relative("iteration"))


def test_the_share_above_the_shared_rank_is_one_minus_the_ratio():
    runs = {"fedavg": simulate(SCENARIO, rule="fedavg", seed=range(2))}
    told = closed_form.energy_trajectory(SCENARIO, "fedavg")
    data = notebook.side_by_side(runs, {"fedavg": told})
    np.testing.assert_allclose(data.measured, data.predicted, rtol=relative("iteration"))
    above = notebook.above_shared(data, np.ones(5))
    rho = runs["fedavg"].rho.values[:1]
    np.testing.assert_allclose(above.measured, 1 - rho, rtol=relative("iteration"))


def test_carriers_of_each_direction():
    axis = pictures.carriers(SCENARIO.federation).axes[0]
    assert [text.get_text() for text in axis.texts] == [r"$\pi=1$", r"$\pi=0.56$", r"$\pi=0.22$"]
    held = axis.collections[0].get_array()
    assert (~np.isnan(held.filled(np.nan))).sum() == sum(SCENARIO.ranks)


def test_estimates_are_drawn_next_to_their_predictions():
    axis = pictures.estimates(["a", "b"], [0.5, 0.2], measured(0.51, 0.19), "rate").axes[0]
    assert axis.lines[0].get_xdata().tolist() == [0.5, 0.2]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["a", "b"]
    assert axis.get_xlabel() == "rate"


def test_paths_are_drawn_measured_and_predicted():
    path = np.outer(0.5 ** np.arange(5), [1.0, 0.5, 0.1])
    figure = pictures.paths(
        {"below": (path, path), "above": (path, path)}, SCENARIO.federation.partitions, "energy"
    )
    assert [len(axis.lines) for axis in figure.axes] == [6, 6]
    assert [text.get_text() for text in figure.axes[1].get_legend().texts] == [
        "$i=$1–2", "$i=$3–4", "$i=$5–8",
    ]  # fmt: skip
