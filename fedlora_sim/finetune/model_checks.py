"""Checks of a model: samples do not see each other, and a stack trains as one client does.

Clients share a batch. Where a sample's output depends on another sample (statistics of the batch,
attention across it), or on a random number, a client trained beside others would not be the client
trained alone.
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


# Whether what clients train is what the run judges: adapters beside each other, and merged.
#
# A cohort trains with its adapters in modules of their own; the global model is judged with the
# update merged into the weights. Both are the same where a target is a plain linear map that the
# model calls on its samples. They are not where its weight is read without a call, where it has a
# forward or hooks of its own, where what it is applied to is not one row per sample, or where a
# sample's output depends on how far it is padded.

CLIENTS, EACH = 3, 2
"""Clients of the trial, and samples of each."""
RANK, SHARE = 2, 0.3
"""Rank of their adapters, and norm of an update over that of the weight."""

Trial = tuple[Adapters, Heads]


def check_equivalence(task: Task) -> None:
    """Refuse a model in which adapters beside each other are not their merged weights.

    Three clients with random adapters and heads run beside each other, as they train, and each
    alone with its update merged, as it is judged: every sample's loss must be the same up to
    rounding.

    Args:
        task: model and data.

    Raises:
        InputError: naming the model, and the first target or head alone in which it shows.
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
    """Samples of every client; the longest is the first one's, the shortest the second's."""
    mask = examples.inputs.get(MASK)
    shortest = len(examples) - 1 if mask is None else int(mask.sum(1).argmin())
    rest = torch.arange(CLIENTS * EACH - 2) % len(examples)
    index = torch.tensor([examples.longest, *rest[:1], shortest, *rest[1:]])
    return list(index.to(examples.device).split(EACH))


def _check_padding(task: Task, samples: Sequence[Tensor]) -> None:
    """Refuse a model that makes something else of a sample beside a longer one."""
    model = frozen_copy(task.model)
    with torch.no_grad():
        alone = _losses(task, model, samples[1])
        beside = _losses(task, model, torch.cat([samples[1], samples[0]]))[: len(alone)]
    if not _close(beside, alone, task.dtype):
        wanted = f"a model that leaves out what {MASK} calls padding"
        raise expected("model", type(task.model).__name__, wanted)


def _random_trial(task: Task) -> Trial:
    """Adapters and heads of every client, the same every time."""
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
    """Whether a trial has the same losses beside each other and merged, client by client."""
    adapters, heads = trial
    try:
        model = attach(task.model, adapters, [1.0] * CLIENTS, heads=heads)
        beside = _losses(task, model, torch.cat(list(samples)))  # as in training, with gradients
    except InputError:  # a first axis that the clients cannot share
        return False
    for k, own in enumerate(beside.detach().split(EACH)):
        deltas = {name: b[k] @ a[k] for name, (a, b) in adapters.items()}
        own_heads = {name: tuple(x[k] for x in parts) for name, parts in heads.items()}
        with torch.inference_mode():
            merged = _losses(task, merged_copy(task.model, deltas, own_heads), samples[k])
        if not _close(own, merged, task.dtype):
            return False
    return True


def _losses(task: Task, model: torch.nn.Module, index: Tensor) -> Tensor:
    """Summed loss of every sample."""
    batch = task.train.take(index)
    return task.objective.losses(logits_of(model, batch.inputs), batch.labels)[0]


def _close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    finite = wanted[torch.isfinite(wanted)]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    bound = relative("iteration", dtype) * max(scale, 1.0)
    return bool(torch.isclose(found, wanted, rtol=0.0, atol=bound, equal_nan=True).all())
