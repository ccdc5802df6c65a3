"""Seeded random numbers: a generator for each (seed, purpose), and draws by number."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # it takes seconds, and most streams do without
    import torch
    from torch import Tensor


def stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a generator that depends only on the seed and on the purpose of the draws.

    Streams of different purposes are independent, so adding a draw to one part of a simulation does
    not change any other part. A seed gives the same run alone or among others.

    Args:
        seed: non-negative integer.
        purpose: words and counters that name the stream, e.g. `("split",)`.

    Returns:
        A NumPy generator (PCG64).
    """
    words = [zlib.crc32(p.encode()) if isinstance(p, str) else int(p) for p in purpose]
    # The count distinguishes ("a",) from ("a", 0): a seed sequence ignores trailing zeros.
    return np.random.default_rng(np.random.SeedSequence([int(seed), len(words), *words]))


# Draws by number: Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
#
# A block of four 64-bit words is a function of its number and of the key (seed, purpose). NumPy and
# torch compute the same integers on any device, for any number of seeds at once, and the draws of
# a short run are the first ones of a long run.

DRAWS = 2
"""Version of the draws, an attribute of results: another one has other random numbers."""

BLOCK = 4
"""Words of a block."""

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_WORD = (1 << 64) - 1
_EXPONENT = 0x3FF0000000000000  # of the doubles in [1, 2)
_IN_CACHE = 1 << 16  # words that are transformed at a time


def uniforms(
    seeds: Sequence[int], purpose: str, count: int, device: torch.device | None = None
) -> Tensor:
    """Return the first uniform draws of each seed, in (0, 1), float64, (S, count).

    Args:
        seeds: whole numbers from 0 to 2**63 - 1.
        purpose: what is drawn; the draws of different purposes are independent.
        count: draws of each seed.
        device: where to draw; None draws on the CPU.
    """
    return _transformed(_to_uniform_, seeds, purpose, count, device)


def normals(
    seeds: Sequence[int],
    purpose: str,
    count: int,
    device: torch.device | None = None,
    start: int = 0,
) -> Tensor:
    """Return standard normal draws of each seed, float64, (S, count).

    Arguments as for `uniforms`, and the number of the first block. Devices differ by rounding of
    logarithms, sines and cosines.
    """
    return _transformed(_to_normal_, seeds, purpose, count, device, start)


def _transformed(
    transform: Callable[[Tensor], object],
    seeds: Sequence[int],
    purpose: str,
    count: int,
    device: torch.device | None,
    start: int = 0,
) -> Tensor:
    """Return words of each seed, transformed in place, part by part."""
    import torch

    raw = words(seeds, purpose, -(-count // BLOCK), device, start)
    flat = raw.view(-1)
    step = _IN_CACHE if raw.device.type == "cpu" else max(len(flat), 1)
    for first in range(0, len(flat), step):
        transform(flat[first : first + step])
    return raw.view(torch.float64)[:, :count]


def words(
    seeds: Sequence[int],
    purpose: str,
    blocks: int,
    device: torch.device | None = None,
    start: int = 0,
) -> Tensor:
    """Return blocks of each seed from block `start` on, bits of uint64 as int64, (S, 4 * blocks).

    Arguments as for `uniforms`, with the number of blocks of four words.
    """
    import torch

    if device is None or device.type != "cuda":
        return torch.from_numpy(_host_words(seeds, purpose, blocks, start).view(np.int64))
    keys = torch.tensor(seeds, device=device)[:, None].expand(-1, blocks)
    numbers = torch.arange(start, start + blocks, device=device).expand(len(seeds), -1)
    zero = torch.zeros_like(numbers)
    drawn = philox([numbers, zero, zero, zero], [keys, _signed(_purpose_key(purpose))])
    return torch.stack(drawn, dim=-1).flatten(1)


def _host_words(seeds: Sequence[int], purpose: str, blocks: int, start: int) -> NDArray[np.uint64]:
    found = np.empty((len(seeds), BLOCK * blocks), dtype=np.uint64)
    generator = np.random.Philox(key=0)
    state: Any = generator.state
    # NumPy counts up before it computes a block: it starts before the first one.
    before = [start - 1, 0, 0, 0] if start else [_WORD] * 4
    state["state"]["counter"] = np.array(before, dtype=np.uint64)
    key = np.array([0, _purpose_key(purpose)], dtype=np.uint64)
    state["state"]["key"] = key
    for own, seed in zip(found, seeds, strict=True):
        key[0] = seed
        generator.state = state
        own[:] = generator.random_raw(len(own))
    return found


def _purpose_key(purpose: str) -> int:
    word = purpose.encode()
    return zlib.crc32(word) << 32 | zlib.adler32(word)


def philox(counter: Sequence[Tensor], key: Sequence[Tensor | int]) -> list[Tensor]:
    """Return the four words of Philox4x64-10 for a counter and a key.

    Args:
        counter: four words, bits of uint64 as int64, of one shape.
        key: two words, each of that shape or a number.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _product(c0, _MULTIPLIERS[0])
        high1, low1 = _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (_sum(k, step) for k, step in zip((k0, k1), _KEY_STEPS, strict=True))
    return [c0, c1, c2, c3]


def _sum(k: Tensor | int, step: int) -> Tensor | int:
    # Sums of int64 tensors wrap around, as those of uint64 do.
    return _signed((k + step) & _WORD) if isinstance(k, int) else k + _signed(step)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low word of a product of 128 bits, from halves of 32 bits."""
    half = (1 << 32) - 1
    x_low, x_high = x & half, (x >> 32) & half
    low, high = factor & half, factor >> 32
    first = x_high * low + ((x_low * low >> 32) & half)
    second = x_low * high + (first & half)
    above = x_high * high + ((first >> 32) & half) + ((second >> 32) & half)
    return above, x * _signed(factor)


def _to_uniform_(raw: Tensor) -> Tensor:
    """Replace words by uniform draws: the lower 52 bits, in the middle of their cells."""
    import torch

    raw.bitwise_and_((1 << 52) - 1).bitwise_or_(_EXPONENT)
    return raw.view(torch.float64).sub_(1 - 2.0**-53)


def _to_normal_(raw: Tensor) -> None:
    """Replace neighboring pairs of words by normal draws (Box and Muller 1958)."""
    import torch

    first, second = _to_uniform_(raw).view(-1, 2).unbind(-1)
    radius = first.log().mul_(-2).sqrt_()
    angle = second * (2 * math.pi)
    torch.mul(angle.cos(), radius, out=first)
    torch.mul(angle.sin_(), radius, out=second)


# Draws of libraries that use torch's global generator


@contextmanager
def library_draws(seed: int) -> Iterator[None]:
    """Run the block with torch's global CPU generator at a seed, then restore its state.

    The block depends on the seed alone, and the caller's own draws are not affected. Generators of
    accelerators are not used: models are created on the CPU.

    Args:
        seed: non-negative integer below 2**63.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
