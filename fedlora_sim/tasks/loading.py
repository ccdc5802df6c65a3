"""Load the task of a scenario, once per process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch

from fedlora_sim.runtime import resolve_device, torch_dtype
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks.prefix import cache_prefix
from fedlora_sim.tasks.task import Task, TaskOptions, task_content

Loader = Callable[[TaskOptions], Task]


def load_task(scenario: Scenario) -> Task:
    """Return the scenario's task, on its device.

    Raises:
        InputError: if a field is invalid; names the field, its value and what was expected.
    """
    return _load(TaskOptions.of(scenario), *_place(scenario), scenario.cache_prefix)


def place_task(task: Task, scenario: Scenario) -> Task:
    """Return a custom task on the scenario's device and in its dtype.

    Raises:
        InputError: if a field is invalid; names the field, its value and what was expected.
    """
    return task.to(*_place(scenario))


def _place(scenario: Scenario) -> tuple[torch.device, torch.dtype]:
    dtype = torch_dtype(scenario.dtype)
    return resolve_device(scenario.device, dtype, "training"), dtype


@lru_cache(maxsize=4)
def _load(options: TaskOptions, device: torch.device, dtype: torch.dtype, cached: bool) -> Task:
    task = _loader(options.task)(options)
    # As loaded: the output of a prefix differs in its last bits between machines.
    task = replace(task, content=task_content(task)).to(device, dtype)
    return cache_prefix(task) if cached else task


def _loader(name: str) -> Loader:
    # Each task imports only its own libraries: transformers and datasets take seconds.
    if name == "digits":
        from fedlora_sim.tasks.digits import load_adjusted_digits as loader
    elif name == "text":
        from fedlora_sim.tasks.text import load_text_task as loader
    elif name == "vision":
        from fedlora_sim.tasks.vision import load_vision_task as loader
    elif name == "causal":
        from fedlora_sim.tasks.causal import load_causal_task as loader
    else:
        from fedlora_sim.tasks.causal import load_arithmetic_task as loader
    return loader
