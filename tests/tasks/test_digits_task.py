"""The digits task: accurate on the pretraining domain, not on the other, learnable by LoRA."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from local_training_cases import local_training
from sklearn.datasets import load_digits

from fedlora_sim.errors import InputError
from fedlora_sim.finetune.batches import client_streams
from fedlora_sim.finetune.local import Stack, train_cohort
from fedlora_sim.finetune.run import evaluate
from fedlora_sim.finetune.stacked import find_linear
from fedlora_sim.randomness import stream
from fedlora_sim.tasks import digits
from fedlora_sim.tasks.digits import (
    DigitsTask,
    TinyTransformer,
    _parts,
    load_adjusted_digits,
    load_digits_task,
)
from fedlora_sim.tasks.task import TaskOptions


def source_accuracy(task: DigitsTask) -> float:
    logits = task.model(**task.source.inputs)
    return (logits.argmax(1) == task.source.labels).double().mean().item()


@pytest.mark.slow
def test_pretrained_on_upright_lost_on_rotated_digits():
    task = load_digits_task(0)
    assert source_accuracy(task) > 0.95
    assert evaluate(task)[0] < 0.3
    assert not any(p.requires_grad for p in task.model.parameters())
    assert len(task.target_modules) == 8
    images, upright = (part.inputs["images"] for part in (task.test, task.source))
    torch.testing.assert_close(images, torch.rot90(upright, 1, (1, 2)))
    assert load_digits_task(0, shift="Rotated") is task


def test_parts_are_disjoint_stratified_and_seeded():
    classes = load_digits().target.astype(np.int64)
    parts = _parts(classes, stream(3))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(classes)))
    for part, share in zip(parts, (0.5, 0.32, 0.18), strict=True):
        kept = np.bincount(classes[part]) / np.bincount(classes)
        assert np.abs(kept - share).max() < 0.01
    for first, second in zip(parts, _parts(classes, stream(3)), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.fixture
def untrained(monkeypatch) -> None:
    """Return the digits task with an untrained model."""

    def pretrain(images, labels, rng):
        return TinyTransformer(torch.Generator().manual_seed(0)).requires_grad_(False)

    monkeypatch.setattr(digits, "_pretrain", pretrain)
    monkeypatch.setattr(digits, "_load", digits._load.__wrapped__)


@pytest.mark.usefixtures("untrained")
def test_neither_parts_size_changes_the_other():
    few, most = TaskOptions(max_train=50, max_test=40), TaskOptions()
    both, whole = load_adjusted_digits(few), load_adjusted_digits(most)
    assert (len(both.train), len(both.test)) == (50, 40)
    assert len(whole.train) > 500
    assert len(whole.test) > 300
    for part, other in (("train", "max_test"), ("test", "max_train")):
        for size in (None, 20):
            alone = getattr(load_adjusted_digits(replace(few, **{other: size})), part)
            wanted = getattr(both, part)
            assert torch.equal(alone.inputs["images"], wanted.inputs["images"])
            assert torch.equal(alone.labels, wanted.labels)
    again = load_adjusted_digits(replace(few, task_seed=1))
    assert not torch.equal(again.test.labels, both.test.labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_digits_task(-1), "seed=-1"),
        (lambda: load_digits_task(0.5), "seed=0.5"),
        (lambda: load_digits_task(0, shift="rotate"), "shift='rotate'.*'rotated'"),
        (lambda: load_digits_task(0, dtype=torch.float16), "dtype=torch.float16"),
    ],
)
def test_bad_input(call, message: str):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("shift", ["rotated", pytest.param("unseen", marks=pytest.mark.deep)])
def test_lora_learns_the_shifted_domain(shift: str):
    task = load_digits_task(1, shift=shift)
    assert source_accuracy(task) > 0.95
    before, _ = evaluate(task)
    adapters, rng = {}, stream(0, "A")
    for name in task.target_modules:
        d_out, d_in = find_linear(task.model, name).weight.shape
        lora_A = torch.as_tensor(rng.uniform(-1, 1, (1, 8, d_in)) / d_in**0.5).float()
        adapters[name] = (lora_A, torch.zeros(1, d_out, 8))
    config = local_training(local_epochs=10, batch_size=32)
    samples = [np.arange(len(task.train))]
    stack, rngs = Stack(adapters, torch.ones(1)), client_streams(0, 0, [0])
    trained = train_cohort(task, stack, samples, rngs, config).adapters
    after, _ = evaluate(task, {name: B[0] @ A[0] for name, (A, B) in trained.items()})
    assert before < 0.35
    assert after > 0.85


@pytest.mark.slow
@pytest.mark.deep
def test_pretraining_holds_for_other_seeds_and_float64():
    for seed, dtype in ((2, torch.float32), (0, torch.float64)):
        task = load_digits_task(seed, dtype=dtype)
        assert task.train.inputs["images"].dtype == task.model.head.weight.dtype == dtype
        assert source_accuracy(task) > 0.95
