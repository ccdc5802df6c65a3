"""The benchmark of a GPU: checks before times, shares of the limits, and what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Part, Sizes, measure
from paper_figs.benchmark_tables import gpu_block

TINY = Sizes(
    copy=1 << 12,
    product=16,
    solver=((4, 2),),
    spectral_seeds=(3,),
    spectral_rounds=2,
    matrix=((16, 2, 1),),
    layer=8,
    modules=7,
    ranks=(2, 4),
    training=(),
    checked_seeds=1,
    repeats=1,
)


def test_every_part_is_checked_and_timed(tmp_path: Path) -> None:
    record = measure(TINY, "cpu")
    assert [row["name"].partition(",")[0] for row in record["rows"]] == [
        *("spectral", "matrix", "aggregate"),
    ]
    for row in record["rows"]:
        assert row["difference"] < 1e-9
        assert row["limit_seconds"] > 0
        assert row["launches"] > 10
        assert row["wall_median"] > 0
    assert record["limits"]["products"].keys() == {"float32", "float64"}
    assert set(record["limits"]["solvers"]) == {f"{name} 2 x 4" for name in ("eigh", "qr", "svd")}
    assert gpu_block(tmp_path) == "GPU: not measured."
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    block = gpu_block(tmp_path)
    assert block.startswith("Measured on: ")
    assert all(f"| {row['name']} |" in block for row in record["rows"])
    assert f"{7 * record['rows'][2]['wall_median']:.3g} s" in block  # all modules of the set


@pytest.mark.slow
@pytest.mark.deep
def test_training_is_measured() -> None:
    (row,) = (
        row
        for row in measure(replace(TINY, spectral_seeds=(), matrix=(), training=((2, 1),)), "cpu")[
            "rows"
        ]
        if row["name"].startswith("training")
    )
    assert row["difference"] < 1e-7
    assert row["operations"] > 0


def test_what_differs_from_the_cpu_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []
    wrong = Part("wrong", lambda: timed.append(1), lambda: 0.5, bound=0.1)
    lost = Part("lost", lambda: timed.append(1), lambda: float("nan"), bound=0.1)
    for part in (wrong, lost):
        monkeypatch.setattr(gpu, "parts", lambda *_, part=part: [part])
        with pytest.raises(SystemExit, match="differs from the CPU"):
            measure(TINY, "cpu")
    assert not timed


def test_parts_are_left_out_when_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "MOST_SECONDS", -1.0)
    record = measure(TINY, "cpu")
    assert all("left_out" in row for row in record["rows"])
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    assert gpu_block(tmp_path).count("no time was left") == 3


def test_work_counts_bytes_and_products() -> None:
    limits = gpu.Limits(1.0, 1.0, 100.0, 100.0, {"float32": 1e3}, {})
    a = torch.ones(10, 20)
    with gpu.Work(limits) as work:
        torch.mm(a, a.t())  # 1,600 bytes in, 400 out; 4,000 operations
        (a[:1].expand(5, 20) + 1).sum()  # 80 bytes in, 400 out; 400 in, 4 out
    assert work.counts["operations"] == 4_000
    assert work.counts["bytes"] == 2_000 + 480 + 404
    assert work.counts["launches"] == 3
    assert work.seconds == pytest.approx(20 + 4.8 + 4.04)


def test_without_a_device_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_results_are_written_and_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out, recorded = tmp_path / "bench" / "gpu.json", list[Path]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "OUT", out)
    monkeypatch.setattr(gpu, "measure", lambda sizes, device: {"measured on": device})
    monkeypatch.setattr(gpu, "record_bench", recorded.append)
    gpu.main()
    assert json.loads(out.read_text())["measured on"] == "cuda"
    assert recorded == [out]
