"""Cache the output of the model's part before its first adapted block, once per sample.

If only the last blocks have adapters, the blocks before them compute the same output in every step
of every client: a constant of the sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedlora_sim.errors import expected
from fedlora_sim.tasks.targets import inside, target_blocks
from fedlora_sim.tasks.task import MASK, Examples, Task, logits_of
from fedlora_sim.tolerances import relative

TaskT = TypeVar("TaskT", bound=Task)

PREFIX = "prefix"
PROBES = 8
"""Number of samples, shortest and longest.

On which the resumed model is compared with the whole one.
"""


def cache_prefix(task: TaskT, batch_size: int = 64) -> TaskT:
    """Compute the hidden states before the first adapted block once, for all samples.

    Args:
        task: a task whose adapters and other trained modules are all in the last blocks.
        batch_size: samples per batch.

    Returns:
        A task whose inputs contain `prefix`, the hidden states (n, T, d) in one tensor, in addition
            to
        the original ones. Its model starts at the first adapted block, whose name is unchanged. The
        embeddings are still computed, because positions and masks depend on them; compared with a
        block they cost little.

    Raises:
        InputError: names cache_prefix, if there is no block before the first adapted one, if an
            adapted or trained module comes before it, or if the outputs differ from those of the
            whole model.
    """
    frozen = _frozen_blocks(task)
    train, test = task.train.trimmed(), task.test.trimmed()
    model = _resumed(task, frozen, train.take(torch.arange(1, device=task.device)))
    parts = [_with_prefix(task.model, frozen[-1], part, batch_size) for part in (train, test)]
    resumed = replace(task, model=model, train=parts[0], test=parts[1])
    _check_outputs(task, resumed)
    return resumed


class Passed(nn.Module):
    """Replaces a frozen block and returns the hidden states that it received.

    Args:
        block: the frozen block; its settings, which some models read, remain available.
        tuple_size: the block returns a tuple of this length, hidden states first; 0 for a tensor.
    """

    def __init__(self, block: nn.Module, tuple_size: int) -> None:
        super().__init__()
        self.states: Tensor | None = None
        self.tuple_size = tuple_size
        settings = {name: x for name, x in vars(block).items() if not name.startswith("_")}
        vars(self).update({name: x for name, x in settings.items() if name not in vars(self)})

    def forward(self, *_: object, **__: object) -> Any:
        """Return the hidden states of this batch, in the form of the block's output."""
        # Dropped at once: a batch must not outlive its forward pass.
        states, self.states = self.states, None
        return (states, *[None] * (self.tuple_size - 1)) if self.tuple_size else states


@dataclass(frozen=True)
class HandOver:
    """Forward pre-hook of the model: moves `prefix` from the inputs to the replaced blocks."""

    blocks: tuple[str, ...]

    def __call__(
        self, model: nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[object, ...], dict[str, Any]]:
        """Pass the hidden states on; the other inputs go to the model."""
        for name in self.blocks:
            model.get_submodule(name).states = kwargs[PREFIX]
        return args, {name: value for name, value in kwargs.items() if name != PREFIX}


class _Reached(BaseException):
    """Ends a forward pass whose rest is not needed."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _frozen_blocks(task: Task) -> tuple[str, ...]:
    """Return the names of the blocks before the first one with an adapted module."""
    adapted = (*task.target_modules, *task.head_modules)
    blocks = target_blocks(task.model, task.target_modules)
    frozen = []
    for block in blocks:
        if any(inside(name, block) for name in adapted):
            break
        frozen.append(block)
    if not frozen:
        wanted = f"a frozen block before the first of {task.target_modules}: set adapted_layers"
        raise expected("cache_prefix", True, wanted)
    return tuple(frozen)


def _resumed(task: Task, frozen: Sequence[str], sample: Examples) -> nn.Module:
    """Return model without its frozen blocks; everything else is shared with the task's model."""
    runs = _runs(task.model, (*frozen, *task.target_modules, *task.head_modules), sample)
    order, outputs = [name for name, _ in runs], dict(runs)
    if any(order.count(block) != 1 for block in frozen):
        raise expected("cache_prefix", True, f"a model that runs each of {frozen} once")
    early = [name for name in order[: order.index(frozen[-1])] if name not in frozen]
    if early:
        raise expected("cache_prefix", True, f"nothing adapted before {frozen[-1]}, unlike {early}")
    model = task.model
    # deepcopy treats the entries of its memo as already copied.
    copied: dict[int, Any] = {id(x): x for x in (*model.parameters(), *model.buffers())}
    for name in frozen:
        block, output = model.get_submodule(name), outputs[name]
        copied[id(block)] = Passed(block, len(output) if isinstance(output, tuple) else 0)
    resumed = copy.deepcopy(model, copied)
    resumed.register_forward_pre_hook(HandOver(tuple(frozen)), with_kwargs=True)
    return resumed


@torch.no_grad()
def _runs(model: nn.Module, names: Sequence[str], sample: Examples) -> list[tuple[str, Any]]:
    """Return all calls of the named modules on a sample, in order, with their outputs."""
    runs: list[tuple[str, Any]] = []

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: object, output: Any) -> None:
            runs.append((name, output))

        return hook

    with ExitStack() as hooks:
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(keep(name))
            hooks.callback(handle.remove)
        model(**sample.inputs)
    return runs


@torch.no_grad()
def _with_prefix(model: nn.Module, block: str, part: Examples, batch_size: int) -> Examples:
    """Return samples with the output of a block, (n, T, d); zero where a sample is padding."""
    prefix: Tensor | None = None
    # From the longest on: the first batch has the tensor's length, the others their own.
    for index in _by_length(part).flip(0).split(batch_size):
        states = _states(model, block, part.take(index))
        if prefix is None:
            prefix = states.new_zeros(len(part), *states.shape[1:])
        prefix[index, : states.shape[1]] = states
    if prefix is None:
        raise expected("cache_prefix", True, "a data set with samples in both its parts")
    return replace(part, inputs={**part.inputs, PREFIX: prefix})


def _states(model: nn.Module, block: str, batch: Examples) -> Tensor:
    """Return the hidden states after a block, without running the model further."""

    def stop(_: nn.Module, args: object, output: Any) -> None:
        raise _Reached(output[0] if isinstance(output, tuple) else output)

    handle = model.get_submodule(block).register_forward_hook(stop)
    try:
        model(**batch.inputs)
    except _Reached as reached:
        return reached.states
    finally:
        handle.remove()
    raise AssertionError(f"{block} did not run")


def _by_length(part: Examples) -> Tensor:
    """Return the indices of all samples, (n,), the shortest first; unchanged if none is padded."""
    if MASK not in part.inputs:
        return torch.arange(len(part), device=part.device)
    return part.inputs[MASK].sum(1).argsort(stable=True)


@torch.no_grad()
def _check_outputs(whole: Task, resumed: Task) -> None:
    """Refuse a model whose outputs differ on the shortest or the longest samples."""
    order = _by_length(whole.train)
    for index in (order[:PROBES], order[-PROBES:]):
        found = [_real_logits(task.model, task.train.take(index)) for task in (whole, resumed)]
        error = float((found[1] - found[0]).norm() / found[0].norm())
        if not error <= relative("factorization", whole.dtype):
            wanted = f"a model that can be resumed; this one's outputs differ by {error:.1g}"
            raise expected("cache_prefix", True, f"{wanted}, relative")


def _real_logits(model: nn.Module, batch: Examples) -> Tensor:
    """Return the model's output without the positions of padding."""
    logits = logits_of(model, batch.inputs)
    if logits.ndim < 3 or MASK not in batch.inputs:
        return logits
    return logits * batch.inputs[MASK][:, :, None]
