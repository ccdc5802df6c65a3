"""Figure and tables of the recorded forecasts, from made-up results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analysis import forecasting
from analysis.paper import forecasts
from fedlora_sim.storage import save_dataset
from paper_figs import documents
from paper_figs.forecasting import caption_forecasts, draw_forecasts

FIRST, ROUNDS = 4, 9
RANKS = {"digits": [2, 4, 16], "agnews": [4, 8, 16, 32]}


def made_up(partitions: int, seed: int) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    coords: dict[str, Any] = {
        "rule": ["fedavg", "raflora"],
        "seed": [7, 8],
        "partition": np.arange(1, partitions + 1),
        "round": np.arange(ROUNDS + 1),
        "statistic": ["median", "low", "high"],
    }
    dims = ("rule", "seed", "partition", "round")
    measured = xr.DataArray(rng.uniform(0.1, 1.0, [len(coords[d]) for d in dims]), dims=dims)
    factors = xr.DataArray([1.0, 0.5, 2.0], dims="statistic")
    predicted = (measured * factors).where(xr.DataArray(coords["round"], dims="round") > FIRST)
    return xr.Dataset({"measured": measured, "predicted": predicted}, coords)


def made_up_scores(seed: int, spread: float) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    sizes = {"seed": 3, "layer": 2, "partition": 2, "horizon": 4}
    coords = {name: np.arange(1, size + 1) for name, size in sizes.items()}
    shape = (len(forecasting.FORECASTS), *sizes.values())
    error = rng.standard_normal(shape)
    error[0] *= spread
    dims = ("forecast", *sizes)
    return xr.Dataset(
        {
            "error": (dims, error),
            "covered": (tuple(sizes), rng.random(tuple(sizes.values())) < 0.9),
        },
        {"forecast": list(forecasting.FORECASTS), **coords},
    )


def made_up_record(study: str) -> dict[str, Any]:
    scores = {"fedavg": made_up_scores(1, 0.1), "raflora": made_up_scores(2, 3.0)}
    rows = [{"rule": rule, **forecasting.summary(of)} for rule, of in scores.items()]
    partitions = forecasting.coverage_by_partition(scores)
    other = [{"calibrated": "fedavg", **rows[1]}]
    return {
        "study": study,
        "heterogeneity": "dirichlet 0.5",
        "scenario": {"ranks": RANKS[study]},
        "seeds": [7, 8, 9],
        "calibration_rounds": FIRST,
        "horizons": 4,
        "confidence": 0.9,
        "rows": rows,
        "counterfactual": other,
        "bars": forecasting.bars(rows, partitions, other),
        "seconds": 7200.0,
        "cpu_seconds": 600.0,
        "command": f"python -m analysis.forecasting {study}",
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of both studies."""
    folder = tmp_path / "results" / "forecasts"
    folder.mkdir(parents=True)
    for j, (study, ranks) in enumerate(RANKS.items()):
        save_dataset(made_up(len(ranks), j), folder / f"{study}.nc")
        (folder / f"{study}.json").write_text(json.dumps(made_up_record(study)))
    return tmp_path / "results"


@pytest.mark.slow
@pytest.mark.usefixtures("coarse_figures")
def test_figure_and_caption() -> None:
    studies = list(forecasts.STUDIES)
    data = forecasts.described(
        [made_up(len(RANKS[study]), 0) for study in studies],
        [made_up_record(study) for study in studies],
    )
    figure, axes = draw_forecasts(data)
    assert axes.shape == (len(studies), 2)
    assert [axis.get_title(loc="left") for axis in axes[0]] == [
        "(a) FedAvg on digits",
        "(b) raFLoRA on digits",
    ]
    assert {axis.get_yscale() for axis in axes.ravel()} == {"log"}
    assert axes[-1, 0].get_xlabel() == "round $t$"
    for row, study in zip(axes, studies, strict=True):
        levels = RANKS[study]
        for axis in row:
            assert len(axis.texts) == len(levels)  # the name of every partition
            # of every partition the prediction, persistence and the measurements
            assert len(axis.lines) == 3 * len(levels)
    measured = axes[0, 0].lines[2].get_ydata()
    np.testing.assert_array_equal(measured, data.measured.isel(study=0, rule=0, partition=0))
    predicted = axes[0, 0].lines[0].get_ydata()
    assert np.isnan(predicted[:FIRST]).all()
    assert predicted[FIRST] == measured[FIRST]
    figure.canvas.draw()
    caption = caption_forecasts(data)
    for text in (
        "first 4 rounds",
        "90% interval",
        "dirichlet 0.5",
        "clients of ranks 2, 4 and 16, one of each, seed 7",
    ):
        assert text in caption


@pytest.mark.slow
@pytest.mark.usefixtures("coarse_figures")
def test_records_are_copied_and_shown(results: Path, tmp_path: Path) -> None:
    record = tmp_path / "recorded"
    documents.record_forecasts(results, record)
    copied = {path.name for path in (record / "forecasts").iterdir()}
    files = {f"{study}.{kind}" for study in forecasts.STUDIES for kind in ("json", "nc")}
    assert copied == files | {"forecasts.png"}
    blocks = documents.forecast_blocks(record)
    row = made_up_record("digits")["rows"][0]
    error = f"{row['errors']['drift laws']['error']:.3g}"
    assert f"| `fedavg` | {error} |" in blocks["forecast_errors"]
    assert "seeds 7 to 9, horizons 1 to 4 after 4 rounds" in blocks["forecast_errors"]
    assert "python -m analysis.forecasting digits` (10 minutes" in blocks["forecast_errors"]
    assert "| `fedavg` | `raflora` |" in blocks["forecast_counterfactuals"]
    assert "at least 7 of 9 rules | 1: fedavg | missed |" in blocks["forecast_bars"]


def test_without_forecasts_nothing_is_copied_or_shown(tmp_path: Path) -> None:
    documents.record_forecasts(tmp_path, tmp_path / "recorded")
    assert not (tmp_path / "recorded").exists()
    assert documents.forecast_blocks(tmp_path) == {}
