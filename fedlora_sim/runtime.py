"""Devices, their precision and memory, CPU threads and worker processes."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from fedlora_sim.errors import check_choice, expected, one_line

if TYPE_CHECKING:  # it takes seconds, and a scenario needs the names alone
    import torch

T = TypeVar("T")
R = TypeVar("R")


class Divisible(Protocol):
    """A sequence or an array, whose slices are batches too."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> Any: ...


Batch = TypeVar("Batch", bound=Divisible)

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


ACCELERATED = ("training", "aggregation")
"""Work for which `auto` takes an accelerator: fine-tuning, and aggregating adapters.

The simulation of a spectrum draws its random numbers on the host, which takes most of the time, and
the operations of a matrix simulation are too small for an accelerator. A device that is named is
taken for any work.
"""

_is_worker = False
"""True in a process that works for another one, next to other workers on the same machine."""


def resolve_device(device: str, dtype: torch.dtype, work: str) -> torch.device:
    """Return the torch device of a name for some work.

    `auto` takes CUDA, then MPS (float32 only), for work that gains from it (`ACCELERATED`), and the
    CPU otherwise. It takes the CPU in worker processes, too, which would share one accelerator: a
    sweep uses several GPUs with one worker each (`--gpus`).

    Args:
        device: `auto | cpu | cuda | mps`.
        dtype: dtype of the computation.
        work: a fidelity, or `aggregation`.

    Raises:
        InputError: if the device is unknown, absent, or does not support this dtype.
    """
    import torch

    name = check_choice("device", device, DEVICES)
    has_mps = torch.backends.mps.is_available()
    if name == "auto" and (work not in ACCELERATED or _is_worker):
        name = "cpu"
    elif name == "auto":
        mps = has_mps and dtype == torch.float32
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise expected("device", device, "a device of this machine (no CUDA device is available)")
    if name == "mps" and not has_mps:
        raise expected("device", device, "a device of this machine (no MPS device is available)")
    if name == "mps" and dtype == torch.float64:
        raise expected("dtype", "float64", "float32, the only dtype that MPS computes in")
    return torch.device(name)


def is_on(found: torch.device, wanted: torch.device) -> bool:
    """Return True if a tensor's device is the wanted one.

    Tensors say `cuda:0` where `cuda` was asked for: without an index, the current device is meant.
    """
    import torch

    if found.type != wanted.type or wanted.index is not None:
        return found == wanted
    return found.type != "cuda" or found.index == torch.cuda.current_device()


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply and convolve float32 in full precision in the block, or in a decorated function.

    Many training scripts allow TF32 or bfloat16 with `torch.set_float32_matmul_precision("high")`
    or `torch.autocast`, and torch allows TF32 in convolutions by default. The 11 significant bits
    of TF32 cost three digits of an aggregate. The caller's settings are restored.
    """
    import torch

    with ExitStack() as stack:
        for kind in filter(torch.is_autocast_enabled, DEVICES[1:]):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_ieee())
        yield


@contextmanager
def _ieee() -> Iterator[None]:
    """Set the precision of float32 products and convolutions in the block."""
    import torch

    parts: Any = torch.backends
    if not hasattr(parts.cuda.matmul, "fp32_precision"):  # torch before 2.9
        matmul, convolutions = torch.get_float32_matmul_precision(), parts.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        parts.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)
            parts.cudnn.allow_tf32 = convolutions
        return
    places = [parts.cuda.matmul, parts.cudnn.conv, parts.cudnn.rnn]
    places += [parts.mkldnn.matmul, parts.mkldnn.conv, parts.mkldnn.rnn]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def in_parts(solve: Callable[[Batch], R], items: Batch) -> list[R]:
    """Apply a function to a batch or, if the device has too little memory for it, to its halves.

    Args:
        solve: a function of some of the items, whose result does not depend on the others.
        items: the batch, at least one item.

    Returns:
        The results of the parts, in order.

    Raises:
        MemoryError: if there is too little memory for one item.
    """
    import torch

    try:
        return [solve(items)]
    except torch.OutOfMemoryError as error:
        told = one_line(str(error))
    # Outside of the handler: the error's frames hold the tensors of the attempt.
    if len(items) == 1:
        raise MemoryError(f"not enough memory on the device, even for a batch of one: {told}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(items) // 2
    return [found for part in (items[:half], items[half:]) for found in in_parts(solve, part)]


# CPU threads: one for small operations, one per layer for many layers


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
    global _is_worker
    _is_worker = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(owner,), daemon=True).start()


def _watch(owner: int) -> None:
    while os.getppid() == owner:
        time.sleep(OWNER_SECONDS)
    os._exit(1)
