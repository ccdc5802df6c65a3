"""CPU threads: one for arithmetic too small to share, one per layer where layers are many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Run the block with so many torch threads, then restore the number that was set."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    """Run the block with one torch thread.

    The products of a tiny model or a small factor take microseconds. Shared between threads they
    gain little on an idle machine and lose a factor of ten on a busy one, where threads wait for
    each other; and their sums, hence the bits of a run, would depend on the number of threads.
    """
    return torch_threads(1)


def map_on_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Apply a function to every item, items spread over torch's threads, one thread to an item.

    Layers are independent and of equal size: a thread to a layer loses nothing to waiting, where
    threads that share one small factorisation mostly wait for each other. Results do not depend on
    the number of threads.
    """
    workers = min(torch.get_num_threads(), len(items))
    with one_thread(), blas_threads(1):
        if workers <= 1:
            return [function(item) for item in items]
        # A new thread starts with the machine's default number of threads of its own.
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))


def blas_threads(number: int) -> AbstractContextManager[object]:
    """Let NumPy's and SciPy's BLAS, which do not listen to torch, use so many threads."""
    return _blas().limit(limits=number, user_api="blas")


@cache
def _blas() -> ThreadpoolController:
    """The BLAS libraries that are loaded, looked up once."""
    return ThreadpoolController()
