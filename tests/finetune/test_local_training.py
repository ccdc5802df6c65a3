"""Local training: stacked equals one by one, finished clients rest, divergence is named."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from local_training_cases import local_training
from torch.func import functional_call
from torch.nn import functional

from fedlora_sim import Scenario
from fedlora_sim.errors import InputError
from fedlora_sim.finetune.batches import client_streams, plan_batches, plan_round
from fedlora_sim.finetune.local import Stack, find_divergence, train_cohort, train_on_plan
from fedlora_sim.finetune.run import evaluate
from fedlora_sim.finetune.stacked import Adapters
from fedlora_sim.tolerances import relative

RANKS = [3, 1, 4, 2, 4]
SCALING = [0.5, 2.0, 1.0, 8.0, 1 / 3]
CONFIGS = {
    "adam steps": local_training(local_steps=6, batch_size=4),
    "adam epochs": local_training(local_epochs=2, batch_size=4, weight_decay=0.01),
    "adamw epochs": local_training("adamw", local_epochs=2, batch_size=4, weight_decay=0.01),
    "sgd epochs": local_training("sgd", 0.05, momentum=0.9, local_epochs=2, batch_size=4),
}


@pytest.fixture(params=CONFIGS, ids=str)
def config(request: pytest.FixtureRequest) -> Scenario:
    return CONFIGS[request.param]


def train(task, adapters: Adapters, samples, config: Scenario, clients) -> Adapters:
    """Train these clients of the cohort of five."""
    stack = Stack(adapters, torch.tensor(SCALING)).take(np.array(clients))
    rngs = client_streams(1, 4, clients)
    return train_cohort(task, stack, [samples[k] for k in clients], rngs, config).adapters


def assert_same(actual: Adapters, expected: Adapters) -> None:
    for name, factors in expected.items():
        for one, other in zip(actual[name], factors, strict=True):
            assert (one - other).norm() <= relative("training") * other.norm()


def plain_loop(task, adapters: Adapters, samples, config: Scenario, k: int) -> Adapters:
    """Train client k with dense weights and torch's optimizers."""
    rank = RANKS[k]
    factors = {
        name: (A[k, :rank].clone().requires_grad_(), B[k, :, :rank].clone().requires_grad_())
        for name, (A, B) in adapters.items()
    }
    parameters = [factor for pair in factors.values() for factor in pair]
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "foreach": False}
    rule = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}.get(config.optimizer)
    if rule is None:
        optimizer = torch.optim.SGD(parameters, momentum=config.momentum, **options)
    else:
        optimizer = rule(parameters, **options)
    plan = plan_round(config, [samples[k]], client_streams(1, 4, [k]))
    for step in range(plan.num_steps[0]):
        batch = plan.index[step, 0][plan.real[step, 0]]
        weights = {
            f"{name}.weight": task.model.get_submodule(name).weight + SCALING[k] * B @ A
            for name, (A, B) in factors.items()
        }
        logits = functional_call(task.model, weights, (task.train.inputs["images"][batch],))
        optimizer.zero_grad()
        functional.cross_entropy(logits, task.train.labels[batch]).backward()
        optimizer.step()
    return {name: (A.detach(), B.detach()) for name, (A, B) in factors.items()}


@pytest.mark.slow
def test_stacked_in_chunks_and_one_by_one(tiny_task, make_adapters, cohort_samples, config):
    adapters = make_adapters(RANKS)
    whole = train(tiny_task, adapters, cohort_samples, config, [0, 1, 2, 3, 4])
    for chunk in ([0], [1], [2], [3], [4], [0, 1], [4, 2, 3]):
        part = train(tiny_task, adapters, cohort_samples, config, chunk)
        assert_same(part, {name: (A[chunk], B[chunk]) for name, (A, B) in whole.items()})


def test_stacked_agrees_with_a_plain_loop(tiny_task, make_adapters, cohort_samples, config):
    adapters = make_adapters(RANKS)
    whole = train(tiny_task, adapters, cohort_samples, config, [0, 1, 2, 3, 4])
    for k, rank in enumerate(RANKS):
        plain = plain_loop(tiny_task, adapters, cohort_samples, config, k)
        own = {name: (A[k, :rank], B[k, :, :rank]) for name, (A, B) in whole.items()}
        assert_same(own, plain)


def test_a_finished_client_rests(tiny_task, make_adapters, cohort_samples):
    """A client's adapters have the same bits whether or not others train longer.

    Clients 0 and 1 take 1 step each; client 4 takes 1 or 5. Under Adam, with its momentum, a
    client that received only zero gradients would still move.
    """
    adapters = make_adapters(RANKS)
    config = local_training(local_epochs=1, batch_size=4)
    runs = []
    for last in (cohort_samples[4][:4], cohort_samples[4]):
        samples = [*cohort_samples[:2], *cohort_samples[:2], last]
        runs.append(train(tiny_task, adapters, samples, config, [0, 1, 2, 3, 4]))
    for name in adapters:
        for short, long in zip(runs[0][name], runs[1][name], strict=True):
            assert torch.equal(short[:4], long[:4])
            assert not torch.equal(short[4], long[4])


def test_padding_stays_zero_and_input_unchanged(tiny_task, make_adapters, cohort_samples, config):
    adapters = make_adapters(RANKS)
    before = copy.deepcopy(adapters)
    trained = train(tiny_task, adapters, cohort_samples, config, [0, 1, 2, 3, 4])
    for name, (lora_A, lora_B) in trained.items():
        assert all(map(torch.equal, adapters[name], before[name]))
        for k, rank in enumerate(RANKS):
            assert not lora_A[k, rank:].any()
            assert not lora_B[k, :, rank:].any()
            assert not torch.equal(lora_A[k, :rank], adapters[name][0][k, :rank])


def test_same_seed_same_bits(tiny_task, make_adapters, cohort_samples, config):
    first, second = (
        train(tiny_task, make_adapters(RANKS), cohort_samples, config, [0, 1, 2, 3, 4])
        for _ in range(2)
    )
    for name in first:
        assert all(map(torch.equal, first[name], second[name]))


@pytest.mark.parametrize(("rate", "step"), [(1e150, 1), (1e308, 0)])
def test_divergence_names_client_and_step(tiny_task, make_adapters, cohort_samples, rate, step):
    config = local_training("sgd", learning_rate=rate, local_steps=step + 1, batch_size=4)
    stack = Stack(make_adapters(RANKS), torch.tensor([0.0, 0.0, 0.0, 5e4, 0.0]))
    rngs = client_streams(0, 0, range(5))
    plan = plan_batches(cohort_samples, rngs, batch_size=4, local_steps=step + 1)
    trained = train_on_plan(tiny_task, stack, plan, config)
    assert trained.finite.tolist() == [True, True, True, False, True]
    found = find_divergence(tiny_task, stack, plan, config, 3, 13)
    assert (found.client, found.step) == (13, step)
    with pytest.raises(InputError, match=f"client 13 diverged in round 7 at step {step}"):
        raise found.error(7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_epochs": 0}, "local_epochs=0"),
        ({"local_steps": 1, "learning_rate": 0.0}, "learning_rate=0"),
        ({"local_steps": 0}, "local_steps=0"),
        ({"local_steps": 1.5}, "local_steps=1.5"),
        ({"local_epochs": 1, "batch_size": 0}, "batch_size=0"),
        ({"local_steps": 1, "optimizer": "adan"}, "optimizer='adan'.*'adam'"),
        ({"local_steps": 1, "learning_rate": float("inf")}, "learning_rate=inf"),
        ({"local_steps": 1, "weight_decay": -1}, "weight_decay=-1"),
        ({"local_steps": 1, "momentum": 0.9}, "momentum=0.9"),
        ({"local_steps": 1, "max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ({"local_steps": 1, "stack_size": 0}, "stack_size=0"),
        ({"local_steps": 1, "memory_budget": -1.0}, "memory_budget=-1.0"),
    ],
)
def test_bad_config(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        local_training(**options)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], r"samples=\[\]"),
        ([np.arange(3), np.arange(0)], r"samples\[1\]"),
        ([np.arange(3), np.arange(3.0)], r"samples\[1\].*integer"),
        ([np.arange(3), np.array([40])], r"indices in 0..39"),
        ([np.arange(3), np.array([-1])], r"indices in 0..39"),
        ([np.arange(3)] * 3, "rngs='2 clients': expected 3"),
    ],
)
def test_bad_samples(tiny_task, make_adapters, samples, message: str):
    rngs = client_streams(0, 0, range(2))
    with pytest.raises(InputError, match=message):
        train_cohort(
            tiny_task,
            Stack(make_adapters([1] * max(len(samples), 1)), torch.ones(len(samples))),
            samples,
            rngs,
            local_training(local_steps=1),
        )


def test_cohort_sizes_must_agree(tiny_task, make_adapters):
    samples, rngs = [np.arange(3)] * 2, client_streams(0, 0, range(2))
    config = local_training(local_steps=1)
    for ranks, scaling, rates, message in (
        ([1, 2, 3], [1, 1], None, "adapters"),
        ([1], [1, 1], None, "adapters"),
        ([1, 2], [1, 1, 1], None, "scaling"),
        ([1, 2], [1], None, "scaling"),
        ([1, 2], [1, 1], [0.1], "rates"),
    ):
        rates = None if rates is None else torch.tensor(rates)
        stack = Stack(make_adapters(ranks), torch.tensor(scaling), rates=rates)
        with pytest.raises(InputError, match=message):
            train_cohort(tiny_task, stack, samples, rngs, config)


@pytest.mark.slow
def test_thread_count_changes_no_bit_and_is_restored(tiny_task, make_adapters, cohort_samples):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            config = local_training(local_steps=2)
            results.append(train(tiny_task, make_adapters(RANKS), cohort_samples, config, [2, 4]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for name in results[0]:
        assert all(map(torch.equal, results[0][name], results[1][name]))


def test_evaluate_merges_the_update(tiny_task, make_adapters):
    deltas = {name: (B @ A)[0] for name, (A, B) in make_adapters([4]).items()}
    merged = copy.deepcopy(tiny_task.model)
    for name, delta in deltas.items():
        merged.get_submodule(name).weight.add_(delta)
    logits, labels = merged(**tiny_task.test.inputs), tiny_task.test.labels
    accuracy, loss = evaluate(tiny_task, deltas)
    assert accuracy == (logits.argmax(1) == labels).double().mean().item()
    wanted = functional.cross_entropy(logits, labels).item()
    assert loss == pytest.approx(wanted, rel=relative("reduction"))
    assert evaluate(tiny_task) == evaluate(tiny_task, {})
    assert evaluate(tiny_task) != (accuracy, loss)


def test_evaluate_refuses_what_it_cannot_merge(tiny_task):
    with pytest.raises(InputError, match=r"closest is 'blocks\.0\.fc1'"):
        evaluate(tiny_task, {"block.0.fc1": torch.zeros(2, 2)})
    with pytest.raises(InputError, match=r"\(32, 16\) for 'blocks\.0\.fc1'"):
        evaluate(tiny_task, {"blocks.0.fc1": torch.zeros(16, 32)})
