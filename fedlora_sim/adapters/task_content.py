"""Adapters of a task's model as the content of PEFT folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedlora_sim.adapters.config import written_config
from fedlora_sim.adapters.padding import resized
from fedlora_sim.adapters.reading import PREFIX
from fedlora_sim.adapters.writing import AdapterContent
from fedlora_sim.errors import expected
from fedlora_sim.finetune.stacked import Heads, find_linear
from fedlora_sim.lora import LoRAFactors, from_svd
from fedlora_sim.lowrank import sign_fixed_svd
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks.objectives import Classification
from fedlora_sim.tasks.targets import inside
from fedlora_sim.tasks.task import Task

TASK_TYPES = {"text": "SEQ_CLS", "causal": "CAUSAL_LM", "arithmetic": "CAUSAL_LM"}
"""What PEFT calls the tasks for which it wraps the model in a class of its own."""


def task_options(task: Task, scenario: Scenario, *, is_own: bool) -> dict[str, Any]:
    """What a configuration says besides ranks and scalings.

    Args:
        task: model and modules.
        scenario: names the model.
        is_own: whether the task was given, and is not the scenario's.

    Raises:
        InputError: if LoRA is on what PEFT would save whole.
    """
    linear = [find_linear(task.model, name) for name in task.target_modules]
    return {
        "peft_type": "LORA",
        "task_type": None if is_own else TASK_TYPES.get(scenario.task),
        "base_model_name_or_path": None if is_own else scenario.model or scenario.task,
        "target_modules": list(task.target_modules),
        "modules_to_save": list(_saved_whole(task)) or None,
        "fan_in_fan_out": any(not isinstance(module, nn.Linear) for module in linear),
        "bias": "none",
        "lora_dropout": 0.0,
    }


def adapter_content(
    options: Mapping[str, Any],
    layers: Mapping[str, LoRAFactors],
    whole: Mapping[str, Tensor],
    *,
    use_rslora: bool,
) -> AdapterContent:
    """An adapter folder.

    Args:
        options: see `task_options`.
        layers: module name to its update.
        whole: tensors besides, see `whole_modules`.
        use_rslora: the convention to write the scalings in.
    """
    wanted = {name: (f.rank, f.scaling) for name, f in layers.items()}
    config, sizes = written_config(options, wanted, use_rslora, names=wanted)
    tensors = dict(whole)
    for name, update in layers.items():
        f = resized(update, *sizes[name], frozen_a=False)
        tensors |= {f"{name}.lora_A.weight": f.lora_A, f"{name}.lora_B.weight": f.lora_B}
    stored = {f"{PREFIX}{key}": x.cpu() for key, x in tensors.items()}
    return AdapterContent(config, stored)


def whole_modules(task: Task, heads: Heads) -> dict[str, Tensor]:
    """Tensors of the modules that go into a folder whole, by name.

    Args:
        task: model and modules.
        heads: the trained ones: name to weight and bias, if any.
    """
    tensors: dict[str, Tensor] = {}
    for name in _saved_whole(task):
        own = task.model.get_submodule(name).state_dict()
        tensors |= {f"{name}.{key}": x for key, x in own.items()}
    for name, trained in heads.items():
        pairs = zip(("weight", "bias"), trained, strict=False)
        tensors |= {f"{name}.{key}": x for key, x in pairs}
    return tensors


def exact_factors(dense: Tensor) -> LoRAFactors:
    """A dense update, (d_out, d_in), as factors of the rank that it has, at least 1."""
    u, s, vh = sign_fixed_svd(dense)
    rounding = torch.finfo(s.dtype).eps * max(dense.shape) * s[0]
    rank = max(1, int((s > rounding).sum()))
    return from_svd(u[:, :rank], s[:rank], vh[:rank])


def _saved_whole(task: Task) -> tuple[str, ...]:
    """Names of the modules that go into a folder whole: trained ones, and transformers' classifier.

    PEFT saves a classifier even when it is frozen. So must we: one that the checkpoint lacked was
    drawn when the task was loaded, and nobody else has it.
    """
    trunk = getattr(task.model, "base_model_prefix", "")
    if not trunk or not isinstance(task.objective, Classification):
        return task.head_modules
    children = task.model.named_children()
    outside = [n for n, m in children if n != trunk and next(m.parameters(), None) is not None]
    for target in task.target_modules:
        if any(inside(target, name) for name in outside):
            raise expected("target_modules", target, f"none in {outside}, which PEFT saves whole")
    within = [h for h in task.head_modules if not any(inside(h, name) for name in outside)]
    return (*outside, *within)
