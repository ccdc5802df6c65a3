"""Runs made before the claims equal runs made on demand, and each is stored at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

from analysis.claims import base, digits
from analysis.claims.base import Job, RunContext, run_jobs, workers
from fedlora_sim import Scenario, simulate
from fedlora_sim.run_store import RunStore

SCENARIO = Scenario("1x2,2x1", fidelity="matrix", rounds=2, d_in=4, d_out=5, gain_std=0.2)
JOBS = [Job(f"{rule}-{seed}", SCENARIO, rule, seed) for rule in ("fedavg", "raflora") for seed in
        (1, 2)]  # fmt: skip


def context(folder: Path) -> RunContext:
    return RunContext(store=RunStore(folder, {"test": 1}))


@pytest.mark.slow
def test_runs_are_kept_as_they_would_be_made(tmp_path: Path) -> None:
    done = []
    kept = context(tmp_path)
    kept.on_progress = done.append
    run_jobs(JOBS, kept, processes=1)
    assert sum(done) == len(JOBS)
    for job in JOBS:
        wanted = simulate(SCENARIO, rule=job.rule, seed=job.seed)
        xr.testing.assert_identical(kept.run_once(job.label, pytest.fail), wanted)
        assert context(tmp_path).known_run(job.label) is not None


@pytest.mark.slow
def test_existing_pieces_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_jobs(JOBS[:3], context(tmp_path), processes=1)
    made: list[str] = []

    def count(scenario: Scenario, *, rule: str, seed: int) -> xr.Dataset:
        made.append(f"{rule}-{seed}")
        return simulate(scenario, rule=rule, seed=seed)

    monkeypatch.setattr(base, "simulate", count)
    run_jobs(JOBS, context(tmp_path), processes=1)
    assert made == [JOBS[3].label]


@pytest.mark.slow
def test_a_stopped_run_keeps_finished_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(2))

    def stop_later(scenario: Scenario, *, rule: str, seed: int) -> xr.Dataset:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return simulate(scenario, rule=rule, seed=seed)

    monkeypatch.setattr(base, "simulate", stop_later)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(JOBS, context(tmp_path), processes=1)
    again = context(tmp_path)
    assert [again.known_run(job.label) is not None for job in JOBS] == [True, True, False, False]


@pytest.mark.slow
def test_other_processes_give_the_same_bits(tmp_path: Path) -> None:
    apart, here = context(tmp_path / "apart"), context(tmp_path / "here")
    run_jobs(JOBS, apart, processes=2)
    run_jobs(JOBS, here, processes=1)
    for job in JOBS:
        first, second = (c.known_run(job.label) for c in (apart, here))
        assert first is not None
        xr.testing.assert_identical(first, second)


def test_there_is_a_worker_and_the_first_look_names_every_run() -> None:
    assert 1 <= workers("cpu") <= base.MOST_WORKERS
    labels = [job.label for job in digits.first_look(RunContext(quick=True))]
    assert len(set(labels)) == len(labels) == digits.RUNS_EACH * len(digits.QUICK_RUNS)
    assert len(digits.first_look(RunContext())) == sum(map(digits.count_of, digits.RUNS))
