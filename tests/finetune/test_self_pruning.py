"""HetLoRA's self-pruning: which clients prune, to which rank, and later rounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlora_sim import simulate
from fedlora_sim.finetune import run as finetune_run
from fedlora_sim.finetune.local import TailPenalty, pruned_rank
from fedlora_sim.tolerances import relative

STRONG = {"pruning_decay": 0.5, "pruning_penalty": 50.0, "rounds": 6, "learning_rate": 0.02}


def test_the_rank_that_is_left():
    assert [pruned_rank(r, 0.5) for r in (1, 2, 3, 8, 9)] == [1, 1, 2, 4, 5]
    assert [pruned_rank(r, 0.99) for r in (1, 2, 100, 101)] == [1, 2, 99, 100]
    assert [pruned_rank(r, 1e-9) for r in (1, 2, 100)] == [1, 1, 1]


def test_the_size_of_a_tail_is_the_product_of_its_norms():
    rng, ranks = np.random.default_rng(0), [5, 1, 4, 2]
    like = torch.zeros((), dtype=torch.float64)
    layers = [
        tuple(torch.from_numpy(rng.standard_normal(s)) for s in ((4, 5, d_in), (4, d_out, 5)))
        for d_in, d_out in ((3, 6), (7, 2))
    ]
    tail = TailPenalty.of(ranks, 0.5, 1.0, like)
    for k, (rank, start) in enumerate(zip(ranks, (3, 1, 2, 1), strict=True)):
        wanted = sum(
            np.linalg.norm(a[k, start:rank]) * np.linalg.norm(b[k, :, start:rank])
            for a, b in layers
        )
        assert float(tail.size(layers)[k]) == pytest.approx(wanted, rel=relative("reduction"))
    order = np.array([2, 0, 3, 1])
    moved = tail.take(order).size([(a[order], b[order]) for a, b in layers])
    assert torch.equal(moved, tail.size(layers)[order])
    assert torch.equal(tail.size([(a[:2], b[:2]) for a, b in layers]), tail.size(layers)[:2])


def test_a_tail_of_zeros_has_no_gradient_and_is_never_smaller():
    lora_a = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    lora_b = torch.zeros(1, 5, 4, dtype=torch.float64, requires_grad=True)
    tail = TailPenalty.of([4], 0.5, 1.0, lora_a)
    tail.size([(lora_a, lora_b)]).sum().backward()
    assert torch.isfinite(lora_a.grad).all()
    assert torch.isfinite(lora_b.grad).all()
    zeros = {"layer": (lora_a.detach(), lora_b.detach())}
    assert tail.shrank(zeros, zeros) == [False]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["raflora", "hetlora", "raflora:canonicalize=true", "rbla"])
def test_a_strong_penalty_prunes_down_to_one_and_the_run_continues(make_run, rule):
    result = make_run(rule, **{**STRONG, "rounds": 12}).run()
    ranks = result.client_rank
    np.testing.assert_array_equal(ranks[0], [2, 2, 2, 4, 4, 8, 8])
    steps = {(int(a), int(b)) for a, b in zip(ranks[:-1].ravel(), ranks[1:].ravel(), strict=True)}
    assert steps <= {(r, r) for r in (8, 4, 2, 1)} | {(8, 4), (4, 2), (2, 1)}
    assert (ranks[-1] < ranks[0]).all()
    assert ranks.min() == 1
    assert np.isfinite(result.loss).all()
    assert np.isfinite(result.singular_values).all()


def test_without_decay_no_client_prunes_and_a_penalty_alone_does_nothing(make_run):
    plain = make_run().run()
    penalized = make_run(pruning_penalty=50.0).run()
    assert (plain.client_rank == plain.client_rank[0]).all()
    np.testing.assert_array_equal(plain.singular_values, penalized.singular_values)


def test_a_decay_that_leaves_every_rank_changes_nothing(make_run):
    """ceil(0.9 r) is r up to r = 9, so there is no tail, no penalty and no pruning."""
    plain, decayed = make_run().run(), make_run(pruning_decay=0.9, pruning_penalty=9.0).run()
    np.testing.assert_array_equal(decayed.client_rank, plain.client_rank)
    np.testing.assert_array_equal(decayed.singular_values, plain.singular_values)


@pytest.mark.slow
@pytest.mark.parametrize("allocation", ["svd", "random", "importance"])
def test_sent_updates_have_the_new_rank(make_run, monkeypatch, allocation):
    """With the old scaling, on the first old directions; the server knows the new levels."""
    calls, original = [], finetune_run.aggregate

    def aggregate(updates, weights, rule, **options):
        calls.append((updates, options))
        return original(updates, weights, rule, **options)

    monkeypatch.setattr(finetune_run, "aggregate", aggregate)
    run = make_run(allocation=allocation, lora_alpha=6.0, cohort_size=5, **STRONG)
    received, positions = [], run.received.positions

    def watched(*arguments):
        found = positions(*arguments)
        received.append({name: [own.tolist() for own in rows] for name, rows in found.items()})
        return found

    run.received.positions = watched
    ranks = run.run().client_rank
    assert (ranks[-1] < ranks[0]).any()
    layers = run.task.target_modules
    for t, (clients, _) in enumerate(run.cohorts):
        away = np.setdiff1d(np.arange(7), clients)
        np.testing.assert_array_equal(ranks[t + 1, away], ranks[t, away])
        for name, (updates, options) in zip(
            layers, calls[t * len(layers) : (t + 1) * len(layers)], strict=True
        ):
            new = ranks[t + 1, clients].tolist()
            assert [u.rank for u in updates] == new
            wanted = [6.0 / run.scenario.ranks[k] for k in clients]
            assert [u.scaling for u in updates] == wanted
            assert set(options["rank_levels"]) == {*ranks[t + 1].tolist(), 8}
            before = received[t][name]
            assert [len(own) for own in before] == ranks[t, clients].tolist()
            if allocation != "svd":
                kept = [own[:r] for own, r in zip(before, new, strict=True)]
                assert options["positions"] == kept


@pytest.mark.slow
def test_the_dataset_has_the_ranks(make_run):
    scenario = make_run(initializer="slora", slora_rounds=1, **STRONG).scenario
    run = simulate(scenario, rule="hetlora", seed=[0, 1])
    assert run.client_rank.dims == ("seed", "round", "client")
    assert (run.client_rank.diff("round") <= 0).all()
    assert run.client_rank.dtype.kind == "i"
    assert simulate(scenario, rule="hetlora", seed=1).identical(run.sel(seed=[1]))
