"""LoRA factors: the pair (A, B) with its scaling, and the product `dW = scaling * B @ A`.

`lora_A` has shape (..., r, d_in) and `lora_B` (..., d_out, r), as in PEFT; leading dimensions are
batches (layers, seeds). A and B are distinguished by name, never by shape. Source of the notation:
Hu et al. 2021 (arXiv 2106.09685, Sec. 4.1); `scaling` is `alpha / r`, or `alpha / sqrt(r)` under
rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlora_sim.errors import check_finite, check_positive_int, expected
from fedlora_sim.lowrank import (
    LowRankProduct,
    compute_dtype,
    exponent,
    is_safe,
    largest,
    low_rank_svd,
    pad_last,
    sign_fixed_svd,
    times_power,
)


@dataclass(frozen=True, eq=False)
class LoRAFactors:
    """A low-rank update `dW = scaling * lora_B @ lora_A`.

    Args:
        lora_A: (..., r, d_in), floating point; NumPy arrays are converted to tensors.
        lora_B: (..., d_out, r), same dtype, device and leading dimensions.
        scaling: the LoRA scaling, finite; it is part of the update.

    Raises:
        InputError: if shapes, dtypes or devices do not match, or r is 0 or above min(d_in, d_out).
    """

    lora_A: Tensor
    lora_B: Tensor
    scaling: float = 1.0

    def __post_init__(self) -> None:
        a, b = as_tensor("lora_A", self.lora_A), as_tensor("lora_B", self.lora_B)
        object.__setattr__(self, "lora_A", a)
        object.__setattr__(self, "lora_B", b)
        object.__setattr__(self, "scaling", check_finite("scaling", self.scaling))
        for name, tensor in (("lora_A", a), ("lora_B", b)):
            check_matrix(name, tensor)
        if a.dtype != b.dtype or a.device != b.device:
            given = f"{b.dtype} on {b.device}"
            raise expected("lora_B", given, f"lora_A's {a.dtype} on {a.device}")
        if a.shape[:-2] != b.shape[:-2] or a.shape[-2] != b.shape[-1]:
            raise expected(
                "lora_B",
                tuple(b.shape),
                f"(..., d_out, r) to match lora_A's (..., r, d_in) = {tuple(a.shape)}",
            )
        if not 1 <= self.rank <= min(self.d_in, self.d_out):
            limit = f"1 <= rank <= min(d_in, d_out) = {min(self.d_in, self.d_out)}"
            raise expected("rank", self.rank, limit)

    @property
    def rank(self) -> int:
        """LoRA rank r."""
        return self.lora_A.shape[-2]

    @property
    def d_in(self) -> int:
        """Input dimension."""
        return self.lora_A.shape[-1]

    @property
    def d_out(self) -> int:
        """Output dimension."""
        return self.lora_B.shape[-2]

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of both factors."""
        return self.lora_A.dtype

    @property
    def device(self) -> torch.device:
        """Device of both factors."""
        return self.lora_A.device

    def delta(self) -> Tensor:
        """Return the update `dW = scaling * lora_B @ lora_A`, shape (..., d_out, d_in).

        Raises:
            InputError: if an entry overflows the dtype.
        """
        found = self.scaling * (self.lora_B @ self.lora_A)
        with torch.no_grad():
            size = largest(found).to(compute_dtype(self.dtype))
        if self.dtype != size.dtype or is_safe(size, size.dtype):
            return found
        # Products overflow or underflow: scale by powers of two, and scale the result back.
        powers = [_largest_exponent(x)[..., None, None] for x in (self.lora_B, self.lora_A)]
        lora_b, lora_a = (
            times_power(x, -e) for x, e in zip((self.lora_B, self.lora_A), powers, strict=True)
        )
        factor, power = math.frexp(self.scaling)
        found = times_power(factor * (lora_b @ lora_a), powers[0] + powers[1] + power)
        check_tensor_finite("update scaling * lora_B @ lora_A", found)
        return found

    @property
    def product(self) -> LowRankProduct:
        """The update as a lazy low-rank product."""
        dtype = compute_dtype(self.dtype)  # half precision rounds a scaling of 1/3
        weights = self.lora_A.new_full((self.rank,), self.scaling, dtype=dtype)
        return LowRankProduct([(self.lora_B, self.lora_A)], weights)

    def norm(self) -> Tensor:
        """Return Frobenius norm `||dW||_F`, (...), from the factors' Gram matrices in float64."""
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        a, b = self.lora_A.to(wide), self.lora_B.to(wide)
        norm = abs(self.scaling) * _norm(a, b)
        return norm if is_safe(norm, wide) else times_power(*self.scaled_norm())

    def scaled_norm(self) -> tuple[Tensor, Tensor]:
        """Return the norm of an update of any size.

        Returns:
            x and e with `||dW||_F = x 2**e`, each (...).
        """
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        a, b = self.lora_A.to(wide), self.lora_B.to(wide)
        powers = [_largest_exponent(x) for x in (a, b)]
        a, b = (times_power(x, -e[..., None, None]) for x, e in zip((a, b), powers, strict=True))
        factor, power = math.frexp(abs(self.scaling))
        return factor * _norm(a, b), powers[0] + powers[1] + power

    def to(self, dtype: torch.dtype) -> LoRAFactors:
        """Return the same factors in another dtype."""
        if dtype == self.dtype:
            return self
        return LoRAFactors(self.lora_A.to(dtype), self.lora_B.to(dtype), self.scaling)

    def truncate(self, r: int) -> LoRAFactors:
        """Return the first `r` rank components, with the same scaling.

        For factors in their SVD gauge (from `from_delta`, `canonical` and all product-space rules)
        this is the best rank-r approximation (Eckart-Young).

        Raises:
            InputError: unless 1 <= r <= rank.
        """
        if check_positive_int("r", r) > self.rank:
            raise expected("r", r, f"at most the rank {self.rank}")
        return LoRAFactors(self.lora_A[..., :r, :], self.lora_B[..., :, :r], self.scaling)

    def select(self, positions: Tensor) -> LoRAFactors:
        """Return the rank components at the given positions, (q,), with the same scaling."""
        a, b = self.lora_A[..., positions, :], self.lora_B[..., positions]
        return LoRAFactors(a, b, self.scaling)

    def rescale(self, scaling: float) -> LoRAFactors:
        """Return the same update written with another positive scaling.

        The factor is split evenly between A and B.
        """
        if check_finite("scaling", scaling) <= 0 or self.scaling <= 0:
            raise expected("scaling", (self.scaling, scaling), "positive scalings, old and new")
        ratio = self.scaling / scaling
        if not sys.float_info.min <= ratio <= sys.float_info.max:
            share = math.sqrt(self.scaling) / math.sqrt(scaling)
        else:
            share = math.sqrt(ratio)
        return LoRAFactors(self.lora_A * share, self.lora_B * share, scaling)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the thin SVD of the update without forming it.

        Returns:
            U (..., d_out, r), S (..., r) and Vh (..., r, d_in).

        Raises:
            InputError: if a singular value overflows the dtype.
        """
        scaled = self.scaling * self.lora_B
        if bool(torch.isfinite(scaled.sum())):
            return low_rank_svd(scaled, self.lora_A, self.rank)
        u, s, vh = self.product.svd(self.rank)
        return u.to(self.dtype), s.to(self.dtype), vh.to(self.dtype)

    def canonical(self, r: int | None = None) -> LoRAFactors:
        """Return the update truncated to rank `r`, as `B = U sqrt(S)`, `A = sqrt(S) V^T`."""
        scaled = LowRankProduct(
            [(self.scaling * self.lora_B, self.lora_A)], self.lora_B.new_ones(self.rank)
        )
        own = scaled if bool(torch.isfinite(scaled.blocks[0][0].sum())) else self.product
        result = best_factors(own, self.rank, self.dtype)
        return result.truncate(self.rank if r is None else r)

    def column_amplitudes(self) -> Tensor:
        """Return the amplitude `|scaling| |b_i| |a_i|` of each component, (..., r).

        In the SVD gauge these are the singular values.
        """
        return abs(self.scaling) * self.lora_B.norm(dim=-2) * self.lora_A.norm(dim=-1)

    def lost_columns(self, amplitude: Tensor | None = None) -> Tensor:
        """Return which rank components are zero up to rounding, boolean (..., r).

        Args:
            amplitude: `column_amplitudes()` if they are known, (..., r).
        """
        amplitude = self.column_amplitudes() if amplitude is None else amplitude
        rounding = torch.finfo(self.dtype).eps * max(self.d_in, self.d_out)
        return amplitude <= rounding * amplitude.amax(dim=-1, keepdim=True)

    @classmethod
    def from_delta(cls, W: Tensor, r: int, scaling: float = 1.0) -> LoRAFactors:
        """Return the best rank-r approximation of a dense update, split evenly between the factors.

        `B = U sqrt(S)`, `A = sqrt(S) V^T`, both divided by the square root of the scaling.

        Args:
            W: dense update, (..., d_out, d_in).
            r: rank, 1 <= r <= min(d_in, d_out).
            scaling: LoRA scaling of the result; `delta()` does not depend on it.

        Returns:
            Factors of rank r.

        Raises:
            InputError: if r is out of range.
        """
        W = as_tensor("W", W)
        check_matrix("W", W)
        check_tensor_finite("W", W)
        limit = min(W.shape[-2:])
        if check_positive_int("r", r) > limit:
            raise expected("r", r, f"at most min(d_in, d_out) = {limit}")
        u, s, vh = sign_fixed_svd(W)
        return from_svd(u[..., :r], s[..., :r], vh[..., :r, :]).rescale(scaling)


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of factors; torch has no arithmetic for narrower ones."""


def as_tensor(name: str, values: object) -> Tensor:
    """Return a tensor from a tensor or NumPy array; arrays that torch cannot share are copied.

    Raises:
        InputError: if `values` is neither; names the argument.
    """
    if isinstance(values, np.ndarray) and (
        not values.flags.writeable or min(values.strides, default=0) < 0
    ):
        values = values.copy()
    wanted = "a tensor or an array of numbers"
    is_array = isinstance(values, Tensor | list | tuple) or hasattr(values, "__array__")
    if not is_array:  # torch would read any iterable number by number
        raise expected(name, values, wanted)
    try:
        return torch.as_tensor(values)
    except Exception:  # __array__ may raise anything
        raise expected(name, values, wanted) from None


def check_matrix(name: str, tensor: Tensor) -> None:
    """Refuse anything but a non-empty dense floating-point matrix or a batch of them."""
    wanted = "a floating-point matrix, batch dimensions leading"
    if tensor.is_nested:
        raise expected(name, "a nested tensor", wanted)
    given = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
    if tensor.ndim < 2 or not tensor.is_floating_point():
        raise expected(name, given, wanted)
    if tensor.dtype not in FLOATS:
        types = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise expected(name, given, f"{wanted}, of type {types}")
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "meta" if tensor.is_meta else str(tensor.layout)
        raise expected(name, f"{given}, {kind}", f"{wanted}, dense and with values")


def check_tensor_finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity; the error names the tensor and the number of such entries."""
    # One pass without a mask for the usual case: a sum of finite numbers is finite or overflows.
    if bool(torch.isfinite(tensor.sum())):
        return
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        first = tensor[~finite].flatten()[0].item()
        count = int((~finite).sum())
        raise expected(name, first, f"finite entries ({count} of {tensor.numel()} are not)")


def best_factors(
    product: LowRankProduct, r: int | None, dtype: torch.dtype | None = None
) -> LoRAFactors:
    """Return the best rank-r approximation of a product of any size.

    `B = U sqrt(S)` and `A = sqrt(S) V^T`. The factors can be finite where the singular values
    overflow: 1e25 is finite in float32, its square is not.

    Args:
        product: a low-rank product of shape (..., d_out, d_in).
        r: rank; padded with zeros if the product has fewer columns. None: all columns.
        dtype: dtype of the factors before the split; the product's when None.
    """
    u, s, vh, m = product.scaled_svd(r)
    if dtype is not None:
        u, s, vh = u.to(dtype), s.to(dtype), vh.to(dtype)
    result = from_svd(u, s, vh, r)
    if m is None:
        return result
    m = m[..., None, None]
    return LoRAFactors(times_power(result.lora_A, m), times_power(result.lora_B, m))


def _norm(a: Tensor, b: Tensor) -> Tensor:
    """Return `||b a||_F` from the Gram matrices."""
    return ((b.mT @ b) * (a @ a.mT)).sum((-2, -1)).clamp_min(0).sqrt()


def _largest_exponent(x: Tensor) -> Tensor:
    """Return the exponent of the largest entry of each matrix; 0 for a zero matrix."""
    size = largest(x)
    return torch.where(size > 0, exponent(size), 0)


def from_svd(u: Tensor, s: Tensor, vh: Tensor, r: int | None = None) -> LoRAFactors:
    """Return the balanced split `B = U sqrt(S)`, `A = sqrt(S) V^T`, zero-padded to rank r."""
    root = s.clamp_min(0).sqrt()
    lora_b, lora_a = u * root.unsqueeze(-2), vh * root.unsqueeze(-1)
    if r is not None and r > s.shape[-1]:
        lora_b, lora_a = pad_last(lora_b, r), pad_last(lora_a.mT, r).mT
    return LoRAFactors(lora_a, lora_b)
