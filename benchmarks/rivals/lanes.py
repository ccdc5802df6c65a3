"""The lanes of the comparison: where they are installed, how they run, whether they agree."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.rivals.exchange import Adapters, Outcome

ROOT = Path(__file__).parents[2]
TIMEOUT = 900.0
"""Maximum seconds of one run."""


class LaneError(Exception):
    """A lane that cannot be compared: the message says why."""


@dataclass(frozen=True)
class Lane:
    """One implementation of the same rounds.

    Args:
        name: display name.
        module: module for `python -m`.
        environment: folder of the virtual environment; None for this interpreter.
        float64: whether all of it can compute in float64, in which equality is the strictest.
    """

    name: str
    module: str
    environment: str | None = None
    float64: bool = True

    def python(self, environments: Path) -> Path:
        """Return the interpreter.

        Raises:
            LaneError: if it is not installed.
        """
        if self.environment is None:
            return Path(sys.executable)
        found = environments / self.environment / "bin" / "python"
        if not found.exists():
            raise LaneError(f"not installed: no {self.environment} environment")
        return found.absolute()


OURS = Lane("fedlora-sim", "benchmarks.rivals.run_ours")
PLAIN = Lane("plain PyTorch", "benchmarks.rivals.run_plain")
LANES = (
    OURS,
    PLAIN,
    Lane("Flower", "benchmarks.rivals.run_flower", "flower"),
    Lane("FedJAX", "benchmarks.rivals.run_fedjax", "fedjax"),
    # pfl-research keeps the clients' differences in float32, whatever the model's dtype.
    Lane("pfl-research", "benchmarks.rivals.run_pfl", "pfl", float64=False),
)


def run_lane(lane: Lane, exchange: Path, out: Path, *, threads: int, environments: Path) -> Outcome:
    """Run a lane in a separate process on a number of cores.

    Args:
        lane: the lane.
        exchange: file of the run, written by `Exchange.save`.
        out: file for the result.
        threads: number of cores and of threads.
        environments: folder of the virtual environments.

    Returns:
        The result of the lane.

    Raises:
        LaneError: if it is not installed, fails, or takes too long.
    """
    command = [lane.python(environments), "-m", lane.module, exchange, out, "--threads", threads]
    out.unlink(missing_ok=True)
    with _pinned(threads):
        code, output = _run([str(word) for word in command], _thread_limits(threads))
    if code or not out.exists():
        raise LaneError(f"failed ({code}): {_reason(output)}")
    return Outcome.load(out)


def _run(command: list[str], variables: dict[str, str]) -> tuple[int, str]:
    """Run a command and return its exit status and output."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except BaseException as error:  # otherwise a framework's workers would outlive their parent
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise LaneError(f"no result within {TIMEOUT:.0f} s") from None
            raise
    return process.returncode, output


def _reason(output: str) -> str:
    """Return the first exception of a traceback, or the last line."""
    lines = [line.strip() for line in output.splitlines() if any(map(str.isalnum, line))]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return next(iter(raised or lines[-1:]), "no message")


def disagreement(found: Adapters, wanted: Adapters, start: Adapters) -> float:
    """Return the relative difference in norm between the changes of the adapters.

    Changes are compared instead of adapters, because A changes little: a lane that trains nothing
    would agree up to a few percent.

    Args:
        found: final adapters of a lane.
        wanted: final adapters of the reference.
        start: initial adapters.

    Returns:
        The difference; infinite if the adapters have other names or shapes.
    """
    shapes = ({n: (a.shape, b.shape) for n, (a, b) in x.items()} for x in (found, wanted))
    if next(shapes) != next(shapes):
        return float("inf")
    truth = _flat(wanted)
    off = np.linalg.norm(_flat(found) - truth) / np.linalg.norm(truth - _flat(start))
    return float(off) if np.isfinite(off) else float("inf")


def _flat(adapters: Adapters) -> NDArray[np.float64]:
    pairs = (adapters[name] for name in sorted(adapters))
    return np.concatenate([x.astype(np.float64).ravel() for pair in pairs for x in pair])


def _thread_limits(threads: int) -> dict[str, str]:
    """Return the environment variables that set the libraries' numbers of threads."""
    count = str(threads)
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    # XLA uses one device per core: threads that share such small steps are slower.
    flags = f"--xla_force_host_platform_device_count={count} --xla_cpu_multi_thread_eigen=false"
    return {**dict.fromkeys(pools, count), "XLA_FLAGS": f"{flags} intra_op_parallelism_threads=1"}


@contextmanager
def _pinned(cores: int) -> Iterator[None]:
    """Restrict processes started in the block to a number of cores, if the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
