"""LoRA adapters of a whole cohort on one frozen model, trained by one backward pass.

Convention, everywhere: `dW = scaling * lora_B @ lora_A` (Hu et al. 2021, arXiv 2106.09685),
`lora_A` (r, d_in), `lora_B` (d_out, r). The inputs of K clients are stacked client-major along the
first axis: the frozen product runs once over all of them, the adapters as batched products. Client
k's output depends on client k's adapter alone, so the backward pass of the *sum* of the clients'
losses gives every client exactly its own gradient.

Clients of lower rank are padded with zeros to the cohort's highest rank. With G the gradient of
the loss with respect to the output and x the input of a client, row i of `lora_A` has gradient
`scaling * B[:, i]^T G^T x` and column i of `lora_B` has `scaling * G^T x A[i]^T`: each is zero
because the *other* factor's padding is zero. SGD (with momentum), Adam and AdamW leave a parameter
that is zero and has only ever had zero gradients at zero, so no mask is needed.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedlora_sim.errors import expected

Adapters = dict[str, tuple[Tensor, Tensor]]
"""Module name -> (`lora_A` (K, r, d_in), `lora_B` (K, d_out, r)), padded to one rank r."""

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Frozen:
    """What of a layer's adapters stays as it is.

    Args:
        lora_a: A as a whole (FFA-LoRA).
        mask: entries of B that move, 0 or 1, (d_out, r), for all clients alike; the others are
            taken for zero (SLoRA's sparse stage). None: all of them.
    """

    lora_a: bool = False
    mask: Tensor | None = None


class StackedLoRALinear(nn.Module):
    """A frozen linear map with the LoRA adapters of K clients.

    `y_k = x_k W^T + bias + scaling_k * (x_k lora_A_k^T) lora_B_k^T` for client k.

    Args:
        base: the linear map; used as it is, and frozen here by detaching its parameters.
        lora_A: shape (K, r, d_in); copied.
        lora_B: shape (K, d_out, r); copied.
        scaling: shape (K,).
        frozen: what does not move.

    Raises:
        ValueError: if the shapes do not fit each other or `base`.
    """

    weight: Tensor
    bias: Tensor | None
    scaling: Tensor
    mask: Tensor | None

    def __init__(
        self,
        base: nn.Linear,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: Tensor,
        frozen: Frozen | None = None,
    ) -> None:
        super().__init__()
        _check_shapes(base, lora_A, lora_B, scaling)
        self.register_buffer("weight", base.weight.detach())
        self.register_buffer("bias", None if base.bias is None else base.bias.detach())
        self.register_buffer("scaling", scaling.detach().to(base.weight)[:, None, None])
        frozen = Frozen() if frozen is None else frozen
        self.register_buffer("mask", None if frozen.mask is None else frozen.mask.to(lora_B))
        self.lora_A = nn.Parameter(lora_A.detach().clone(), requires_grad=not frozen.lora_a)
        self.lora_B = nn.Parameter(lora_B.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map of client k to the k-th of K equal parts of the input.

        Args:
            x: shape (K*b, ..., d_in), client-major.

        Returns:
            Shape (K*b, ..., d_out).

        Raises:
            ValueError: if the first axis is not a multiple of K.
        """
        num_clients = self.lora_A.shape[0]
        if x.shape[0] % num_clients:
            raise expected("x", tuple(x.shape), f"a first axis that is a multiple of {num_clients}")
        base = functional.linear(x, self.weight, self.bias)
        inner = torch.bmm(x.reshape(num_clients, -1, x.shape[-1]), self.lora_A.mT)
        moving = self.lora_B if self.mask is None else self.lora_B * self.mask
        outer = (self.scaling * moving).mT
        stacked = base.reshape(num_clients, -1, base.shape[-1])
        return torch.baddbmm(stacked, inner, outer).view_as(base)

    def keep_first(self, num_clients: int) -> None:
        """Go on with the first clients only; the others' adapters stay where they are.

        The new parameters are views of the old ones' memory: whoever holds the old ones sees the
        updates of the first clients, and the last state of the others.

        Args:
            num_clients: how many clients remain.
        """
        trained = self.lora_A.requires_grad
        self.lora_A = nn.Parameter(self.lora_A.detach()[:num_clients], requires_grad=trained)
        self.lora_B = nn.Parameter(self.lora_B.detach()[:num_clients])
        self.scaling = self.scaling[:num_clients]


def attach(
    model: ModelT,
    target_modules: Iterable[str],
    adapters: Mapping[str, tuple[Tensor, Tensor]],
    scaling: Tensor | Sequence[float],
    frozen: Mapping[str, Frozen] | None = None,
) -> ModelT:
    """Copy a model with its target modules replaced by `StackedLoRALinear`.

    The copy shares the frozen parameters with `model`, which is not changed.

    Args:
        model: any module; its targets must be `nn.Linear`.
        target_modules: full module names, as in `model.named_modules()`.
        adapters: for every target, `lora_A` (K, r, d_in) and `lora_B` (K, d_out, r); copied.
        scaling: LoRA scaling of every client, shape (K,).
        frozen: for targets of which something stays as it is, what.

    Returns:
        The copy; its input is client-major, (K*b, ...). Only the adapters want gradients.

    Raises:
        ValueError: on a target that the model lacks (with the closest name) or that is no
            `nn.Linear`, on a target without adapters or the reverse, and on shapes that differ.
    """
    targets = tuple(target_modules)
    if set(targets) != set(adapters):
        raise expected("adapters", sorted(adapters), f"adapters for exactly {sorted(targets)}")
    # deepcopy takes what its memo holds for copied already: the frozen tensors' memory is shared.
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()
    }
    shared.update({id(b): b for b in model.buffers()})
    clone = copy.deepcopy(model, shared)
    for name in targets:
        base = find_linear(model, name)
        parent, _, leaf = name.rpartition(".")
        lora_A, lora_B = adapters[name]
        scales = torch.as_tensor(scaling, dtype=torch.float64)
        layer = StackedLoRALinear(base, lora_A, lora_B, scales, (frozen or {}).get(name))
        setattr(clone.get_submodule(parent), leaf, layer)
    return clone


def find_linear(model: nn.Module, name: str) -> nn.Linear:
    """The `nn.Linear` of that name.

    Args:
        model: the module to look into.
        name: full module name, as in `model.named_modules()`.

    Returns:
        The module itself, not a copy.

    Raises:
        ValueError: if there is none; the message has the closest name, or the module's type.
    """
    modules = dict(model.named_modules())
    if name not in modules:
        linear = [key for key, module in modules.items() if isinstance(module, nn.Linear)]
        close = difflib.get_close_matches(name, linear, n=1, cutoff=0.0)
        hint = f"; the closest is {close[0]!r}" if close else ""
        raise expected("target_modules", name, f"the name of a linear module{hint}")
    module = modules[name]
    if not isinstance(module, nn.Linear):
        raise expected("target_modules", name, f"an nn.Linear, not {type(module).__name__}")
    return module


def _check_shapes(base: nn.Linear, lora_A: Tensor, lora_B: Tensor, scaling: Tensor) -> None:
    """Refuse factors that do not fit the linear map or each other."""
    if lora_A.dim() != 3 or lora_A.shape[0] < 1 or lora_A.shape[2] != base.in_features:
        raise expected("lora_A", tuple(lora_A.shape), f"shape (K, r, {base.in_features})")
    num_clients, rank = lora_A.shape[:2]
    for argument, factor, shape in (
        ("lora_B", lora_B, (num_clients, base.out_features, rank)),
        ("scaling", scaling, (num_clients,)),
    ):
        if tuple(factor.shape) != shape:
            raise expected(argument, tuple(factor.shape), f"shape {shape}")
    for argument, factor in (("lora_A", lora_A), ("lora_B", lora_B)):
        if factor.dtype != base.weight.dtype:
            raise expected(argument, factor.dtype, f"dtype {base.weight.dtype}, as the model")
