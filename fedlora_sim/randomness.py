"""Seeded random streams: one independent generator per (seed, purpose), never a global one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator that depends on the seed and on what the draws are for, and on nothing else.

    Streams of different purposes are independent, so adding a draw to one part of a simulation
    leaves every other part as it was; a seed gives the same run alone or among a thousand others.

    Args:
        seed: non-negative integer.
        purpose: words and counters that name the stream, e.g. `("cohorts",)`.

    Returns:
        A NumPy generator (PCG64).
    """
    words = [zlib.crc32(p.encode()) if isinstance(p, str) else int(p) for p in purpose]
    # The count keeps ("a",) apart from ("a", 0): a seed sequence takes no note of trailing zeros.
    return np.random.default_rng(np.random.SeedSequence([int(seed), len(words), *words]))


# Draws of libraries that know torch's global generator only


@contextmanager
def library_draws(seed: int) -> Iterator[None]:
    """Run the block with torch's global CPU generator at a seed, then leave it as it was.

    The block depends on the seed alone, and the caller's own draws do not notice it. Generators of
    accelerators are neither used nor touched: models are made on the CPU.

    Args:
        seed: non-negative integer below 2**63.
    """
    import torch  # it takes seconds, and most streams do without

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
