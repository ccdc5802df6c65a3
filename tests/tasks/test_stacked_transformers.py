"""Clients in one stack, in chunks and one by one train equally on real transformers.

Texts of mixed lengths are trimmed to the longest of a stack, so that chunks have different padding.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from local_training_cases import local_training
from training_cases import causal_task, classification_task, cohort, samples

from fedlora_sim import Scenario
from fedlora_sim.finetune.batches import client_streams, every_sample
from fedlora_sim.finetune.exchange import gradient_norms
from fedlora_sim.finetune.local import Trained, activation_bytes, train_cohort
from fedlora_sim.finetune.run import evaluate
from fedlora_sim.finetune.stacked import attach, stacked_modules
from fedlora_sim.tolerances import relative

CONFIGS = {
    "sgd": local_training(
        "sgd", 0.05, momentum=0.9, weight_decay=0.01, local_epochs=2, batch_size=4
    ),
    "adam": local_training("adam", 2e-3, local_epochs=2, batch_size=4),
    "adam clipped": local_training(
        "adam", 2e-3, weight_decay=0.01, local_steps=3, batch_size=4, max_grad_norm=0.5
    ),
    "adamw": local_training("adamw", 2e-3, weight_decay=0.01, local_epochs=2, batch_size=4),
}
CASES = [(name, config, "float64") for name in ("bert", "gpt2") for config in CONFIGS]
# Not Adam: it divides by the size of the gradient, so rounding near zero becomes a whole step.
CASES += [("bert", "sgd", "float32"), ("gpt2", "sgd", "float32")]


@pytest.fixture
def make_task(tiny_model):
    def make(name: str, dtype: str = "float64"):
        if name == "gpt2":
            task = causal_task()
        else:
            task = classification_task(tiny_model(name), ("query", "value"), ("classifier",))
        return task.to(torch.device("cpu"), getattr(torch, dtype))

    return make


def train(task, config: Scenario, **changes: object) -> Trained:
    rngs = client_streams(0, 0, range(4))
    return train_cohort(task, cohort(task), samples(), rngs, replace(config, **changes))


def moves(trained: Trained, task) -> dict[str, torch.Tensor]:
    """Return the changes of all factors and heads of the cohort."""
    stack = cohort(task)
    pairs = ((trained.adapters, stack.adapters), (trained.heads, stack.heads))
    return {
        f"{name} {side}": new - old
        for after, before in pairs
        for name in before
        for side, (new, old) in enumerate(zip(after[name], before[name], strict=True))
    }


def client_norms(moved: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the norm of each client's whole update, (clients,)."""
    return torch.cat([move.flatten(1) for move in moved.values()], dim=1).norm(dim=1)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "config", "dtype"), CASES)
def test_any_stack_size_is_the_same_training(make_task, model, config, dtype):
    task = make_task(model, dtype)
    whole = moves(train(task, CONFIGS[config]), task)
    assert all(move.flatten(1).any(1).all() for move in whole.values()), "every client moves"
    for size in (1, 3):
        part = moves(train(task, CONFIGS[config], stack_size=size), task)
        gap = client_norms({name: part[name] - move for name, move in whole.items()})
        assert (gap <= relative("factorization", dtype) * client_norms(whole)).all()


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_checkpointed_blocks_train_the_same(make_task, model):
    task = make_task(model)
    wanted = moves(train(task, CONFIGS["adam"]), task)
    found = moves(train(task, CONFIGS["adam"], gradient_checkpointing=True), task)
    for name, move in wanted.items():
        assert (found[name] - move).norm() <= relative("factorization") * move.norm()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_a_stack_computes_the_merged_models_logits(make_task, model):
    """The logits of client k equal those of the model with its update and head in the weights."""
    task, stack = make_task(model), cohort(make_task(model))
    for k in range(len(stack.scaling)):
        own = stack.take(torch.tensor([k]).numpy())
        deltas = {n: own.scaling[0] * B[0] @ A[0] for n, (A, B) in own.adapters.items()}
        heads = {name: tuple(x[0] for x in parts) for name, parts in own.heads.items()}
        alone = replace(task, model=own.on(task.model))
        merged = evaluate(task, deltas, heads)[1]
        assert merged == pytest.approx(evaluate(alone)[1], rel=relative("factorization"))
        assert merged != evaluate(task)[1]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_the_importance_of_directions_does_not_depend_on_how_it_is_computed(make_task, model):
    """With few samples and clients at a time, as in training, or all at once."""
    task = make_task(model)
    start = cohort(task)
    at_once = replace(CONFIGS["adam"], batch_size=sum(map(len, samples())))
    wanted = gradient_norms(task, start, samples(), at_once)
    for size, batch_size in ((None, 5), (3, 1), (1, 2)):
        config = replace(CONFIGS["adam"], stack_size=size, batch_size=batch_size)
        for name, norms in gradient_norms(task, start, samples(), config).items():
            assert (norms - wanted[name]).norm() <= relative("factorization") * norms.norm()
            assert (norms[0] != norms[1]).any()


def test_memory_is_estimated_at_the_longest_text(make_task):
    """For any client, because all are padded to it in a stack."""
    task, stack = make_task("bert"), cohort(make_task("bert"))
    short = int(task.train.inputs["attention_mask"].sum(1).argmin())
    one, config = stack.take(torch.tensor([0]).numpy()), CONFIGS["adam"]
    found = [
        activation_bytes(task, one, every_sample([torch.tensor([x]).numpy()], 4), config)
        for x in (short, task.train.longest)
    ]
    assert found[0] == found[1]


def test_a_tied_weight_is_adapted_in_one_place_and_merged_there(make_task):
    """GPT-2's output map shares its weight with the embedding, which has no adapter."""
    task = make_task("gpt2")
    assert task.model.lm_head.weight is task.model.transformer.wte.weight
    stack = cohort(replace(task, target_modules=("lm_head",)))
    lora_a, lora_b = stack.adapters["lm_head"]
    attached = attach(task.model, {"lm_head": (lora_a[:1], lora_b[:1])}, [2.0])
    assert list(stacked_modules(attached)) == ["lm_head"]
    merged = evaluate(task, {"lm_head": 2.0 * lora_b[0] @ lora_a[0]})[1]
    wanted = evaluate(replace(task, model=attached))[1]
    assert merged == pytest.approx(wanted, rel=relative("factorization"))
