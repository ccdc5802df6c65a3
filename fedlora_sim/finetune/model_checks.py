"""Checks of a model: samples are independent, and a stack trains as single clients do.

Clients share a batch. If the output of a sample depended on another sample (batch statistics,
attention across samples) or on a random number, training a client in a stack would differ from
training it alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fedlora_sim.errors import InputError, expected
from fedlora_sim.finetune.stacked import (
    Adapters,
    Heads,
    attach,
    find_linear,
    frozen_copy,
    merged_copy,
    weight_of,
)
from fedlora_sim.tasks.task import MASK, Examples, Task, logits_of
from fedlora_sim.tolerances import relative

Outputs = dict[str, list[Tensor]]
"""Module name -> outputs of all its calls; "" is the model. In order of the first return."""

OTHERS, CANDIDATES = 7, 64
"""Number of samples in the batch with the first one, and of candidates that differ from it."""


def check_isolation(task: Task) -> None:
    """Refuse a model in which samples interact, or that is random in evaluation mode.

    A sample is run among copies of itself, twice, and before and after other samples. Its logits,
    and its part of the outputs of target and head modules, must be equal up to rounding.

    Args:
        task: model and data; a task with identical samples is not checked.

    Raises:
        InputError: names the first module in which a difference occurs.
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
    """Return the longest sample, which sets the width of every batch with it, and others."""
    first = examples.longest
    others = [
        other
        for other in range(min(len(examples), CANDIDATES))
        if not all(torch.equal(x[first], x[other]) for x in examples.inputs.values())
    ]
    return first, others[:OTHERS]


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
    """Yield the tensors in a module's output in order, without scalars."""
    if isinstance(output, Tensor):
        if output.ndim:
            yield output
    elif isinstance(output, Mapping | tuple | list):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)


def _changed(task: Task, alone: Outputs, other: Outputs, where: tuple[int, int]) -> str | None:
    """Return the first module in which a part of the output changes, or None.

    Args:
        task: model and modules.
        alone: outputs of a batch of copies.
        other: outputs of another batch of the same size.
        where: the compared part of the batch: its number from 0 and the number of parts.
    """
    tolerance = relative("iteration", task.dtype)

    def same(name: str) -> bool:
        pairs = zip(alone[name], other.get(name, []), strict=False)
        return all(_same_part(x, y, where, tolerance) for x, y in pairs)

    judged = [name for name in (*task.target_modules, *task.head_modules, "") if name in alone]
    if all(map(same, judged)):
        return None
    # Inner outputs that are not one row per sample are not comparable: routed tokens, sequences
    # first.
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


# Equivalence of training and evaluation: stacked adapters and merged weights.
#
# A cohort trains with its adapters in separate modules; the global model is evaluated with the
# update merged into the weights. Both agree if a target is a plain linear map that the model calls
# on its samples. They differ if its weight is read without a call, if it has its own forward or
# hooks, if its input is not one row per sample, or if the output of a sample depends on its
# padding.

CLIENTS, EACH = 3, 2
"""Number of clients in the trial, and of samples per client."""
RANK, SHARE = 2, 0.3
"""Rank of their adapters, and norm of an update relative to that of the weight."""

Trial = tuple[Adapters, Heads]


def check_equivalence(task: Task) -> None:
    """Refuse a model in which stacked adapters differ from merged weights.

    Three clients with random adapters and heads run in one stack, as in training, and each alone
    with its update merged, as in evaluation. Every sample's loss must be equal up to rounding.

    Args:
        task: model and data.

    Raises:
        InputError: names the model, and the first target or head in which the difference occurs.
    """
    samples = _some_samples(task.train)
    _check_padding(task, samples)
    trial = _random_trial(task)
    if _same(task, samples, trial):
        return
    adapters, heads = trial
    alone: list[tuple[str, Trial]] = [(n, ({n: own}, {})) for n, own in adapters.items()]
    alone += [(n, ({}, {n: own})) for n, own in heads.items()]
    name = next((n for n, one in alone if not _same(task, samples, one)), "")
    kind = type(task.model.get_submodule(name)).__name__
    wanted = "a model that calls its targets as plain linear maps, one row or more per sample"
    raise expected("model", type(task.model).__name__, f"{wanted}: not so {name!r} ({kind})")


def _some_samples(examples: Examples) -> list[Tensor]:
    """Return samples of each client; the first client has the longest, the second the shortest."""
    mask = examples.inputs.get(MASK)
    shortest = len(examples) - 1 if mask is None else int(mask.sum(1).argmin())
    rest = torch.arange(CLIENTS * EACH - 2) % len(examples)
    index = torch.tensor([examples.longest, *rest[:1], shortest, *rest[1:]])
    return list(index.to(examples.device).split(EACH))


def _check_padding(task: Task, samples: Sequence[Tensor]) -> None:
    """Refuse a model whose output of a sample changes next to a longer one."""
    model = frozen_copy(task.model)
    with torch.no_grad():
        alone = _losses(task, model, samples[1])
        padded = _losses(task, model, torch.cat([samples[1], samples[0]]))[: len(alone)]
    if not _close(padded, alone, task.dtype):
        wanted = f"a model that leaves out what {MASK} calls padding"
        raise expected("model", type(task.model).__name__, wanted)


def _random_trial(task: Task) -> Trial:
    """Return adapters and heads of each client, equal in every call."""
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(like)

    adapters: Adapters = {}
    for name in task.target_modules:
        weight = weight_of(find_linear(task.model, name)).detach()
        r = min(RANK, *weight.shape)
        lora_a, lora_b = (
            draw(weight, CLIENTS, r, weight.shape[1]),
            draw(weight, CLIENTS, len(weight), r),
        )
        norms = torch.linalg.matrix_norm(lora_b @ lora_a).view(-1, 1, 1)
        adapters[name] = lora_a, lora_b * (SHARE * (weight.norm() or 1.0) / norms)
    heads: Heads = {
        name: tuple(
            p.detach() * (1 + SHARE * draw(p, CLIENTS, *p.shape))
            for p in find_linear(task.model, name, "head_modules").parameters()
        )
        for name in task.head_modules
    }
    return adapters, heads


def _same(task: Task, samples: Sequence[Tensor], trial: Trial) -> bool:
    """Return True if stacked and merged evaluation give each client the same losses."""
    adapters, heads = trial
    try:
        model = attach(task.model, adapters, [1.0] * CLIENTS, heads=heads)
        together = _losses(task, model, torch.cat(list(samples)))  # with gradients, as in training
    except InputError:  # a first axis that clients cannot share
        return False
    for k, own in enumerate(together.detach().split(EACH)):
        deltas = {name: b[k] @ a[k] for name, (a, b) in adapters.items()}
        own_heads = {name: tuple(x[k] for x in parts) for name, parts in heads.items()}
        with torch.inference_mode():
            merged = _losses(task, merged_copy(task.model, deltas, own_heads), samples[k])
        if not _close(own, merged, task.dtype):
            return False
    return True


def _losses(task: Task, model: torch.nn.Module, index: Tensor) -> Tensor:
    """Return the summed loss of each sample."""
    batch = task.train.take(index)
    return task.objective.losses(logits_of(model, batch.inputs), batch.labels)[0]


def _close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    finite = wanted[torch.isfinite(wanted)]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    bound = relative("iteration", dtype) * max(scale, 1.0)
    return bool(torch.isclose(found, wanted, rtol=0.0, atol=bound, equal_nan=True).all())
