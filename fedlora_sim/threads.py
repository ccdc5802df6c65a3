"""One CPU thread for arithmetic that is too small to share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the block with one torch thread, then restore the number that was set.

    The products of a tiny model or a small factor take microseconds. Shared between threads they
    gain little on an idle machine and lose a factor of ten on a busy one, where threads wait for
    each other; and their sums, hence the bits of a run, would depend on the number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
