"""Devices, CPU threads and worker processes."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from fedlora_sim.errors import check_choice, expected

if TYPE_CHECKING:  # it takes seconds, and a scenario needs the names alone
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "float64")

MOST, LEAST = 2.0**62, 2.0**-120
"""Range of amplitudes in which float32 is accurate: the squares of the largest are
finite, and values above the smallest have full precision.
"""


def leaves_range(amplitudes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which runs have amplitudes that float32 cannot hold or compute with.

    Args:
        amplitudes: amplitudes of each run, round and direction, (S, T + 1, r).

    Returns:
        Shape (S,).
    """
    size = np.abs(amplitudes)
    lost = ~(size <= MOST) | ((size > 0) & (size < LEAST))  # comparisons with NaN are False
    return np.asarray(lost.any(axis=(1, 2)))


def torch_dtype(name: str | None) -> torch.dtype:
    """Return the torch dtype of one of the names in `DTYPES`."""
    import torch

    return {"float32": torch.float32, "float64": torch.float64}[str(name)]


def resolve_device(device: str, dtype: torch.dtype) -> torch.device:
    """Return the torch device of a name; `auto` takes CUDA, then MPS (float32 only), then the CPU.

    Raises:
        InputError: if the device is unknown, absent, or does not support this dtype.
    """
    import torch

    name = check_choice("device", device, DEVICES)
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        mps = has_mps and dtype == torch.float32
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise expected("device", device, "a device of this machine (no CUDA device is available)")
    if name == "mps" and not has_mps:
        raise expected("device", device, "a device of this machine (no MPS device is available)")
    if name == "mps" and dtype == torch.float64:
        raise expected("dtype", "float64", "float32, the only dtype that MPS computes in")
    return torch.device(name)


# CPU threads: one for small operations, one per layer for many layers

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Run the block with the given number of torch threads, then restore the previous number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    """Run the block with one torch thread.

    The products of a tiny model or a small factor take microseconds. Several threads gain little on
    an idle machine and are ten times slower on a busy one, where they wait for each other. Their
    sums, and so the bits of a run, would also depend on the number of threads.
    """
    return torch_threads(1)


def map_on_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Apply a function to each item in parallel, with one thread per item.

    Layers are independent and of equal size, so that one thread per layer rarely waits, whereas
    threads that share one small factorization mostly wait for each other. Results do not depend on
    the number of threads.
    """
    import torch

    workers = min(torch.get_num_threads(), len(items))
    with one_thread(), blas_threads(1):
        if workers <= 1:
            return [function(item) for item in items]
        # A new thread starts with the machine's default number of threads.
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))


def blas_threads(number: int) -> AbstractContextManager[object]:
    """Limit the threads of NumPy's and SciPy's BLAS, which torch's setting does not change."""
    return _blas().limit(limits=number, user_api="blas")


@cache
def _blas() -> ThreadpoolController:
    """Return the loaded BLAS libraries, looked up once."""
    return ThreadpoolController()


# Worker processes that ignore SIGINT and exit with their parent

OWNER_SECONDS = 0.5


def in_processes(
    function: Callable[..., T], jobs: Iterable[Sequence[Any]], processes: int
) -> Generator[T, None, None]:
    """Call a function in worker processes and yield its results as they become available.

    The driver alone handles SIGINT. Closing the iterator stops the workers, without warnings. If
    the driver is killed, its workers exit by themselves, even during a job, so that they do not
    interfere with the workers of a new driver.

    Args:
        function: a function that workers can import.
        jobs: the arguments of each call.
        processes: number of calls at a time; 1 stays in this process.

    Raises:
        BrokenProcessPool: if a worker is killed.
    """
    from joblib import Parallel, delayed

    driver = (os.getpid(), Path.cwd())
    made = Parallel(n_jobs=processes, batch_size=1, return_as="generator_unordered")(
        delayed(_call)(driver, function, job) for job in jobs
    )
    try:
        for result in made:  # noqa: UP028 - `yield from` would close it outside the filter
            yield result
    finally:
        with warnings.catch_warnings():  # unfinished jobs are expected here
            warnings.filterwarnings("ignore", ".*have been cancelled", UserWarning)
            made.close()  # returns after the workers have ended


def _call(driver: tuple[int, Path], function: Callable[..., T], job: Sequence[Any]) -> T:
    owner, folder = driver
    if os.getpid() != owner:
        _settle(owner)
        os.chdir(folder)  # joblib reuses workers, and the driver may have left the folder of theirs
    return function(*job)


@cache
def _settle(owner: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(owner,), daemon=True).start()


def _watch(owner: int) -> None:
    while os.getppid() == owner:
        time.sleep(OWNER_SECONDS)
    os._exit(1)
