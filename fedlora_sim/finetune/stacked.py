"""LoRA of many clients stacked on one frozen model.

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
train whole; without the first axis the server's."""


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


class StackedModule(nn.Module):
    """What the modules of a cohort have in common: parameters (K, ...), one slice per client."""

    @property
    def num_clients(self) -> int:
        """Clients that still train."""
        return next(len(p) for p in self._parameters.values() if p is not None)

    def clients_first(self, x: Tensor) -> Tensor:
        """The input of every client by itself, (K, n, d_in).

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
        """Go on with the first clients only; the others' parameters stay where they are.

        The new parameters are views of the old ones' memory: whoever holds the old ones sees the
        updates of the first clients, and the last state of the others.
        """
        for name, old in list(self.named_parameters(recurse=False)):
            kept = nn.Parameter(old.detach()[:num_clients], requires_grad=old.requires_grad)
            setattr(self, name, kept)


class StackedLoRALinear(StackedModule):
    """A frozen linear map with the LoRA adapters of K clients.

    `y_k = x_k W^T + bias + scaling_k * (x_k lora_A_k^T) lora_B_k^T` for client k.

    Args:
        base: the linear map, `nn.Linear` or transformers' `Conv1D`; used as it is, and frozen here
            by detaching its parameters.
        lora_A: shape (K, r, d_in); copied.
        lora_B: shape (K, d_out, r); copied.
        scaling: shape (K,).
        frozen: what does not move.

    Raises:
        InputError: if the shapes do not fit each other or `base`.
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
        """Go on with the first clients only."""
        super().keep_first(num_clients)
        self.scaling = self.scaling[:num_clients]


class _Adapted(torch.autograd.Function):
    """`y_k = x_k W^T + bias + scaling_k * (x_k A_k^T) B_k^T`, differentiated by x, A and B.

    As autograd would, but with fewer passes over memory: the adapters' share is added in place,
    and every gradient comes out once, in the layout of its parameter.
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
        """Shapes: x (K, n, d_in), lora_A (K, r, d_in), lora_B (K, d_out, r), scaling (K, 1, 1)."""
        inner = torch.bmm(x, lora_A.mT).mul_(scaling)
        ctx.save_for_backward(x, weight, lora_A, lora_B, scaling, inner)
        return functional.linear(x, weight, bias).baddbmm_(inner, lora_B.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, lora_A and lora_B, where they are wanted."""
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
    """A linear map of which every client has its own: `y_k = x_k W_k^T + bias_k`.

    Args:
        weight: shape (K, d_out, d_in); copied.
        bias: shape (K, d_out), copied; None for a map without.
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
    """The weight of a linear map, (d_out, d_in); a view of a `Conv1D`'s, which is transposed."""
    weight = base.weight
    assert isinstance(weight, Tensor)  # of every linear map
    return weight if isinstance(base, nn.Linear) else weight.mT


def _check_adapter(base: nn.Module, lora_A: Tensor, lora_B: Tensor, scaling: Tensor) -> None:
    """Refuse factors that do not fit the linear map or each other."""
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


# A model with the adapters of a whole cohort in place of the linear maps that they adapt

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
    """Copy a model with its target modules replaced by those of a cohort.

    The copy shares the frozen parameters with `model`, which is not changed, and is in evaluation
    mode: dropout would give a client another mask in another stack.

    Args:
        model: any module; its targets are `nn.Linear` or transformers' `Conv1D`.
        adapters: for every target by its full name, `lora_A` (K, r, d_in) and `lora_B`
            (K, d_out, r); copied.
        scaling: LoRA scaling of every client, shape (K,).
        frozen: for targets of which something stays as it is, what.
        heads: for every map that clients train whole, weight (K, d_out, d_in) and, if it has one,
            bias (K, d_out).
        gradient_checkpointing: keep only the inputs of the model's blocks and compute the rest
            again in the backward pass: less memory for a third more time.

    Returns:
        The copy; its input is client-major, (K * b, ...). Only adapters and heads want gradients.

    Raises:
        InputError: on a target that the model lacks (with the closest name) or that is no linear
            map, on a head that is a target, on shapes that differ, and on
            `gradient_checkpointing` of a model without blocks.
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
    """The model in evaluation mode, wanting no gradients; `model` itself is not changed.

    Args:
        model: any module; the copy shares the memory of its parameters and buffers.
        replaced: parameter name -> what the copy has in its place. Where another module has the
            same parameter (tied weights), that one keeps it, as it does beside an adapter.
    """
    # deepcopy takes what its memo holds for copied already.
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()
    }
    shared.update({id(b): b for b in model.buffers()})
    clone = copy.deepcopy(model, shared).eval()
    config: Any = getattr(clone, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # of use in generation only; blocks could not be computed again
    for name, value in (replaced or {}).items():
        _put(clone, name, nn.Parameter(value.detach(), requires_grad=False))
    return clone


def merged_copy(model: ModelT, deltas: Mapping[str, Tensor], heads: Heads | None = None) -> ModelT:
    """A frozen copy with updates merged into its weights, and heads in place of its own.

    Args:
        model: any module; not changed.
        deltas: module name -> dW (d_out, d_in), scaling included.
        heads: module name -> weight (d_out, d_in) and, if any, bias (d_out,).

    Raises:
        InputError: as `add_deltas`.
    """
    replaced = add_deltas(model, deltas)
    for name, own in (heads or {}).items():
        replaced |= {f"{name}.{key}": x for key, x in zip(("weight", "bias"), own, strict=False)}
    return frozen_copy(model, replaced)


def stacked_modules(model: nn.Module) -> dict[str, StackedModule]:
    """The modules that hold what a cohort trains, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, StackedModule)}


def find_linear(model: nn.Module, name: str, argument: str = "target_modules") -> nn.Module:
    """The linear map of that full name, itself and not a copy.

    Args:
        model: any module.
        name: full name.
        argument: what errors call it.

    Raises:
        InputError: if there is none; the message has the closest name, or the module's type. Also
            of a module that the model holds twice: adapted in one place, merged in both.
    """
    module = dict(model.named_modules()).get(name)
    if module is None:
        close = resolve_targets(model, [name])  # refuses what is no end of a name either
        raise expected(argument, name, f"a full name; the closest is {close[0]!r}")
    if not is_linear(module):
        raise expected(argument, name, f"a linear map, not {type(module).__name__}")
    names = [n for n, other in model.named_modules(remove_duplicate=False) if other is module]
    if len(names) > 1:
        raise expected(argument, name, f"a module in one place, not {len(names)}: {names}")
    return module


def add_deltas(model: nn.Module, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of linear maps with an update merged into them.

    Args:
        model: has the maps.
        deltas: module name -> dW (d_out, d_in), scaling included.

    Returns:
        Parameter name -> weight as the module keeps it, a new tensor.

    Raises:
        InputError: on a name that is no linear map, or a shape that is not its own.
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
        # Nothing in it is random, so no generator has to be put back for the second pass.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    block.forward = recomputed
