"""A model with the adapters of a whole cohort in place of the linear maps that they adapt."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedlora_sim.errors import expected
from fedlora_sim.tasks.targets import is_linear, linear_shape, resolve_targets, target_blocks
from fedlora_sim.training.stacked import (
    Adapters,
    Frozen,
    Heads,
    StackedLinear,
    StackedLoRALinear,
    StackedModule,
)

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
        ValueError: on a target that the model lacks (with the closest name) or that is no linear
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
        ValueError: as `add_deltas`.
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
        ValueError: if there is none; the message has the closest name, or the module's type. Also
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
        ValueError: on a name that is no linear map, or a shape that is not its own.
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
