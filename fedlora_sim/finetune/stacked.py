"""LoRA of many clients stacked on one frozen model.

Convention, everywhere: `dW = scaling * lora_B @ lora_A` (Hu et al. 2021, arXiv 2106.09685),
`lora_A` (r, d_in), `lora_B` (d_out, r). The inputs of K clients are stacked client-major along the
first axis: the frozen product runs once over all of them, the adapters as batched products. Client
k's output depends on client k's adapter alone, so the backward pass of the *sum* of the clients'
losses gives each client exactly its own gradient.

Clients of lower rank are padded with zeros to the cohort's highest rank. With G the gradient of the
loss with respect to the output and x the input of a client, row i of `lora_A` has gradient
`scaling * B[:, i]^T G^T x` and column i of `lora_B` has `scaling * G^T x A[i]^T`: each is zero
because the *other* factor's padding is zero. SGD (with momentum), Adam and AdamW keep a parameter
at zero if it is zero and all its gradients were zero, so no mask is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fedlora_sim.errors import expected
from fedlora_sim.tasks.targets import is_linear, linear_shape, resolve_targets, target_blocks

Adapters = dict[str, tuple[Tensor, Tensor]]
"""Module name -> (`lora_A` (K, r, d_in), `lora_B` (K, d_out, r)), padded to one rank r."""

Heads = Mapping[str, tuple[Tensor, ...]]
"""Module name -> weight (K, d_out, d_in) and, if it has one, bias (K, d_out) of maps that clients

train as a whole; without the first axis the server's.
"""


@dataclass(frozen=True, eq=False)
class Frozen:
    """The frozen part of a layer's adapters.

    Args:
        lora_a: freeze all of A (FFA-LoRA).
        mask: entries of B to train, 0 or 1, (d_out, r), equal for all clients; the others are zero
            (SLoRA's sparse stage). None: all of them.
    """

    lora_a: bool = False
    mask: Tensor | None = None


class StackedModule(nn.Module):
    """Base class of a cohort's modules: parameters (K, ...), one slice per client."""

    @property
    def num_clients(self) -> int:
        """Number of clients that still train."""
        return next(len(p) for p in self._parameters.values() if p is not None)

    def clients_first(self, x: Tensor) -> Tensor:
        """Return the input with a client axis, (K, n, d_in).

        Args:
            x: shape (K * b, ..., d_in), client-major.

        Raises:
            InputError: if the first axis is not a multiple of K.
        """
        clients = self.num_clients
        if x.shape[0] % clients:
            raise expected("x", tuple(x.shape), f"a first axis that is a multiple of {clients}")
        return x.reshape(clients, -1, x.shape[-1])

    def keep_first(self, num_clients: int) -> None:
        """Continue with the first clients only; the others' parameters do not change any more.

        The new parameters are views of the old ones' memory: a holder of the old ones sees the
        updates of the first clients, and the last state of the others.
        """
        for name, old in list(self.named_parameters(recurse=False)):
            kept = nn.Parameter(old.detach()[:num_clients], requires_grad=old.requires_grad)
            setattr(self, name, kept)


class StackedLoRALinear(StackedModule):
    """A frozen linear map with the LoRA adapters of K clients.

    `y_k = x_k W^T + bias + scaling_k * (x_k lora_A_k^T) lora_B_k^T` for client k.

    Args:
        base: the linear map, `nn.Linear` or transformers' `Conv1D`; used without a copy, and frozen
            by detaching its parameters.
        lora_A: shape (K, r, d_in); copied.
        lora_B: shape (K, d_out, r); copied.
        scaling: shape (K,).
        frozen: the frozen part.

    Raises:
        InputError: if the shapes do not match each other or `base`.
    """

    weight: Tensor
    bias: Tensor | None
    scaling: Tensor
    mask: Tensor | None

    def __init__(
        self,
        base: nn.Module,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: Tensor,
        frozen: Frozen | None = None,
    ) -> None:
        super().__init__()
        _check_adapter(base, lora_A, lora_B, scaling)
        weight, bias = weight_of(base), base.bias
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", bias.detach() if isinstance(bias, Tensor) else None)
        self.register_buffer("scaling", scaling.detach().to(weight)[:, None, None])
        frozen = Frozen() if frozen is None else frozen
        self.register_buffer("mask", None if frozen.mask is None else frozen.mask.to(lora_B))
        self.lora_A = nn.Parameter(lora_A.detach().clone(), requires_grad=not frozen.lora_a)
        self.lora_B = nn.Parameter(lora_B.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map of client k to the k-th of K equal parts of the input.

        Args:
            x: shape (K * b, ..., d_in), client-major.

        Returns:
            Shape (K * b, ..., d_out).
        """
        moving = self.lora_B if self.mask is None else self.lora_B * self.mask
        own = self.clients_first(x)
        adapted = _Adapted.apply(own, self.weight, self.bias, self.lora_A, moving, self.scaling)
        return adapted.view(*x.shape[:-1], len(self.weight))

    def keep_first(self, num_clients: int) -> None:
        """Continue with the first clients only."""
        super().keep_first(num_clients)
        self.scaling = self.scaling[:num_clients]


class _Adapted(torch.autograd.Function):
    """`y_k = x_k W^T + bias + scaling_k * (x_k A_k^T) B_k^T`, differentiated by x, A and B.

    Equivalent to autograd with fewer passes over memory: the adapters' part is added in place, and
    every gradient is computed once, in the layout of its parameter.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: Tensor,
    ) -> Tensor:
        """Return output for x (K, n, d_in), A (K, r, d_in), B (K, d_out, r), scaling (K, 1, 1)."""
        inner = torch.bmm(x, lora_A.mT).mul_(scaling)
        ctx.save_for_backward(x, weight, lora_A, lora_B, scaling, inner)
        return functional.linear(x, weight, bias).baddbmm_(inner, lora_B.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, lora_A and lora_B, if required."""
        x, weight, lora_A, lora_B, scaling, inner = ctx.saved_tensors
        of_x, _, _, of_a, of_b, _ = ctx.needs_input_grad
        back = torch.bmm(grad, lora_B).mul_(scaling)
        return (
            torch.matmul(grad, weight).baddbmm_(back, lora_A) if of_x else None,
            None,
            None,
            torch.bmm(back.mT, x) if of_a else None,
            torch.bmm(grad.mT, inner) if of_b else None,
            None,
        )


class StackedLinear(StackedModule):
    """A linear map with separate weights per client: `y_k = x_k W_k^T + bias_k`.

    Args:
        weight: shape (K, d_out, d_in); copied.
        bias: shape (K, d_out), copied; None for a map without bias.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map of client k to the k-th of K equal parts of the input."""
        own = self.clients_first(x)
        mapped = torch.bmm(own, self.weight.mT)
        if self.bias is not None:
            mapped = mapped + self.bias.unsqueeze(1)
        return mapped.view(*x.shape[:-1], mapped.shape[-1])


def weight_of(base: nn.Module) -> Tensor:
    """Return the weight of a linear map, (d_out, d_in); for `Conv1D` a transposed view."""
    weight = base.weight
    assert isinstance(weight, Tensor)  # true of every linear map
    return weight if isinstance(base, nn.Linear) else weight.mT


def _check_adapter(base: nn.Module, lora_A: Tensor, lora_B: Tensor, scaling: Tensor) -> None:
    """Refuse factors that do not match the linear map or each other."""
    d_out, d_in = linear_shape(base)
    if lora_A.dim() != 3 or lora_A.shape[0] < 1 or lora_A.shape[2] != d_in:
        raise expected("lora_A", tuple(lora_A.shape), f"shape (K, r, {d_in})")
    num_clients, rank = lora_A.shape[:2]
    for argument, factor, shape in (
        ("lora_B", lora_B, (num_clients, d_out, rank)),
        ("scaling", scaling, (num_clients,)),
    ):
        if tuple(factor.shape) != shape:
            raise expected(argument, tuple(factor.shape), f"shape {shape}")
    weight = weight_of(base)
    for argument, factor in (("lora_A", lora_A), ("lora_B", lora_B)):
        if factor.dtype != weight.dtype:
            raise expected(argument, factor.dtype, f"dtype {weight.dtype}, as the model")


# A model with the adapters of a cohort in place of its linear maps

ModelT = TypeVar("ModelT", bound=nn.Module)


def attach(
    model: ModelT,
    adapters: Adapters,
    scaling: Tensor | Sequence[float],
    frozen: Mapping[str, Frozen] | None = None,
    heads: Heads | None = None,
    *,
    gradient_checkpointing: bool = False,
) -> ModelT:
    """Copy a model, replacing its target modules by those of a cohort.

    The copy shares the frozen parameters with `model`, which is not changed, and is in evaluation
    mode, because dropout would give a client different masks in different stacks.

    Args:
        model: any module; its targets are `nn.Linear` or transformers' `Conv1D`.
        adapters: for each target by its full name, `lora_A` (K, r, d_in) and `lora_B`
            (K, d_out, r); copied.
        scaling: LoRA scaling of each client, shape (K,).
        frozen: for targets with partly frozen adapters, the frozen part.
        heads: for each map that clients train as a whole, weight (K, d_out, d_in) and, if it has
            one, bias (K, d_out).
        gradient_checkpointing: keep only the inputs of the model's blocks and recompute the rest in
            the backward pass: less memory for a third more time.

    Returns:
        The copy; its input is client-major, (K * b, ...). Only adapters and heads require
            gradients.

    Raises:
        InputError: if the model lacks a target (names the closest one), a target is not a linear
            map, a head is a target, shapes differ, or `gradient_checkpointing` is requested for a
            model without blocks.
    """
    clone = frozen_copy(model)
    scales = torch.as_tensor(scaling, dtype=torch.float64)
    for name, (lora_a, lora_b) in adapters.items():
        base = find_linear(model, name)
        _put(clone, name, StackedLoRALinear(base, lora_a, lora_b, scales, (frozen or {}).get(name)))
    for name, parameters in (heads or {}).items():
        module = find_linear(model, name, "head_modules")
        if not isinstance(module, nn.Linear) or name in adapters:
            raise expected("head_modules", name, "an nn.Linear that carries no adapter")
        _put(clone, name, StackedLinear(*parameters))
    if gradient_checkpointing:
        blocks = target_blocks(clone, list(adapters))
        if not blocks:
            wanted = "False: no list of blocks in the model holds its targets"
            raise expected("gradient_checkpointing", True, wanted)
        for block in blocks:
            _checkpoint(clone.get_submodule(block))
    return clone


def frozen_copy(model: ModelT, replaced: Mapping[str, Tensor] | None = None) -> ModelT:
    """Return the model in evaluation mode without gradients; `model` itself is not changed.

    Args:
        model: any module; the copy shares the memory of its parameters and buffers.
        replaced: parameter name to new tensor. If another module holds the same parameter (tied
            weights), that module keeps the old one, as it does next to an adapter.
    """
    # deepcopy treats the entries of its memo as already copied.
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()
    }
    shared.update({id(b): b for b in model.buffers()})
    clone = copy.deepcopy(model, shared).eval()
    config: Any = getattr(clone, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # used in generation only; blocks could not be recomputed
    for name, value in (replaced or {}).items():
        _put(clone, name, nn.Parameter(value.detach(), requires_grad=False))
    return clone


def merged_copy(model: ModelT, deltas: Mapping[str, Tensor], heads: Heads | None = None) -> ModelT:
    """Return a frozen copy with updates merged into its weights, and with the given heads.

    Args:
        model: any module; not changed.
        deltas: module name to dense update.
        heads: module name to weight and bias.

    Raises:
        InputError: as `add_deltas`.
    """
    replaced = add_deltas(model, deltas)
    for name, own in (heads or {}).items():
        replaced |= {f"{name}.{key}": x for key, x in zip(("weight", "bias"), own, strict=False)}
    return frozen_copy(model, replaced)


def stacked_modules(model: nn.Module) -> dict[str, StackedModule]:
    """Return the modules that hold a cohort's trained parameters, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, StackedModule)}


def find_linear(model: nn.Module, name: str, argument: str = "target_modules") -> nn.Module:
    """Return the linear map of the given full name, without a copy.

    Args:
        model: any module.
        name: full name.
        argument: the caller's name of the argument, for errors.

    Raises:
        InputError: if there is none; names the closest name, or the module's type. Also if the
            model holds the module twice: it would be adapted in one place and merged in both.
    """
    module = dict(model.named_modules()).get(name)
    if module is None:
        close = resolve_targets(model, [name])  # also refuses a name that is no suffix
        raise expected(argument, name, f"a full name; the closest is {close[0]!r}")
    if not is_linear(module):
        raise expected(argument, name, f"a linear map, not {type(module).__name__}")
    names = [n for n, other in model.named_modules(remove_duplicate=False) if other is module]
    if len(names) > 1:
        raise expected(argument, name, f"a module in one place, not {len(names)}: {names}")
    return module


def add_deltas(model: nn.Module, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of linear maps with an update merged into them.

    Args:
        model: the model with the maps.
        deltas: module name to dense update, (d_out, d_in).

    Returns:
        Parameter name to new weight.

    Raises:
        InputError: if a name is not a linear map, or a shape is not its own.
    """
    merged = {}
    for name, delta in deltas.items():
        module = find_linear(model, name)
        shape = linear_shape(module)
        if tuple(delta.shape) != shape:
            raise expected("deltas", tuple(delta.shape), f"{shape} for {name!r}")
        weight = module.get_parameter("weight")
        change = delta if isinstance(module, nn.Linear) else delta.mT
        merged[f"{name}.weight"] = weight + change.to(weight)
    return merged


def _put(model: nn.Module, name: str, value: nn.Module | nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, value)


def _checkpoint(block: nn.Module) -> None:
    forward = block.forward

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        # Nothing in it is random, so no generator must be restored for the second pass.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    block.forward = recomputed
