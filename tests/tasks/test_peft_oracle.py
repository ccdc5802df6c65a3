"""Independent oracle: PEFT's LoRA modules, trained client by client in a plain PyTorch loop."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from local_training_cases import local_training
from peft import LoraConfig, LoraModel
from torch import Tensor, nn
from torch.nn import functional
from training_cases import (
    RANKS,
    SCALING,
    causal_task,
    classification_task,
    cohort,
    samples,
)

from fedlora_sim import Scenario
from fedlora_sim.finetune.batches import client_streams, plan_batches
from fedlora_sim.finetune.local import Stack, train_on_plan
from fedlora_sim.randomness import library_draws
from fedlora_sim.tasks.digits import TinyTransformer
from fedlora_sim.tasks.task import IGNORED, Completion, Examples, Task, logits_of
from fedlora_sim.tolerances import relative

RATES = (2e-3, 8e-3, 1e-3, 4e-3)
BATCHES = {"batch_size": 4, "local_epochs": 2}
CONFIGS = {
    "sgd": local_training("sgd", 8e-3, momentum=0.9, weight_decay=0.1, **BATCHES),
    "adam": local_training("adam", 8e-3, weight_decay=0.1, max_grad_norm=0.4, **BATCHES),
    "adamw": local_training("adamw", 8e-3, weight_decay=0.1, max_grad_norm=2.0, **BATCHES),
}
OPTIMIZERS = {
    "sgd": lambda p, c, rate: torch.optim.SGD(p, rate, c.momentum, weight_decay=c.weight_decay),
    "adam": lambda p, c, rate: torch.optim.Adam(p, rate, weight_decay=c.weight_decay),
    "adamw": lambda p, c, rate: torch.optim.AdamW(p, rate, weight_decay=c.weight_decay),
}


def image_task() -> Task:
    """Return a task of plain `nn.Linear` maps with a head."""
    generator = torch.Generator().manual_seed(0)
    model = TinyTransformer(generator, d_model=8, num_layers=2, num_heads=2).double()
    images = torch.rand(23, 8, 8, generator=generator, dtype=torch.float64)
    part = Examples({"images": images}, torch.randint(10, (23,), generator=generator))
    targets = tuple(f"blocks.{i}.{name}" for i in (0, 1) for name in ("attention.q_proj", "fc1"))
    return Task(model.requires_grad_(False), part, part, targets, ("head",))


@pytest.fixture(params=["bert", "gpt2", "images"])
def task(request: pytest.FixtureRequest, tiny_model) -> Task:
    if request.param == "bert":
        return classification_task(
            tiny_model("bert"), ("query", "intermediate.dense"), ("classifier",)
        )
    return causal_task() if request.param == "gpt2" else image_task()


def peft_client(task: Task, stack: Stack, k: int) -> nn.Module:
    """Return client k's model as PEFT builds it, with the same start."""
    config = LoraConfig(
        r=RANKS[k],
        lora_alpha=SCALING[k] * RANKS[k],
        target_modules=list(task.target_modules),
        fan_in_fan_out=isinstance(task.objective, Completion),
    )
    # PEFT replaces layers in the given model.
    with library_draws(0):
        model = LoraModel(copy.deepcopy(task.model), config, "default").model
    for name, (lora_a, lora_b) in stack.adapters.items():
        layer = model.get_submodule(name)
        layer.lora_A.default.weight.data = lora_a[k, : RANKS[k]].clone()
        layer.lora_B.default.weight.data = lora_b[k, :, : RANKS[k]].clone()
    for name, own in stack.heads.items():
        head = model.get_submodule(name).requires_grad_(True)
        for parameter, start in zip((head.weight, head.bias), own, strict=True):
            parameter.data = start[k].clone()
    return model


def plain_loss(task: Task, model: nn.Module, batch: Tensor) -> Tensor:
    """Return mean loss of a batch at its full, padded length."""
    logits = logits_of(model, {name: x[batch] for name, x in task.train.inputs.items()})
    labels = task.train.labels[batch]
    if isinstance(task.objective, Completion):
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return functional.cross_entropy(logits, labels, ignore_index=IGNORED)


def train_plainly(task: Task, model: nn.Module, config: Scenario, plan, k: int) -> list[float]:
    """Take client k's steps one by one and return its losses."""
    moving, losses = [p for p in model.parameters() if p.requires_grad], []
    descent = OPTIMIZERS[config.optimizer](moving, config, RATES[k])
    for step in range(plan.num_steps[k]):
        batch = torch.from_numpy(plan.index[step, k][plan.real[step, k]])
        loss = plain_loss(task, model, batch)
        descent.zero_grad()
        loss.backward()
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(moving, config.max_grad_norm)
        descent.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_client_ends_as_in_peft(task, name):
    config, start = CONFIGS[name], cohort(task)
    stack = replace(start, rates=torch.tensor(RATES, dtype=torch.float64))
    plan = plan_batches(samples(), client_streams(0, 0, range(len(RANKS))), **BATCHES)
    trained = train_on_plan(task, stack, plan, config)
    for k, rank in enumerate(RANKS):
        model = peft_client(task, stack, k)
        losses = train_plainly(task, model, config, plan, k)
        assert_close(trained.losses[: len(losses), k], torch.tensor(losses, dtype=torch.float64))
        for target, (lora_a, lora_b) in trained.adapters.items():
            layer = model.get_submodule(target)
            assert_close(lora_a[k, :rank], layer.lora_A.default.weight)
            assert_close(lora_b[k, :, :rank], layer.lora_B.default.weight)
            assert not torch.equal(lora_a[k], start.adapters[target][0][k])
        for target, own in trained.heads.items():
            head = model.get_submodule(target)
            for parameter, wanted in zip(own, (head.weight, head.bias), strict=True):
                assert_close(parameter[k], wanted)


def assert_close(actual: Tensor, wanted: Tensor) -> None:
    assert (actual - wanted).norm() <= relative("factorization") * wanted.norm()
