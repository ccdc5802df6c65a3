"""A task small enough to train in milliseconds, and adapters of mixed ranks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from run_cases import TARGETS, TINY, make_tiny_task

from fedlora_sim.finetune import run
from fedlora_sim.finetune.stacked import Adapters, find_linear
from fedlora_sim.randomness import stream
from fedlora_sim.rules import get_rule
from fedlora_sim.runtime import one_thread
from fedlora_sim.tasks.digits import DigitsTask
from fedlora_sim.tasks.task import Task

MakeAdapters = Callable[..., Adapters]
MakeRun = Callable[..., run.FederatedRun]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Provide one thread: on a busy machine, threads that wait for each other cost minutes."""
    with one_thread():
        yield


@pytest.fixture(scope="session")
def tiny_task() -> DigitsTask:
    """Return a one-block float64 model, not pretrained, and 60 random images."""
    return make_tiny_task()


@pytest.fixture
def make_adapters(tiny_task: DigitsTask) -> MakeAdapters:
    """Return random adapters of the given ranks, zero-padded to the highest."""

    def make(ranks: list[int], seed: int = 0) -> Adapters:
        rng = stream(seed, "test adapters")
        alive = torch.arange(max(ranks)) < torch.tensor(ranks)[:, None]
        adapters = {}
        for name in TARGETS:
            d_out, d_in = find_linear(tiny_task.model, name).weight.shape
            lora_A = torch.as_tensor(rng.normal(0, 0.2, (len(ranks), max(ranks), d_in)))
            lora_B = torch.as_tensor(rng.normal(0, 0.2, (len(ranks), d_out, max(ranks))))
            adapters[name] = (lora_A * alive[:, :, None], lora_B * alive[:, None, :])
        return adapters

    return make


@pytest.fixture
def cohort_samples() -> list[np.ndarray]:
    """Return five clients of very different sizes: 1, 4, 7, 10 and 18 samples."""
    cuts = np.cumsum([1, 4, 7, 10])
    return np.split(stream(0, "test samples").permutation(40), cuts)


@pytest.fixture
def make_run(tiny_task: DigitsTask, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Return a function that makes runs of seven clients on the tiny task from changed fields."""
    monkeypatch.setattr(run, "load_task", lambda scenario: tiny_task)

    def make(
        rule: str = "raflora", seed: int = 5, task: Task | None = None, **changes: object
    ) -> run.FederatedRun:
        return run.FederatedRun(TINY.replace(**changes), get_rule(rule), seed, task)

    return make
