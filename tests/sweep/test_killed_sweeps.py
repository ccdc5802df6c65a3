"""Sweeps whose workers and drivers are killed with SIGKILL and which are continued."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
from forked import forked
from sweep_cases import contents

from fedlora_sim.sweep import open_sweep, run
from fedlora_sim.sweep.store import MANIFEST, load_manifest

PATIENCE = 240.0
TASKS = 60
GRID = """
[scenario]
ranks = "2x3,4x2,8x1"
cohort_size = 3
rounds = 50
seed = {count = 2}
[grid]
rule = ["fedavg", "raflora", "flora"]
gain_std = %s
"""
SECONDS = 0.004


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "grid.toml"
    path.write_text(GRID % [i / 1000 for i in range(TASKS // 3)])
    return path


@pytest.fixture(scope="module")
def serial(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the undisturbed run, in this process."""
    out = tmp_path_factory.mktemp("serial")
    run.run_sweep(grid, out, task_seconds=SECONDS, progress=False)
    return out


@dataclass(frozen=True)
class Driver:
    """A driver in a separate process, and the file of its output."""

    process: BaseProcess
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def ended(self) -> str:
        """Wait for the end, and return what was printed."""
        self.process.join(PATIENCE)
        return self.log.read_text()


@contextmanager
def driving(grid: Path, out: Path, *options: str) -> Iterator[Driver]:
    """Yield a driver in a separate process, which is killed at the end."""
    words = ["sweep", str(grid), "--out", str(out), "--task-seconds", str(SECONDS), *options]
    log = out.with_name(f"{out.name}-{time.monotonic_ns()}.log")
    child = forked(drive, log, words)
    try:
        yield Driver(child, log)
    finally:
        child.kill()
        child.join()
        child.close()


def drive(log: Path, words: Sequence[str]) -> None:
    """Run `fedlora-sim` in this process, which prints to a file."""
    from faults_server import command  # what the server has imported, and this process need not

    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        command(words)
    finally:  # idle workers end with an interpreter, but a child of multiprocessing waits for them
        for worker in psutil.Process().children():
            worker.kill()


def count(out: Path) -> int:
    return len(list((out / "tasks").glob("[!.]*.nc")))


def wait(child: Driver, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert child.process.is_alive(), child.log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_driver(child: Driver, out: Path) -> None:
    child.process.kill()
    child.process.join(PATIENCE)
    assert 0 < count(out) < TASKS, "the kill must meet work"


def finish(child: Driver) -> None:
    told = child.ended()
    assert child.process.exitcode == 0, told
    assert f"all {TASKS} tasks are in" in told


def loky_workers(child: Driver) -> list[psutil.Process]:
    family = psutil.Process(child.pid).children(recursive=True)
    return [process for process in family if "popen_loky" in " ".join(process.cmdline())]


def assert_whole(out: Path, serial: Path) -> None:
    """Check for exactly one file per task, with the bytes of the undisturbed serial run."""
    found = contents(out)
    ids = [task["id"] for task in json.loads((out / MANIFEST).read_text())["tasks"]]
    assert len(ids) == len(set(ids)) == TASKS
    assert sorted(found) == sorted(f"{own}.nc" for own in ids)
    assert found == contents(serial)
    runs = [(p.point.id, s) for t in load_manifest(out).tasks for p in t.parts for s in p.seeds]
    assert len(runs) == len(set(runs)) == 2 * TASKS
    assert open_sweep(out).rho.notnull().all()


@pytest.mark.slow
@pytest.mark.deep
def test_a_cluster_with_killed_workers_and_a_killed_driver_ends_as_the_serial_run(
    grid: Path, serial: Path, tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    out = tmp_path / "out"
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    )
    with cluster, distributed.Client(cluster) as client:

        def kill_worker() -> None:
            victim = next(iter(client.run(os.getpid).values()))
            os.kill(victim, signal.SIGKILL)

        address = ["--scheduler", cluster.scheduler_address]
        with driving(grid, out, *address) as first:
            wait(first, lambda: count(out) >= 5)
            kill_worker()
            wait(first, lambda: count(out) >= 20)
            kill_driver(first, out)
        with driving(grid, out, *address) as second:
            done = count(out)
            wait(second, lambda: count(out) >= done + 5)
            kill_worker()
            finish(second)
    assert_whole(out, serial)


@pytest.mark.slow
def test_a_pool_with_killed_workers_and_a_killed_driver_ends_as_the_serial_run(
    grid: Path, serial: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with driving(grid, out, "--workers", "2") as first:
        wait(first, lambda: count(out) >= 5)
        loky_workers(first)[0].kill()
        wait(first, lambda: count(out) >= 20)
        orphans = loky_workers(first)
        assert orphans
        kill_driver(first, out)
        _, alive = psutil.wait_procs(orphans, timeout=10)
        assert not alive, "workers end with their driver"
    with driving(grid, out, "--workers", "2") as second:
        finish(second)
    assert_whole(out, serial)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "number"),
    [((), signal.SIGINT), (("--workers", "2"), signal.SIGTERM)],
    ids=["serial", "pool"],
)
def test_a_stopped_driver_prints_how_to_continue(
    grid: Path, tmp_path: Path, options: tuple[str, ...], number: signal.Signals
) -> None:
    out = tmp_path / "out"
    with driving(grid, out, *options) as child:
        wait(child, lambda: count(out) >= 5)
        workers = loky_workers(child)
        if not options:
            os.kill(child.pid, signal.SIGSTOP)  # or it may be done before the other has begun
            with driving(grid, out) as other:
                told = other.ended()
                assert other.process.exitcode == 2
                assert f"no other process at work there (process {child.pid} on" in told
            os.kill(child.pid, signal.SIGCONT)
        os.kill(child.pid, number)
        told = child.ended()
        assert child.process.exitcode == 130, told
    kept = count(out)
    assert f"stopped; {kept} of {TASKS} tasks are kept in {out}; go on with: fedlora-sim" in told
    assert "Traceback" not in told
    assert not list((out / "tasks").glob(".*"))
    assert not psutil.wait_procs(workers, timeout=10)[1]
