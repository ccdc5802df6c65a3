"""Heads that clients train in full: one per client, averaged by the server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from local_training_cases import local_training
from network_cases import network_task, random_network
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from fedlora_sim.errors import InputError
from fedlora_sim.finetune.batches import client_streams, plan_batches
from fedlora_sim.finetune.exchange import averaged_heads, initial_heads
from fedlora_sim.finetune.local import Stack, train_on_plan
from fedlora_sim.finetune.run import evaluate
from fedlora_sim.finetune.stacked import StackedLinear, attach
from fedlora_sim.tolerances import relative

CONFIG = local_training("adamw", 0.02, weight_decay=0.1, local_steps=4, batch_size=4)


def start_of(task, clients: int = 3) -> Stack:
    """Return adapters of rank 2 and the model's own head, for every client."""
    generator = torch.Generator().manual_seed(0)
    lora_a = torch.randn(clients, 2, 6, generator=generator, dtype=torch.float64)
    adapters = {"first": (lora_a, torch.zeros(clients, 6, 2, dtype=torch.float64))}
    heads = {
        name: tuple(x.expand(clients, *x.shape) for x in own)
        for name, own in initial_heads(task).items()
    }
    return Stack(adapters, torch.ones(clients), heads)


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_trains_as_in_a_plain_loop(bias):
    task = network_task(random_network(bias=bias), heads=("last",))
    stack, samples = start_of(task), np.split(np.arange(30), 3)
    plan = plan_batches(samples, client_streams(0, 0, range(3)), batch_size=4, local_steps=4)
    trained = train_on_plan(task, stack, plan, CONFIG)
    assert len(trained.heads["last"]) == 1 + bias
    for k in range(3):
        lora_a, lora_b = (x[k].clone().requires_grad_() for x in stack.adapters["first"])
        head = [x[k].clone().requires_grad_() for x in stack.heads["last"]]
        descent = torch.optim.AdamW([lora_a, lora_b, *head], lr=0.02, weight_decay=0.1)
        for step in range(4):
            weights = {f"last.{key}": x for key, x in zip(("weight", "bias"), head, strict=False)}
            weights["first.weight"] = task.model.first.weight.detach() + lora_b @ lora_a
            batch = plan.index[step, k][plan.real[step, k]]
            logits = functional_call(task.model, weights, (task.train.inputs["x"][batch],))
            descent.zero_grad()
            functional.cross_entropy(logits, task.train.labels[batch]).backward()
            descent.step()
        found = [x[k] for x in (*trained.adapters["first"], *trained.heads["last"])]
        for actual, wanted in zip(found, (lora_a, lora_b, *head), strict=True):
            assert (actual - wanted).norm() <= relative("factorization") * wanted.norm()


def test_the_server_averages_heads_as_it_does_updates(make_run, tiny_task):
    run = make_run(task=replace(tiny_task, head_modules=("head",)), cohort_size=4)
    upload = run.train(0)
    weights = np.array([run.federation.num_samples[k] for k in run.cohorts[0][0]])
    run.round(0)
    for side, found in enumerate(run.state.heads["head"]):
        trained = upload.heads["head"][side].numpy()
        wanted = np.tensordot(weights / weights.sum(), trained, axes=1)
        assert np.linalg.norm(found.numpy() - wanted) <= relative("reduction") * np.linalg.norm(
            wanted
        )
        assert not torch.equal(found, initial_heads(run.task)["head"][side])


def test_the_global_model_has_the_servers_head(make_run, tiny_task):
    run = make_run(task=replace(tiny_task, head_modules=("head",)))
    result = run.run()
    accuracy, loss = evaluate(run.task, run.state.deltas(), run.state.heads)
    assert (result.accuracy[-1], result.loss[-1]) == (accuracy, loss)
    assert evaluate(run.task, run.state.deltas())[1] != loss
    other = make_run().run()
    assert result.loss[0] == other.loss[0]
    assert result.loss[-1] != other.loss[-1]


@pytest.mark.parametrize("rule", ["flora", "fedex", "ffa", "hetlora"])
def test_every_rule_has_trained_heads(make_run, tiny_task, rule):
    run = make_run(rule, task=replace(tiny_task, head_modules=("head",)), cohort_size=3)
    result = run.run()
    assert np.isfinite(result.loss).all()
    weight, bias = run.state.heads["head"]
    assert not torch.equal(weight, run.task.model.head.weight)
    assert bias.shape == (10,)


def test_without_heads_the_classifier_stays(make_run):
    run = make_run()
    run.run()
    assert run.state.heads == {}


def test_the_mean_is_that_of_equal_heads():
    own = (torch.arange(6.0).double().view(2, 3), torch.ones(2).double())
    same = {"head": tuple(x.expand(4, *x.shape) for x in own)}
    for x, mean in zip(
        own, averaged_heads(same, np.array([1.0, 5.0, 2.0, 8.0]))["head"], strict=True
    ):
        assert (mean - x).norm() <= relative("reduction") * x.norm()


@pytest.mark.parametrize("bias", [True, False])
def test_every_client_has_its_own_map(bias):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    offset = torch.randn(3, 4, generator=generator, dtype=torch.float64) if bias else None
    x = torch.randn(6, 7, 5, generator=generator, dtype=torch.float64)
    found = StackedLinear(weight, offset)(x)
    assert found.shape == (6, 7, 4)
    for k in range(3):
        own = functional.linear(
            x[2 * k : 2 * k + 2], weight[k], None if offset is None else offset[k]
        )
        gap = (found[2 * k : 2 * k + 2] - own).norm()
        assert gap <= relative("reduction") * own.norm()


def test_a_head_has_no_adapter_and_is_linear():
    task = network_task(random_network(nn.LayerNorm(6)), heads=("last",))
    stack = start_of(task)
    lora_a, lora_b = stack.adapters["first"]
    with pytest.raises(InputError, match="head_modules='last'"):
        attach(task.model, {"last": (lora_a, lora_b[:, :3])}, [1.0] * 3, heads=stack.heads)
    with pytest.raises(InputError, match="head_modules='middle'"):
        attach(task.model, stack.adapters, [1.0] * 3, heads={"middle": stack.heads["last"]})
