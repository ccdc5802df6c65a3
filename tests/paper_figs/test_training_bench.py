"""The training benchmark: equal lanes, measured targets, and the shown record."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import prefix_lane, training
from benchmarks.rank_groups import Grouped
from benchmarks.training_bars import CLIENTS, SIZE, training_bars
from benchmarks.training_lanes import (
    Limit,
    Loop,
    Stacked,
    difference,
    image_task,
    make_case,
    trained,
)
from fedlora_sim.runtime import one_thread
from fedlora_sim.tolerances import relative
from paper_figs.benchmark_tables import training_bars_block, training_table

TIGHT = relative("factorization")


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Provide one thread: on a busy machine, threads that wait for each other cost minutes."""
    with one_thread():
        yield


@pytest.fixture
def small_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an encoder that is trained in milliseconds."""
    for name, size in (("WIDTH", 16), ("HEADS", 2), ("TOKENS", 5)):
        monkeypatch.setattr(prefix_lane, name, size)


def small_case(ranks: tuple[int, ...]):
    return make_case(image_task(16, (4, 4), torch.float64, "cpu"), ranks)


@pytest.mark.parametrize("lane", [Stacked, Grouped])
def test_lanes_train_every_client_as_if_it_were_alone(lane):
    case = small_case((2, 2, 3, 5, 5, 5))
    found = trained(case, lane(case), steps=3)
    assert difference(found, trained(case, Loop(case), steps=3)) <= TIGHT
    for name, (lora_a, lora_b) in found.items():
        start_a, start_b = case.start[name]
        assert (lora_a.shape, lora_b.shape) == (start_a.shape, start_b.shape)
        assert (lora_a - start_a).norm() > TIGHT
        assert (lora_b - start_b).norm() > TIGHT


def test_lanes_leave_the_model_and_the_start_alone():
    case = small_case((2, 4))
    weights = {name: p.clone() for name, p in case.task.model.named_parameters()}
    start = {name: (a.clone(), b.clone()) for name, (a, b) in case.start.items()}
    for lane in (Stacked(case), Grouped(case), Limit(case), Loop(case)):
        lane.step(case.batches(1)[0])
    for name, p in case.task.model.named_parameters():
        assert torch.equal(p, weights[name])
        assert not p.requires_grad
    for name, pair in case.start.items():
        assert all(torch.equal(x, y) for x, y in zip(pair, start[name], strict=True))


def test_the_limit_is_one_client_with_the_whole_batch():
    case = small_case((3, 3))
    limit, alone = Limit(case), Loop(case).clients[0]
    index = case.batches(1)[0]
    limit.step(index)
    alone.step(index.flatten())
    for found, wanted in zip(limit.model.parameters(), alone.model.parameters(), strict=True):
        assert (found - wanted).norm() <= TIGHT * wanted.norm()


@pytest.mark.slow
def test_a_cached_prefix_changes_no_adapter(small_encoder: None) -> None:
    assert training.prefix_error(torch.float64, "cpu") <= TIGHT


@pytest.mark.parametrize("error", [1.0, float("nan")])
def test_wrong_results_are_not_timed(error: float) -> None:
    with pytest.raises(SystemExit, match="stacked: off by"):
        training.check({"stacked": error}, torch.float32)


def record(device: str = "cpu", **seconds: float) -> dict[str, Any]:
    times = {"stacked": 1.0, "limit": 0.9, "loop": 25.0, **seconds}
    rows = [
        {"d": d, "clients": clients, "threads": threads, "lane": lane, "clock": clock}
        | {f"{clock}_median": taken * clients}
        for threads, clock in (((1, "cpu"), (2, "wall")) if device == "cpu" else ((1, "wall"),))
        for d in (SIZE, 4 * SIZE)
        for clients in (8, CLIENTS)
        for lane, taken in times.items()
    ]
    return {"device": device, "rows": rows}


@pytest.mark.parametrize(
    ("device", "seconds", "missed"),
    [
        ("cpu", {}, 0),
        ("cpu", {"limit": 0.79}, 4),
        ("cpu", {"loop": 1.9}, 1),
        ("cuda", {}, 0),
        ("cuda", {"loop": 19.0}, 1),
    ],
)
def test_a_bar_is_met_or_missed(device: str, seconds: dict[str, float], missed: int) -> None:
    found = training_bars(record(device, **seconds))
    assert sum(bar["verdict"] == "missed" for bar in found) == missed
    assert len(found) == (5 if device == "cpu" else 3)


def test_the_slowest_cohort_decides_a_bar() -> None:
    measured = record()
    for row in measured["rows"]:
        if (row["clients"], row["lane"], row["threads"]) == (8, "limit", 1):
            row["cpu_median"] /= 2
    found = training_bars(measured)
    assert [bar["verdict"] for bar in found] == ["missed", "met", "missed", "met", "met"]


def test_without_the_cohort_of_a_bar_there_is_none() -> None:
    measured = record()
    measured["rows"] = [row for row in measured["rows"] if row["clients"] != CLIENTS]
    assert not [bar for bar in training_bars(measured) if bar["what"].startswith("loop")]


@pytest.mark.slow
def test_a_small_bench_writes_what_the_readme_shows(
    small_encoder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "training.json"
    options = ["--sizes", "64", "--clients", "8", "--repeats", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["training", *options])
    monkeypatch.setattr(training, "THREADS", (1,))
    training.main()
    written = json.loads(out.read_text())
    assert {row["dtype"] for row in written["errors"]} == {"float32", "float64"}
    assert training_table(written).count("| d = 64 |") == 1
    assert "stacked / big batch, d = 64, 8 to 8 clients, 1 thread, CPU time" in training_bars_block(
        tmp_path
    )
