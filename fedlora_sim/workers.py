"""Processes that work for another one: deaf to Ctrl-C, and gone when it is."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import cache

OWNER_SECONDS = 0.5


def serve(owner: int) -> None:
    """Settle this process as a worker of its parent; nothing happens where it is the owner itself.

    Args:
        owner: process id of the driver, which hears Ctrl-C and ends its workers. Killed by force
            it tells nobody: its workers then end by themselves, in the midst of their work, lest
            they meet those of the next one.
    """
    if os.getpid() != owner:
        _settle(owner)


@cache
def _settle(owner: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(owner,), daemon=True).start()


def _watch(owner: int) -> None:
    while os.getppid() == owner:
        time.sleep(OWNER_SECONDS)
    os._exit(1)
