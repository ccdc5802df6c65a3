"""Device and dtype names: `auto | cpu | cuda | mps`, `float32 | float64`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora_sim.errors import check_choice, expected

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = {"float32": torch.float32, "float64": torch.float64}

MOST, LEAST = 2.0**62, 2.0**-120
"""Amplitudes that float32 can be trusted with: squares of the largest are numbers, and what stands
above the smallest has all its digits."""


def leaves_range(amplitudes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which runs have amplitudes that float32 does not hold, or could not compute with.

    Args:
        amplitudes: of every run, round and direction, (S, T + 1, r).

    Returns:
        Shape (S,).
    """
    size = np.abs(amplitudes)
    lost = ~(size <= MOST) | ((size > 0) & (size < LEAST))  # NaN is not below anything
    return np.asarray(lost.any(axis=(1, 2)))


def resolve_device(device: str, dtype: torch.dtype) -> torch.device:
    """The torch device of a name; `auto` takes CUDA, then MPS (float32 only), then the CPU.

    Raises:
        ValueError: if the device is unknown, absent, or cannot compute in this dtype.
    """
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
