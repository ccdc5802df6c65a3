"""The lanes of the comparison: where each is installed, how one is run, whether it agrees."""

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
    """One way to do the same rounds.

    Args:
        name: as shown.
        module: what is run, `python -m`.
        environment: folder of its virtual environment; None for this interpreter.
        float64: whether it can compute in float64 throughout, where equality says most.
    """

    name: str
    module: str
    environment: str | None = None
    float64: bool = True

    def python(self, environments: Path) -> Path:
        """Its interpreter.

        Raises:
            LaneError: if there is none.
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
    """Run a lane in a process of its own, on so many cores.

    Args:
        lane: which.
        exchange: the run, as written by `Exchange.save`.
        out: where the lane writes its outcome.
        threads: cores, and threads of all that computes on them.
        environments: folder of the virtual environments.

    Returns:
        What the lane has written.

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
    """Run a command to its end; its exit status, and what it has printed."""
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
        except BaseException as error:  # a framework's workers would live on without their parent
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise LaneError(f"no result within {TIMEOUT:.0f} s") from None
            raise
    return process.returncode, output


def _reason(output: str) -> str:
    """The line that says most: the first exception of a traceback, else the last line."""
    lines = [line.strip() for line in output.splitlines() if any(map(str.isalnum, line))]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return next(iter(raised or lines[-1:]), "no message")


def disagreement(found: Adapters, wanted: Adapters, start: Adapters) -> float:
    """Relative difference in norm of what the rounds have changed in the adapters.

    The change is compared, not the adapters: A moves little from where it starts, and a lane that
    trained nothing would agree to a few per cent.

    Args:
        found: final adapters of a lane.
        wanted: final adapters of the reference.
        start: initial adapters.

    Returns:
        The difference; infinite where the adapters have other names or shapes.
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
    """What the libraries are told of their threads, by their own variables."""
    count = str(threads)
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    # XLA takes a device a core: sharing steps this small between its threads slows them down.
    flags = f"--xla_force_host_platform_device_count={count} --xla_cpu_multi_thread_eigen=false"
    return {**dict.fromkeys(pools, count), "XLA_FLAGS": f"{flags} intra_op_parallelism_threads=1"}


@contextmanager
def _pinned(cores: int) -> Iterator[None]:
    """Keep processes that are started in the block on so many cores, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
