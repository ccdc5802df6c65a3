"""One driver to a folder: the second is refused, and the lock of a killed one is free."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fedlora_sim.errors import expected
from fedlora_sim.run_store import write_text

LOCK, HOLDER = ".lock", ".driver"


@contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system frees it with the process, however that ends.

    Raises:
        InputError: naming who holds it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise expected(
            "out", str(folder), f"no other sweep at work in it ({_holder(folder)})"
        ) from None
    try:
        write_text(folder / HOLDER, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        return f"{(folder / HOLDER).read_text(encoding='utf-8')} is"
    except OSError:
        return "one has just started"
