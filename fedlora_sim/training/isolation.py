"""Whether a model keeps its samples apart: what training all clients in one pass rests on.

Clients share a batch. Where a sample's output depends on another sample (statistics of the batch,
attention across it), or on a random number, a client trained beside others would not be the client
trained alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from fedlora_sim.errors import expected
from fedlora_sim.tasks.examples import Examples
from fedlora_sim.tasks.task import Task, logits_of
from fedlora_sim.tolerances import relative
from fedlora_sim.training.attach import frozen_copy

Outputs = dict[str, list[Tensor]]
"""Module name -> what every call of it returned; "" is the model. In order of the first return."""

BESIDE, CANDIDATES = 7, 64
"""Samples beside the first one, and how many are looked at for those that differ from it."""


def check_isolation(task: Task) -> None:
    """Refuse a model in which samples mix, or that is random in evaluation mode.

    A sample runs beside copies of itself, twice, before others and after them: its logits, and its
    part of what the target and head modules return, must stay the same up to rounding.

    Args:
        task: model and data; a task whose samples are all the same is not judged.

    Raises:
        InputError: naming the first module in which it shows.
    """
    first, others = _samples(task.train)
    if not others:
        return
    model, copies = frozen_copy(task.model), [first] * len(others)
    alone, again, before, after = (
        _outputs(model, task, x)
        for x in ([first, *copies], [first, *copies], [first, *others], [*others, first])
    )
    apart, parts = "a model whose samples come first and do not mix", 1 + len(others)
    for other, where, wanted in (
        (again, (0, 1), "a model that is the same every time in evaluation mode"),
        (before, (0, parts), apart),
        (after, (parts - 1, parts), apart),
    ):
        name = _changed(task, alone, other, where)
        if name is not None:
            kind = type(task.model.get_submodule(name)).__name__
            wanted = f"{wanted}: module {name!r} ({kind})"
            raise expected("model", type(task.model).__name__, wanted)


def _samples(examples: Examples) -> tuple[int, list[int]]:
    """The longest sample, which gives a batch its width whatever is beside it, and others."""
    first = examples.longest
    others = [
        other
        for other in range(min(len(examples), CANDIDATES))
        if not all(torch.equal(x[first], x[other]) for x in examples.inputs.values())
    ]
    return first, others[:BESIDE]


def _outputs(model: nn.Module, task: Task, samples: list[int]) -> Outputs:
    found = Outputs()

    def keep(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        found.setdefault(name, []).extend(list(_tensors(output))[:1])

    modules = [(name, module) for name, module in model.named_modules() if name]
    hooks = [module.register_forward_hook(partial(keep, name)) for name, module in modules]
    batch = task.train.take(torch.tensor(samples, device=task.device))
    with torch.inference_mode():
        found[""] = [logits_of(model, batch.inputs)]
    for hook in hooks:
        hook.remove()
    return found


def _tensors(output: object) -> Iterator[Tensor]:
    """The tensors of what a module returns, first to last, without single numbers."""
    if isinstance(output, Tensor):
        if output.ndim:
            yield output
    elif isinstance(output, Mapping | tuple | list):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)


def _changed(task: Task, alone: Outputs, other: Outputs, where: tuple[int, int]) -> str | None:
    """The module in which a part of the output changes first; None if none does.

    Args:
        task: model and modules.
        alone: outputs of a batch of copies.
        other: outputs of another batch of as many samples.
        where: the part of the batch that is compared, its number from 0 and the number of parts.
    """
    tolerance = relative("iteration", task.dtype)

    def same(name: str) -> bool:
        pairs = zip(alone[name], other.get(name, []), strict=False)
        return all(_same_part(x, y, where, tolerance) for x, y in pairs)

    judged = [name for name in (*task.target_modules, *task.head_modules, "") if name in alone]
    if all(map(same, judged)):
        return None
    # Inside, what is not one row per sample says nothing: routed tokens, sequences first.
    samples = len(alone[""][0])
    rows = [name for name, values in alone.items() if all(len(x) == samples for x in values)]
    return next(name for name in alone if name in {*rows, *judged} and not same(name))


def _same_part(x: Tensor, y: Tensor, where: tuple[int, int], tolerance: float) -> bool:
    part, parts = where
    if x.shape != y.shape or len(x) % parts:
        return False
    x, y = (whole.unflatten(0, (parts, -1))[part].cpu().double() for whole in (x, y))
    finite = y[torch.isfinite(y)]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return bool(torch.isclose(x, y, rtol=0.0, atol=tolerance * scale, equal_nan=True).all())
