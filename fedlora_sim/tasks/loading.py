"""The task of a scenario, loaded once by a process."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from fedlora_sim.devices import DTYPES, resolve_device
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks.options import TaskOptions
from fedlora_sim.tasks.prefix import cache_prefix
from fedlora_sim.tasks.task import Task

Loader = Callable[[TaskOptions], Task]


def task_options(scenario: Scenario) -> TaskOptions:
    """What a scenario says of its task."""
    return TaskOptions(
        task=scenario.task,
        seed=scenario.task_seed,
        model=scenario.model,
        data=scenario.data,
        test_data=scenario.test_data,
        max_length=scenario.max_length,
        target_modules=scenario.target_modules,
        adapted_layers=scenario.adapted_layers,
        train_head=scenario.train_head,
        max_train=scenario.max_train,
        max_test=scenario.max_test,
        dtype=str(scenario.dtype),
    )


def load_task(scenario: Scenario) -> Task:
    """The scenario's task, on its device.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """
    dtype = DTYPES[str(scenario.dtype)]
    device = resolve_device(scenario.device, dtype)
    return _load(task_options(scenario), device, dtype, scenario.cache_prefix)


@lru_cache(maxsize=4)
def _load(options: TaskOptions, device: torch.device, dtype: torch.dtype, cached: bool) -> Task:
    task = _loader(options.task)(options).to(device, dtype)
    return cache_prefix(task) if cached else task


def _loader(name: str) -> Loader:
    # Each loads only its own libraries: transformers and datasets take seconds to import.
    if name == "digits":
        from fedlora_sim.tasks.digits import load_adjusted_digits as loader
    elif name == "text":
        from fedlora_sim.tasks.text import load_text_task as loader
    elif name == "vision":
        from fedlora_sim.tasks.vision import load_vision_task as loader
    elif name == "causal":
        from fedlora_sim.tasks.causal import load_causal_task as loader
    else:
        from fedlora_sim.tasks.arithmetic import load_arithmetic_task as loader
    return loader
