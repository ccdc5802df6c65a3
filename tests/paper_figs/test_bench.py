"""Benchmarks: targets are met or missed by the measurements; a run writes all shown values."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import aggregation, large_aggregates, matrix, peft_folders, spectral
from benchmarks.aggregation_bars import SIZE, aggregation_bars
from benchmarks.timing import side_by_side
from fedlora_sim.peft import aggregate_adapters
from paper_figs.benchmark_tables import aggregation_table, bars_table, layers_table


def record(**seconds: float) -> dict[str, Any]:
    rows = [
        {
            "d": SIZE,
            "dtype": "float32",
            "method": name,
            "cpu_median": taken,
            "relative_error": 1e-7,
        }
        for name, taken in {
            "dense": 30.0,
            "peft": 40.0,
            "qr": 0.06,
            "gram": 0.03,
            "aggregate": 0.03,
            "products": 0.016,
            **seconds,
        }.items()
    ]
    double = {"d": 9, "dtype": "float64", "method": "aggregate", "relative_error": 1e-15}
    layers = [
        {"threads": threads, "method": name, "wall_median": taken}
        for threads in (1, 2)
        for name, taken in (("loop", 1.0), ("batched", 0.9))
    ]
    return {"rows": [*rows, double], "layers": layers}


@pytest.mark.parametrize(("factor", "slope"), [(2.9, 1.0), (3.1, 0.1)])
def test_bars_of_the_spectral_fidelity_are_per_normal_draw(factor: float, slope: float) -> None:
    lanes = dict.fromkeys(spectral.LANES, factor * 1e-08) | {spectral.DRAW: 1e-8}
    found = spectral.bars(
        {
            "lanes": [{"lane": name, "cpu_median": x} for name, x in lanes.items()],  # type: ignore
            "slopes": [{"quantity": name, "slope": slope} for name in spectral.SLOPES],  # type: ignore
        }
    )
    missed = {str(bar["what"]) for bar in found if bar["verdict"] == "missed"}
    slow = {f"all clients / {spectral.DRAW}"} if factor > 3 else set()
    steep = {"log-log slope in clients outside the cohort"} if slope > spectral.CONSTANT else set()
    assert missed == slow | steep
    assert len(found) == len(spectral.LANES) + len(spectral.SLOPES)


def test_the_lanes_of_the_benchmarks_agree_before_they_are_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rule in matrix.RULES:
        matrix.check(rule, seeds=[1])
    monkeypatch.setattr(matrix, "bare_run", lambda rule, draws: 1.01 * bare_run(rule, draws))
    with pytest.raises(SystemExit, match="not timed"):
        matrix.check("fedavg", seeds=[1])
    for changes, _ in spectral.LANES.values():
        spectral.check(spectral.SCENARIO.replace(**changes, rounds=3), "raflora")


def test_a_wrong_large_aggregate_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    row = large_aggregates.large(80, 5, "flat", repeats=1)
    assert row["errors"]["ours"] <= large_aggregates.CERTIFIED < row["errors"]["two passes"]
    monkeypatch.setattr(large_aggregates, "apart", lambda found, wanted: 1.01e-6)
    with pytest.raises(SystemExit, match="off by"):
        large_aggregates.large(80, 5, "flat", repeats=1)


def test_wrong_folders_are_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peft_folders, "RANKS", (2, 4))
    monkeypatch.setattr(peft_folders, "WIDTH", 16)
    row = peft_folders.measure(tmp_path / "right", 2, repeats=1)
    assert row["modules"] == 8
    plain = peft_folders.samples
    monkeypatch.setattr(peft_folders, "run", lambda paths, out: wrong(paths, out, plain()))
    with pytest.raises(SystemExit, match="not timed"):
        peft_folders.measure(tmp_path / "wrong", 2, repeats=1)


def wrong(paths: list[Path], out: Path, samples: list[float]) -> None:
    """Aggregate with sample counts in the wrong order."""
    aggregate_adapters(paths, samples[::-1], "raflora", out, device="cpu", force=True)


bare_run = matrix.bare_run


@pytest.mark.parametrize(
    ("seconds", "missed"),
    [
        ({}, set()),
        ({"dense": 8.9}, {"dense / aggregate"}),
        ({"peft": 8.9}, {"peft / aggregate"}),
        ({"qr": 0.059}, {"qr / gram"}),
        ({"products": 0.0149}, {"gram / products"}),
    ],
)
def test_a_bar_is_met_or_missed(seconds: dict[str, float], missed: set[str]) -> None:
    found = aggregation_bars(record(**seconds))
    assert {b["what"].split(",")[0] for b in found if b["verdict"] == "missed"} == missed
    assert len(found) == 8


def test_quantities_that_were_not_measured_have_no_target() -> None:
    measured = record()
    measured["rows"] = [row for row in measured["rows"] if row["method"] != "peft"]
    assert not [b for b in aggregation_bars(measured) if b["what"].startswith("peft")]


def test_candidates_are_timed_in_turn_and_warmed_up() -> None:
    calls: list[str] = []
    candidates = {name: (lambda name=name: calls.append(name)) for name in ("a", "b", "once")}
    times = side_by_side(candidates, {"a": 2, "b": 2, "once": 1})
    assert calls == ["a", "b", "a", "b", "once", "a", "b"]
    assert times["a"]["repeats"] == 2
    assert times["a"]["wall_min"] <= times["a"]["wall_median"] <= times["a"]["wall_max"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_small_bench_writes_what_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    few = ["--sizes", "256", "--layers", "4", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["aggregation", *few, "--out", str(out)])
    aggregation.main()
    written = json.loads(out.read_text())
    assert aggregation_table(written).count("\n") == 2
    assert "| 2 |" in layers_table(written)
    assert "largest error of aggregate, float32" in bars_table(written)
    assert "met" in capsys.readouterr().out
