"""Number of clients per stack: by option, by a memory budget, by checkpointing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from local_training_cases import local_training
from network_cases import WIDTH, random_network
from torch.profiler import ProfilerActivity, profile

from fedlora_sim.errors import InputError
from fedlora_sim.finetune import local
from fedlora_sim.finetune.batches import client_streams, plan_batches
from fedlora_sim.finetune.local import (
    GIB,
    Stack,
    activation_bytes,
    client_losses,
    clients_at_a_time,
    train_on_plan,
)
from fedlora_sim.finetune.stacked import attach
from fedlora_sim.tasks.digits import TinyTransformer
from fedlora_sim.tolerances import relative

RANKS = [3, 1, 4, 2, 4]
CONFIG = local_training(local_epochs=1, batch_size=4)
KIB = 1024


@pytest.fixture
def deep_task(tiny_task):
    """Return a task with four blocks in place of one."""
    generator = torch.Generator().manual_seed(0)
    model = TinyTransformer(generator, d_model=16, num_layers=4, num_heads=2).double()
    return replace(tiny_task, model=model.requires_grad_(False))


@pytest.fixture
def cohort(make_adapters, cohort_samples):
    """Return the start of five clients and their batches."""
    plan = plan_batches(
        cohort_samples, client_streams(0, 0, range(5)), batch_size=4, local_epochs=1
    )
    return Stack(make_adapters(RANKS), torch.ones(5)), plan


@pytest.fixture
def sizes(monkeypatch) -> list[int]:
    """Return clients of every stack that is trained from now on."""
    found, original = [], local.train_stack

    def train_stack(task, stack, plan, config):
        found.append(len(plan.num_steps))
        return original(task, stack, plan, config)

    monkeypatch.setattr(local, "train_stack", train_stack)
    return found


@pytest.mark.parametrize(
    ("size", "stacks"), [(None, [5]), (9, [5]), (5, [5]), (2, [2, 2, 1]), (1, [1] * 5)]
)
def test_a_stack_is_no_larger_than_allowed(tiny_task, cohort, sizes, size, stacks):
    train_on_plan(tiny_task, *cohort, replace(CONFIG, stack_size=size))
    assert sizes == stacks


def test_a_tiny_budget_trains_one_by_one_to_the_same_end(tiny_task, cohort, sizes):
    wanted = train_on_plan(tiny_task, *cohort, CONFIG)
    found = train_on_plan(tiny_task, *cohort, replace(CONFIG, memory_budget=1e-9))
    assert sizes == [5, 1, 1, 1, 1, 1]
    for name, pair in wanted.adapters.items():
        for actual, other in zip(found.adapters[name], pair, strict=True):
            assert (actual - other).norm() <= relative("factorization") * other.norm()
    assert (found.losses - wanted.losses).norm() <= relative("factorization") * wanted.losses.norm()


def test_the_budget_holds_whole_clients(tiny_task, cohort):
    stack, plan = cohort
    each = activation_bytes(tiny_task, stack, plan, CONFIG)
    for factor, limit, clients in ((0.5, None, 1), (2.5, None, 2), (2.5, 1, 1), (99, None, 5)):
        config = replace(CONFIG, memory_budget=factor * each / GIB, stack_size=limit)
        assert clients_at_a_time(tiny_task, stack, plan, config, 5) == clients


def test_the_budget_is_measured_at_the_widest_batch(
    tiny_task, cohort_samples, make_adapters, sizes
):
    """All clients take the same number of steps; the first one has a single sample."""
    stack, streams = Stack(make_adapters(RANKS), torch.ones(5)), client_streams(0, 0, range(5))
    plan = plan_batches(cohort_samples, streams, batch_size=4, local_steps=2)
    narrow, wide = (
        activation_bytes(tiny_task, stack.take(one), plan.take(one), CONFIG)
        for one in (np.array([0]), np.array([1]))
    )
    assert 3 * narrow < wide
    train_on_plan(tiny_task, stack, plan, replace(CONFIG, memory_budget=2.5 * wide / GIB))
    assert sizes == [2, 2, 1]


def test_a_longer_batch_and_more_clients_take_more(tiny_task, cohort_samples, make_adapters):
    stack = Stack(make_adapters([4]), torch.ones(1))
    kept = {}
    for width in (1, 2, 4):
        plan = plan_batches(
            cohort_samples[4:], client_streams(0, 0, [0]), batch_size=width, local_steps=2
        )
        kept[width] = activation_bytes(tiny_task, stack, plan, CONFIG)
    assert kept[1] < kept[2] < kept[4] < 4 * kept[1]


def allocated(task, stack, plan, *, checkpointing: bool) -> int:
    """Return bytes that a forward pass has allocated and not freed while its loss lives."""
    index, real = torch.from_numpy(plan.index[0]), torch.from_numpy(plan.real[0])
    model = stack.on(task.model, gradient_checkpointing=checkpointing)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = client_losses(task, model, index, real)
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


def test_the_estimate_is_what_the_profiler_sees(deep_task, cohort):
    plain = allocated(deep_task, *cohort, checkpointing=False)
    # One of four blocks at a time is recomputed.
    again = allocated(deep_task, *cohort, checkpointing=True) + plain / 4
    for checkpointing, wanted in ((False, plain), (True, again)):
        config = replace(CONFIG, gradient_checkpointing=checkpointing)
        found = activation_bytes(deep_task, *cohort, config)
        assert abs(found - wanted) < KIB  # the losses themselves, the batch's indices


def test_checkpointing_gives_the_same_gradients_and_keeps_fewer_bytes(deep_task, cohort):
    stack, plan = cohort
    kept, gradients = [], []
    for checkpointing in (False, True):
        config = replace(CONFIG, gradient_checkpointing=checkpointing)
        kept.append(activation_bytes(deep_task, stack, plan, config))
        model = stack.on(deep_task.model, gradient_checkpointing=checkpointing)
        index, real = torch.from_numpy(plan.index[0]), torch.from_numpy(plan.real[0])
        client_losses(deep_task, model, index, real).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert kept[1] < kept[0] / 2
    assert all(map(torch.equal, *gradients))


def test_checkpointing_without_blocks_is_refused():
    pair = torch.zeros(1, 2, WIDTH).double(), torch.zeros(1, WIDTH, 2).double()
    with pytest.raises(InputError, match="gradient_checkpointing=True"):
        attach(random_network(), {"first": pair}, [1.0], gradient_checkpointing=True)
