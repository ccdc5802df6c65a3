"""The installed `fedlora-sim` in a separate process, as in a user's shell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr

from fedlora_sim.storage import load_dataset

PROGRAM = str(Path(sys.executable).with_name("fedlora-sim"))
# One thread: on a busy machine small matrices spend most of the time waiting for a second one.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LONG_RUN = (
    *("simulate", "--fidelity", "matrix", "--ranks", "2x2,4x2", "--rounds", "100"),
    *("--set", "subspace_noise=0.05", "--seeds", "250", "--rule", "fedavg"),
)


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_bad_input(tmp_path: Path) -> None:
    done = call(tmp_path, "simulate", "--out", "x.nc", "--ranks", "4x8", "--cohort", "9")
    assert done.returncode == 2
    assert done.stderr == (
        "fedlora-sim: cohort_size=9: expected at most the federation's 8 clients\n"
    )
    assert done.stdout == ""
    assert not files(tmp_path)


def stopped(here: Path, number: int) -> tuple[int, str]:
    """Return exit code and output of a run that gets a signal after finishing one more piece."""
    parts = here / ".x.nc.parts"
    before = len(list(parts.glob("*/*.nc")))
    process = subprocess.Popen(
        [PROGRAM, *LONG_RUN, "--out", "x.nc"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # if a shell starts the tests in the background, they and their children ignore SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*/*.nc"))) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # Wait for the next piece: Python drops an interrupt in the destructor of a closing file.
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert "Traceback" not in err
    assert not (here / "x.nc").exists()
    return process.returncode, err


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_stopped_run_leaves_no_file_and_continues(fedlora: Callable, here: Path) -> None:
    code, err = stopped(here, signal.SIGINT)
    assert code == 130
    assert "the same command goes on from there" in err
    assert "finished pieces" in err
    assert stopped(here, signal.SIGKILL)[0] == -signal.SIGKILL

    again = fedlora(*LONG_RUN, "--out", "x.nc")
    assert again.code == 0
    assert "going on from" in again.err
    assert files(here) == {"x.nc"}
    assert fedlora(*LONG_RUN, "--out", "y.nc").code == 0
    xr.testing.assert_identical(load_dataset("x.nc"), load_dataset("y.nc"))
