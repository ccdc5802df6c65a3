"""`fedlora-sim sweep`: a grid in a folder, checked first, and continued after a stop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlora_sim import open_sweep
from fedlora_sim.sweep import work

GRID = """
[scenario]
ranks = "2x2,4x2"
rounds = 3
seed = {count = 2}
[grid]
rule = ["fedavg", "raflora"]
gain_std = [0.0, 0.1]
"""


@pytest.fixture
def grid(here: Path) -> str:
    (here / "grid.toml").write_text(GRID)
    return "grid.toml"


def test_a_grid_is_run_and_read_as_one(fedlora: Callable, grid: str) -> None:
    outcome = fedlora("sweep", grid, "--out", "s", "--task-seconds", "0.001")
    assert outcome.code == 0, outcome.err
    assert "all 4 tasks are in s" in outcome.out
    assert "4 of 4 tasks, about 0 s left" in outcome.err
    assert open_sweep("s").rho.notnull().all()
    again = fedlora("sweep", grid, "--out", "s")
    assert "going on from 4 of 4 tasks" in again.err
    assert again.code == 0


def test_a_dry_run_prints_its_cost_and_writes_nothing(
    fedlora: Callable, grid: str, here: Path
) -> None:
    outcome = fedlora("sweep", grid, "--out", "s", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "4 rows, 8 runs in 1 tasks; 0 are there" in outcome.out
    assert "time: about" in outcome.out
    assert "disk: about" in outcome.out
    assert [path.name for path in here.iterdir()] == ["grid.toml"]
    fedlora("sweep", grid, "--out", "s")
    assert "1 are there" in fedlora("sweep", grid, "--out", "s", "--dry-run").out


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_the_last_row_is_checked_before_the_first_is_run(
    fedlora: Callable, grid: str, here: Path, more: tuple[str, ...]
) -> None:
    Path(grid).write_text(GRID.replace("0.1]", "-0.1]"))
    outcome = fedlora("sweep", grid, "--out", "s", *more)
    assert outcome.code == 2
    assert "row rule='fedavg', gain_std=-0.1: gain_std=-0.1: expected" in outcome.err
    assert [path.name for path in here.iterdir()] == ["grid.toml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workers", "0"), "workers=0"),
        (("--workers", "2", "--gpus"), "gpus=True: expected none with workers=2"),
        (("--task-seconds", "0"), "--task-seconds"),
        (("--scheduler", "nowhere"), "scheduler='nowhere': expected the address"),
    ],
)
def test_bad_options_are_named(
    fedlora: Callable, grid: str, arguments: tuple[str, ...], message: str
) -> None:
    outcome = fedlora("sweep", grid, "--out", "s", *arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_gpus_that_are_not_there_are_named(fedlora: Callable, grid: str) -> None:
    if _gpus():
        pytest.skip("this machine has GPUs")
    outcome = fedlora("sweep", grid, "--out", "s", "--gpus")
    assert outcome.code == 2
    assert "gpus=0: expected a CUDA device on this machine" in outcome.err


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def test_rows_that_failed_are_listed(fedlora: Callable, grid: str) -> None:
    text = GRID.replace("rounds = 3", 'rounds = 9\ncohort_size = 1\nempty_partition = "error"')
    Path(grid).write_text(text)
    outcome = fedlora("sweep", grid, "--out", "s")
    assert outcome.code == 1
    assert "failed: rule='raflora', gain_std=0.1, seeds 0 to 1: empty_partition" in outcome.err
    assert "2 of 4 tasks are kept in s" in outcome.err


def test_a_stopped_sweep_prints_how_to_continue(
    fedlora: Callable, grid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "put_task", stop)
    outcome = fedlora("sweep", grid, "--out", "s")
    assert outcome.code == 130
    told = "stopped; 0 of 1 tasks are kept in s; go on with: fedlora-sim sweep grid.toml --out s"
    assert told in outcome.err


def test_a_signal_that_python_dropped_is_handled_after_the_task(
    fedlora: Callable, grid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = work.put_task

    def signaled(*arguments: object) -> None:
        put(*arguments)
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(work, "put_task", signaled)
    outcome = fedlora("sweep", grid, "--out", "s", "--task-seconds", "0.001")
    assert outcome.code == 130
    assert "stopped; 1 of 4 tasks are kept in s" in outcome.err


def test_a_full_disk_states_what_is_kept(
    fedlora: Callable, grid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(work, "put_task", full)
    outcome = fedlora("sweep", grid, "--out", "s")
    assert outcome.code == 1
    assert "stopped; 0 of 1 tasks are kept in s" in outcome.err
    assert "No space left on device" in outcome.err
