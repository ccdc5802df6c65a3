"""Seeded random streams: one independent generator per (seed, purpose), never a global one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a generator that depends only on the seed and on the purpose of the draws.

    Streams of different purposes are independent, so adding a draw to one part of a simulation does
    not change any other part. A seed gives the same run alone or among others.

    Args:
        seed: non-negative integer.
        purpose: words and counters that name the stream, e.g. `("cohorts",)`.

    Returns:
        A NumPy generator (PCG64).
    """
    words = [zlib.crc32(p.encode()) if isinstance(p, str) else int(p) for p in purpose]
    # The count distinguishes ("a",) from ("a", 0): a seed sequence ignores trailing zeros.
    return np.random.default_rng(np.random.SeedSequence([int(seed), len(words), *words]))


# Draws of libraries that use torch's global generator


@contextmanager
def library_draws(seed: int) -> Iterator[None]:
    """Run the block with torch's global CPU generator at a seed, then restore its state.

    The block depends on the seed alone, and the caller's own draws are not affected. Generators of
    accelerators are not used: models are created on the CPU.

    Args:
        seed: non-negative integer below 2**63.
    """
    import torch  # it takes seconds, and most streams do without

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
