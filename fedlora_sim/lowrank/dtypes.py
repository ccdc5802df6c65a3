"""The dtype to compute in, and padding."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half-precision inputs are computed in float32; float32 and float64 in themselves."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def pad_last(x: Tensor, size: int) -> Tensor:
    """Append zeros to the last dimension up to `size`."""
    return torch.nn.functional.pad(x, (0, size - x.shape[-1]))
