"""The arithmetic task: right equations, unseen pairs, and a shift that LoRA learns."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from fedlora_sim.errors import InputError
from fedlora_sim.randomness import stream
from fedlora_sim.tasks import causal
from fedlora_sim.tasks.causal import (
    CHARACTERS,
    END,
    _parts,
    _pretrained,
    _untrained,
    continue_greedily,
    equations,
    load_arithmetic_task,
)
from fedlora_sim.tasks.prefix import cache_prefix
from fedlora_sim.tasks.task import IGNORED, TaskOptions, logits_of
from fedlora_sim.tolerances import relative

OPTIONS = TaskOptions(task="arithmetic")


@pytest.fixture
def quick(monkeypatch):
    """Use a pretraining of two steps."""
    pretrain = _pretrained.__wrapped__
    monkeypatch.setattr(causal, "_pretrained", lambda seed: pretrain(seed, steps=2))


def accuracy(task, part, weights=None) -> float:
    with torch.no_grad():
        logits = functional_call(task.model, weights or {}, (), dict(part.inputs)).logits
    return task.objective.hits(logits, part.labels).double().mean().item()


def test_equations_are_right():
    pairs = np.array([[17, 95], [7, 5], [5, 7], [99, 0]])
    for operator, wanted in (
        ("+", ["17+95=12", "07+05=12", "05+07=12", "99+00=99"]),
        ("-", ["17-95=22", "07-05=02", "05-07=98", "99-00=99"]),
    ):
        made = equations(pairs, operator)
        tokens = made.inputs["input_ids"]
        assert ["".join(CHARACTERS[t] for t in row[:-1]) for row in tokens] == wanted
        assert (tokens[:, -1] == END).all()
        assert (made.labels[:, :6] == IGNORED).all()
        assert torch.equal(made.labels[:, 6:], tokens[:, 6:])
        assert made.skew_classes.tolist() == [int(text[-1]) for text in wanted]


def test_parts_are_disjoint_and_seeded():
    train, test = _parts(3)
    assert (len(train), len(test)) == (9000, 1000)
    assert len(np.unique(np.concatenate([train, test]), axis=0)) == 100**2
    np.testing.assert_array_equal(_parts(3)[1], test)
    assert not np.array_equal(_parts(4)[1], test)


def test_the_same_bits_by_seed_and_nothing_of_the_global_generator():
    before = torch.random.get_rng_state()
    one, again, other = (_pretrained.__wrapped__(seed, steps=2) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in one.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    starts = [_untrained(stream(seed)).lm_head.weight for seed in (0, 1)]
    assert not torch.equal(*starts)


@pytest.mark.usefixtures("quick")
def test_options():
    task = load_arithmetic_task(OPTIONS)
    assert len(task.target_modules) == 14
    assert task.class_names == tuple("0123456789")
    assert np.unique(task.train.skew_classes).tolist() == list(range(10))
    assert not any(p.requires_grad for p in task.model.parameters())
    smaller = replace(OPTIONS, max_train=50, max_test=20, adapted_layers=1, dtype="float64")
    small = load_arithmetic_task(replace(smaller, target_modules=("q_proj", "v_proj")))
    assert (len(small.train), len(small.test), small.dtype) == (50, 20, torch.float64)
    assert torch.equal(small.train.labels, task.train.labels[:50])
    assert small.target_modules == tuple(f"model.layers.1.self_attn.{m}_proj" for m in "qv")
    cached = cache_prefix(load_arithmetic_task(smaller))
    found, wanted = (logits_of(t.model, t.test.inputs) for t in (cached, small))
    torch.testing.assert_close(found, wanted, rtol=0, atol=relative("factorization"))
    with pytest.raises(InputError, match=r"^target_modules='fc1'"):
        load_arithmetic_task(replace(OPTIONS, target_modules=("fc1",)))


def test_a_head_that_is_not_new_is_not_trained():
    with pytest.raises(InputError, match=r"^train_head=True"):
        load_arithmetic_task(replace(OPTIONS, train_head=True))


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"^task='arithmetic'"):
        _pretrained.__wrapped__(0)


def adapted(task, *, steps: int, rate: float, rank: int = 8, batch_size: int = 32):
    """Return the weights after plain LoRA of one client that has all samples; B starts at zero."""
    rng, factors = stream(0, "test LoRA"), {}
    for name in task.target_modules:
        d_out, d_in = task.model.get_submodule(name).weight.shape
        lora_A = torch.as_tensor(rng.uniform(-1, 1, (rank, d_in)) / d_in**0.5).float()
        factors[name] = (lora_A.requires_grad_(), torch.zeros(d_out, rank, requires_grad=True))

    def weights() -> dict[str, torch.Tensor]:
        return {
            f"{name}.weight": task.model.get_submodule(name).weight + lora_B @ lora_A
            for name, (lora_A, lora_B) in factors.items()
        }

    optimizer = torch.optim.Adam([f for pair in factors.values() for f in pair], rate, fused=True)
    for _ in range(steps):
        batch = task.train.take(torch.as_tensor(rng.integers(len(task.train), size=batch_size)))
        logits = functional_call(task.model, weights(), (), dict(batch.inputs)).logits
        totals, counts = task.objective.losses(logits, batch.labels)
        optimizer.zero_grad()
        (totals.sum() / counts.sum()).backward()
        optimizer.step()
    return {name: weight.detach() for name, weight in weights().items()}


@pytest.mark.slow
@pytest.mark.deep
def test_it_can_add_and_lora_teaches_it_to_subtract():
    task = load_arithmetic_task(OPTIONS)
    assert accuracy(task, equations(_parts(0)[1], "+")) > 0.95
    assert accuracy(task, task.test) < 0.3
    assert accuracy(task, task.test, adapted(task, steps=500, rate=5e-3)) > 0.85


@pytest.mark.slow
def test_greedy_decoding_writes_the_counted_hits():
    task = load_arithmetic_task(OPTIONS)
    sums = equations(_parts(0)[1], "+")
    tokens = sums.inputs["input_ids"]
    new = continue_greedily(task.model, tokens[:, :6].tolist(), 3, END)
    right = [a == b for a, b in zip(new, tokens[:, 6:8].tolist(), strict=True)]
    assert np.mean(right) == accuracy(task, sums)
