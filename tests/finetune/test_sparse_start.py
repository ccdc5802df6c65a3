"""SLoRA's first stage: which entries move, and the start of the adapters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from designs import pairwise

from fedlora_sim import Scenario, simulate
from fedlora_sim.finetune.batches import client_streams, sparse_batches_seed, sparse_entries
from fedlora_sim.finetune.run import evaluate
from fedlora_sim.finetune.slora import sparse_stage, sparse_start
from fedlora_sim.finetune.stacked import find_linear
from fedlora_sim.tolerances import relative

SLORA = {"initializer": "slora"}
LAWS = {
    "everybody": {},
    "sampled": {"cohort_size": 2},
    "repeated": {"cohort_size": 3, "sampling": "with_replacement"},
    "bernoulli": {"cohort_size": 1, "sampling": "bernoulli"},
}


def stage(run, seed=None, **changes):
    """Return the sparse stage of a run, with other fields or another seed."""
    scenario = run.scenario.replace(**changes)
    seed = run.seed if seed is None else seed
    return sparse_stage(scenario, run.task, run.federation, run.samples, seed)


@pytest.mark.slow
@pairwise(law=LAWS, density=[1e-9, 0.1, 0.37, 1.0], optimizer=["adam", "sgd", "adamw"])
def test_only_the_chosen_entries_move(make_run, law, density, optimizer):
    decay = {"optimizer": optimizer, "weight_decay": 0.1}
    run = make_run(slora_density=density, **decay, **LAWS[law])
    for name, dense in stage(run).items():
        chosen = sparse_entries(run.seed, name, dense.numel(), density)
        mask = torch.zeros(dense.numel(), dtype=torch.bool)
        mask[chosen] = True
        assert len(set(chosen.tolist())) == max(1, round(density * dense.numel()))
        moved = dense.flatten()
        assert not moved[~mask].any()
        # Hidden units without input have no gradient.
        assert density == 1e-9 or (moved[mask] != 0).float().mean() > 0.5


def test_modules_and_seeds_have_different_masks():
    masks = [
        tuple(sorted(sparse_entries(seed, name, 400, 0.1).tolist()))
        for seed, name in ((0, "q"), (0, "v"), (1, "q"))
    ]
    assert len(set(masks)) == 3
    assert masks[0] == tuple(sorted(sparse_entries(0, "q", 400, 0.1).tolist()))


def test_its_batches_are_not_those_of_the_rounds():
    draws = [client_streams(seed, 0, [0])[0].random() for seed in (5, sparse_batches_seed(5))]
    assert draws[0] != draws[1]


@pytest.mark.slow
def test_a_seed_is_its_bits(make_run):
    run = make_run(**SLORA, **LAWS["repeated"])
    first, again, other = stage(run), stage(run), stage(run, seed=6)
    for name, dense in first.items():
        assert torch.equal(dense, again[name])
        assert not torch.equal(dense, other[name])
    one, two = (make_run("fedavg", **SLORA).run() for _ in range(2))
    np.testing.assert_array_equal(one.singular_values, two.singular_values)
    np.testing.assert_array_equal(one.loss, two.loss)


def test_rules_and_allocations_start_from_the_same_adapters(make_run):
    first = make_run("raflora", **SLORA).state.adapters
    for rule, allocation in (("hetlora", "random"), ("fedex", "importance")):
        other = make_run(rule, allocation=allocation, **SLORA).state.adapters
        for name in first:
            assert torch.equal(first[name].delta(), other[name].delta())


def test_the_start_is_the_best_approximation(make_run):
    run = make_run(**SLORA)
    for name, dense in stage(run).items():
        start = run.state.adapters[name]
        assert (start.rank, start.scaling) == (8, 1.0)
        values = torch.linalg.svdvals(dense)
        missed = (dense - start.delta()).norm()
        bound = relative("factorization") * dense.norm()
        assert abs(missed - values[8:].norm()) <= bound
        # Balanced and in SVD gauge, so that the truncation to r_k is optimal too.
        assert (start.lora_A @ start.lora_A.mT - torch.diag(values[:8])).norm() <= bound
        assert (start.lora_B.mT @ start.lora_B - torch.diag(values[:8])).norm() <= bound


def test_adapters_of_full_rank_evaluate_as_the_dense_model(make_run):
    run = make_run(ranks="16x3", **SLORA)
    dense = stage(run)
    result = run.run()
    accuracy, loss = evaluate(run.task, dense)
    assert result.accuracy[0] == accuracy
    assert result.loss[0] == pytest.approx(loss, rel=relative("factorization"))
    assert loss != evaluate(run.task)[1]
    for name, factors in sparse_start(dense, 16).items():
        gap = (factors.delta() - dense[name]).norm()
        assert gap <= relative("factorization") * dense[name].norm()


def test_one_client_one_step_of_sgd_is_its_masked_gradient(make_run):
    sgd = {"optimizer": "sgd", "learning_rate": 0.3, "local_steps": 1, "batch_size": 64}
    run = make_run(ranks="4x1", slora_rounds=1, slora_density=0.5, **SLORA, **sgd)
    names = run.task.target_modules
    weights = [find_linear(run.task.model, n).weight.clone().requires_grad_() for n in names]
    index = torch.from_numpy(run.samples[0])
    logits = torch.func.functional_call(
        run.task.model,
        {f"{n}.weight": w for n, w in zip(names, weights, strict=True)},
        (run.task.train.inputs["images"][index],),
    )
    loss = torch.nn.functional.cross_entropy(logits, run.task.train.labels[index])
    found = stage(run)
    for name, gradient in zip(names, torch.autograd.grad(loss, weights), strict=True):
        chosen = sparse_entries(run.seed, name, gradient.numel(), 0.5)
        wanted = torch.zeros_like(gradient).flatten()
        wanted[chosen] = -0.3 * gradient.flatten()[chosen]
        gap = (found[name].flatten() - wanted).norm()
        assert gap <= relative("training") * wanted.norm()


def test_more_rounds_continue_from_the_last(make_run):
    run = make_run(**SLORA, **LAWS["sampled"])
    one, three = stage(run, slora_rounds=1), stage(run, slora_rounds=3)
    start = evaluate(run.task)[1]
    assert all(three[name].norm() > one[name].norm() for name in one)
    assert evaluate(run.task, three)[1] != start


def test_the_model_is_unchanged(make_run, tiny_task):
    before = [p.clone() for p in tiny_task.model.parameters()]
    make_run(**SLORA).run()
    assert all(map(torch.equal, before, tiny_task.model.parameters()))


@pytest.mark.slow
def test_single_precision_starts_sparse_too():
    scenario = Scenario("2x2,8x2", fidelity="training", rounds=1, local_steps=2, **SLORA)
    run = simulate(scenario, rule="ffa", seed=0)
    assert (run.energy[0, 0] > 0).all(), "round 0 is what the sparse stage has learned"
    assert np.isfinite(run.loss).all()
    assert int(run.layer_energy[0, 0, 0].count()) == 8
