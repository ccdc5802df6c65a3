"""A run killed with SIGKILL several times at random moments and continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis_profiles import is_random
from run_cases import TINY, make_tiny_task

from fedlora_sim import simulate
from fedlora_sim.finetune.checkpoints import state_rounds
from fedlora_sim.randomness import stream

ROUNDS, KILLS, PATIENCE = 60, 6 if is_random() else 2, 120
"""Number of rounds, number of kills, and maximum seconds of a round."""

CHILD = """
import sys
from test_killed_runs import run
run(sys.argv[1])
"""


def run(folder: str | None = None):
    """Return the run, kept in a folder; more steps than `TINY`, so that a kill meets work."""
    scenario = TINY.replace(rounds=ROUNDS, local_steps=10, cohort_size=4)
    return simulate(scenario, rule="fedex", seed=5, task=make_tiny_task(), checkpoints=folder)


def start(folder: Path) -> subprocess.Popen[bytes]:
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent, here.parents[1])))
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.DEVNULL,
    )


def last_round(folder: Path) -> int:
    return max(state_rounds(folder / "seed-5"), default=-1)


def kill_at_work(child: subprocess.Popen[bytes], folder: Path, delay: float) -> None:
    """Wait until the child has finished a round, and a little, then kill it."""
    first, deadline = last_round(folder), time.monotonic() + PATIENCE
    while last_round(folder) <= first:
        assert child.poll() is None, "the child must not end by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    assert child.wait(PATIENCE) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.deep
def test_a_killed_run_ends_with_the_same_bits_and_loses_one_round_at_most(tmp_path):
    wanted = run()
    done: dict[Path, int] = {}
    for delay in stream(0, "moments of the kill").uniform(0.0, 0.2, KILLS):
        kill_at_work(start(tmp_path), tmp_path, delay)
        finished = last_round(tmp_path)
        assert finished < ROUNDS, "the kill must meet work"
        for path, moment in done.items():
            assert path.stat().st_mtime_ns == moment, f"{path.name} was made again"
        files = [tmp_path / "seed-5" / f"measures-{t:05d}.safetensors" for t in range(finished + 1)]
        done = {path: path.stat().st_mtime_ns for path in files}
    assert run(str(tmp_path)).identical(wanted)
    assert all(path.stat().st_mtime_ns == moment for path, moment in done.items())
