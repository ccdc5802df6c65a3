"""A sweep as a tidy table: means and intervals over seeds, checked against the runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sweep_cases import SMALL, changed, swept

from analysis import summarize
from analysis.stats.intervals import mean_interval
from analysis.stats.series import log_linear_rate
from analysis.sweeps import QUANTITIES
from fedlora_sim import Scenario, simulate
from fedlora_sim.errors import InputError
from fedlora_sim.sweep import open_sweep


@pytest.mark.slow
def test_a_row_per_point_with_means_and_intervals_of_its_seeds(out: Path) -> None:
    swept(changed(SMALL, scenario={"cohort_size": 2, "drift_std": 0.1}), out)
    table = summarize(out)
    assert list(table.columns[:3]) == ["rule", "gain_std", "runs"]
    assert table.groupby(["rule", "gain_std"]).size().tolist() == [1] * 6
    row = table[(table.rule == "fedavg") & (table.gain_std == 0.1)].iloc[0]
    scenario = Scenario("2x2,4x2", rounds=5, cohort_size=2, drift_std=0.1, gain_std=0.1)
    data = simulate(scenario, rule="fedavg", seed=range(3))
    energy = data.energy.values
    wanted = {
        "rho": data.rho.values[:, -1],
        "energy_left": energy[:, -1].sum(1) / energy[:, 0].sum(1),
        "effective_rank": data.effective_rank.values[:, -1],
        "rate": log_linear_rate(energy[..., 2:].sum(-1)),
    }
    assert row.runs == 3
    for name, values in wanted.items():
        found = mean_interval(values[:, None], 0.05)
        ends = [found.value[0], found.low[0], found.high[0]]
        ends = np.clip(ends, 0, 1) if name == "rho" else ends
        told = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
        np.testing.assert_allclose(told, ends, rtol=1e-12)


@pytest.mark.slow
def test_ranks_and_rounds_of_any_length_are_measured_at_their_own_end(out: Path) -> None:
    tables = changed(
        SMALL,
        scenario={"ranks": None, "rounds": None},
        grid={"ranks": ["2x2,4x2", "3x1,8x1", "4x2"], "rounds": [3, 5], "gain_std": None},
    )
    swept(tables, out)
    table = summarize(open_sweep(out)).set_index(["rule", "ranks", "rounds"])
    data = simulate(Scenario("3x1,8x1", rounds=3), rule="fedavg", seed=range(3))
    row = table.loc["fedavg", "3x1,8x1", 3]
    np.testing.assert_allclose(row.rho, float(data.rho.isel(round=-1).mean()), rtol=1e-12)
    assert table.loc["fedavg", "4x2", 5].rho == 1.0
    assert np.isnan(table.loc["fedavg", "4x2", 5].rate)


def test_missing_and_single_seeds_are_reported(out: Path) -> None:
    swept(changed(SMALL, scenario={"seed": 3}), out)
    table = summarize(out)
    assert (table.runs == 1).all()
    assert table.rho.notnull().all()
    assert table.rho_low.isnull().all()
    for path in (out / "tasks").iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match="are missing"):
        table = summarize(out)
    assert (table.runs == 0).all()
    assert table[list(QUANTITIES)].isnull().all().all()


def test_zipped_seeds_are_put_together(out: Path) -> None:
    walked = {"seed": [1, 2, 1, 2], "gain_std": [0.1, 0.1, 0.2, 0.2]}
    swept(changed(SMALL, scenario={"seed": None}, grid={"gain_std": None}, zip=walked), out)
    table = summarize(out)
    assert table.runs.tolist() == [2] * 4
    assert "seed" not in table
    assert len(summarize(open_sweep(out).isel(rule=0, zip=[0, 1]))) == 1


def test_a_higher_confidence_gives_wider_intervals(out: Path) -> None:
    swept(changed(SMALL, scenario={"cohort_size": 2, "drift_std": 0.1}), out)
    usual, wide = summarize(out), summarize(out, confidence=0.99)
    assert (wide.rate_low < usual.rate_low).all()
    np.testing.assert_array_equal(wide.rate, usual.rate)
    for wrong in (0.0, 1.0, 95):
        with pytest.raises(InputError, match="confidence"):
            summarize(out, confidence=wrong)
