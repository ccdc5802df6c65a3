"""Draws of libraries that know torch's global generator only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def library_draws(seed: int) -> Iterator[None]:
    """Run the block with torch's global CPU generator at a seed, then leave it as it was.

    The block depends on the seed alone, and the caller's own draws do not notice it. Generators of
    accelerators are neither used nor touched: models are made on the CPU.

    Args:
        seed: non-negative integer below 2**63.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
