"""One optimizer for a whole stack: every client clipped and stepped as if it were alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from local_training_cases import local_training
from torch import nn

from fedlora_sim.errors import InputError
from fedlora_sim.finetune.batches import (
    client_rates,
    client_streams,
    highest_rate,
    plan_batches,
    plan_round,
)
from fedlora_sim.finetune.local import Stack, clip_per_client, train_on_plan
from fedlora_sim.finetune.slora import sparse_stage
from fedlora_sim.tolerances import relative

RANKS = [3, 1, 4, 2, 4]
RATES = [1e-3, 2e-2, 5e-3, 1e-2, 3e-3]
CONFIGS = {
    "sgd": local_training(
        "sgd", 0.02, momentum=0.9, weight_decay=0.1, local_epochs=2, batch_size=4
    ),
    "adam": local_training("adam", 0.02, weight_decay=0.1, local_epochs=2, batch_size=4),
    "adamw": local_training("adamw", 0.02, weight_decay=0.1, local_epochs=2, batch_size=4),
}


def gradients(clients: int, dtype: torch.dtype) -> list[nn.Parameter]:
    """Set three parameters per client with large, small, zero and random gradients."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([100.0, 1e-3, 0.0, *[1.0] * (clients - 3)])
    parameters = []
    for shape in ((4, 6), (5, 4), (3,)):
        parameter = nn.Parameter(torch.zeros(clients, *shape, dtype=dtype))
        noise = torch.randn(clients, *shape, generator=generator)
        parameter.grad = (noise * sizes.view(-1, *[1] * len(shape))).to(dtype)
        parameters.append(parameter)
    return parameters


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("norm", [0.5, 5.0, 1e3])
def test_clipping_is_pytorchs_client_by_client(dtype, norm):
    together, clients = gradients(6, dtype), 6
    wanted = [p.grad.clone() for p in together]
    for k in range(clients):
        alone = [nn.Parameter(p.detach()[k]) for p in together]
        for own, whole in zip(alone, wanted, strict=True):
            own.grad = whole[k].clone()
        nn.utils.clip_grad_norm_(alone, norm)
        for own, whole in zip(alone, wanted, strict=True):
            whole[k] = own.grad
    clip_per_client(together, norm)
    for parameter, gradient in zip(together, wanted, strict=True):
        gap = (parameter.grad - gradient).flatten(1).norm(dim=1)
        assert (gap <= relative("reduction", dtype) * gradient.flatten(1).norm(dim=1)).all()


def test_clipping_and_nan_of_one_client_change_no_bit_of_the_others():
    together = gradients(6, torch.float64)
    together[1].grad[4, 0, 0] = torch.nan
    before = [p.grad.clone() for p in together]
    clip_per_client(together, 1e3)
    for parameter, gradient in zip(together, before, strict=True):
        assert torch.equal(parameter.grad[[0, 1, 2, 3, 5]], gradient[[0, 1, 2, 3, 5]])
        assert parameter.grad[4].isnan().all()


@pytest.mark.parametrize("name", CONFIGS)
def test_separate_rates_equal_training_alone(tiny_task, make_adapters, cohort_samples, name):
    rates = torch.tensor(RATES, dtype=torch.float64)
    stack = Stack(make_adapters(RANKS), torch.ones(5), rates=rates)
    kinds = {"batch_size": 4, "local_epochs": 2}
    plan = plan_batches(cohort_samples, client_streams(0, 0, range(5)), **kinds)
    together = train_on_plan(tiny_task, stack, plan, CONFIGS[name]).adapters
    for k, rate in enumerate(RATES):
        only = np.array([k])
        alone = replace(stack.take(only), rates=None)
        config = replace(CONFIGS[name], learning_rate=rate)
        wanted = train_on_plan(tiny_task, alone, plan.take(only), config).adapters
        for module, pair in wanted.items():
            for actual, other in zip(together[module], pair, strict=True):
                gap = (actual[k] - other[0]).norm()
                assert gap <= relative("factorization") * other[0].norm()


def test_a_scenario_gives_every_client_its_rate(make_run):
    """In any cohort; the optimizer's own rate is the highest one."""
    rates = (1e-3, 4e-3, 2e-3, 1e-2, 3e-3, 5e-3, 6e-3)
    run = make_run(client_learning_rates=rates, cohort_size=3)
    assert highest_rate(run.scenario) == max(rates)
    found = client_rates(run.scenario, np.array([6, 0, 3]))
    assert found.tolist() == [6e-3, 1e-3, 1e-2]
    assert client_rates(run.scenario.replace(client_learning_rates=None), np.array([0])) is None


@pytest.mark.slow
@pytest.mark.parametrize("initializer", ["lora", "slora"])
def test_equal_separate_rates_equal_one_rate(make_run, initializer):
    one = make_run(learning_rate=4e-3, initializer=initializer)
    own = make_run(client_learning_rates=(4e-3,) * 7, initializer=initializer)
    first, second = one.run(), own.run()
    np.testing.assert_allclose(
        second.singular_values, first.singular_values, rtol=relative("training")
    )
    assert first.loss[-1] != first.loss[0]


def test_the_sparse_stage_knows_the_rates_too(make_run):
    """A client that hardly moves leaves the average at the others' share."""
    changes = {"initializer": "slora", "slora_rounds": 1, "ranks": "4x2", "optimizer": "sgd"}
    totals = []
    for rates in ((0.1, 1e-12), (0.1, 0.1)):
        run = make_run(client_learning_rates=rates, **changes)
        options = (run.scenario, run.task, run.federation, run.samples, run.seed)
        totals.append(sparse_stage(*options))
    for name, both in totals[1].items():
        assert 0 < totals[0][name].norm() < both.norm()


@pytest.mark.parametrize("rates", [(1e-3, 0.0), (1e-3, -1.0), (1e-3, float("nan")), (1e-3,)])
def test_bad_rates(tiny_task, make_adapters, cohort_samples, rates):
    plan = plan_batches(
        cohort_samples[:2], client_streams(0, 0, (0, 1)), batch_size=4, local_steps=1
    )
    stack = Stack(make_adapters([1, 2]), torch.ones(2), rates=torch.tensor(rates))
    with pytest.raises(InputError, match="learning_rates"):
        train_on_plan(tiny_task, stack, plan, CONFIGS["adam"])


def test_heads_are_of_as_many_clients(tiny_task, make_adapters, cohort_samples):
    config = local_training(batch_size=4, local_steps=1)
    plan = plan_round(config, cohort_samples[:1], client_streams(0, 0, (0,)))
    head = tiny_task.model.get_submodule("head")
    heads = {"head": tuple(p.detach().expand(3, *p.shape) for p in head.parameters())}
    stack = Stack(make_adapters([2]), torch.ones(1), heads)
    with pytest.raises(InputError, match=r"heads\['head'\]='3 clients': expected 1"):
        train_on_plan(tiny_task, stack, plan, config)
