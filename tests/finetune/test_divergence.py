"""Clients whose training is not finite: refused by name, or left out without side effects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from local_training_cases import local_training

from fedlora_sim.errors import InputError
from fedlora_sim.finetune import slora
from fedlora_sim.finetune.batches import client_streams, plan_batches
from fedlora_sim.finetune.local import Stack, find_divergence, train_on_plan
from fedlora_sim.tasks.task import Examples
from fedlora_sim.tolerances import relative

RANKS = [3, 1, 4, 2, 4]
BAD = 2
"""The client with damaged data."""
DROP = {"nonfinite": "drop-client", "batch_size": 16}
CONFIGS = {
    "sgd": local_training("sgd", 0.02, momentum=0.9, local_epochs=2, batch_size=16),
    "adam": local_training("adam", 0.02, local_epochs=2, batch_size=16, max_grad_norm=0.5),
}


def spoilt(task, samples, value: float = torch.nan):
    """Return the task with the images of these samples at a value."""
    images = task.train.inputs["images"].clone()
    images[samples] = value
    return replace(task, train=Examples({"images": images}, task.train.labels))


def spoilt_clients(run, *clients: int):
    """Return the run's task without a finite image of these clients."""
    return spoilt(run.task, np.concatenate([run.samples[k] for k in clients]))


@pytest.mark.parametrize("seed", range(4))
def test_the_refusal_names_client_round_step_and_layer(make_run, seed):
    """One image is damaged; the step is the client's first batch with it."""
    run = make_run(seed=seed, batch_size=2, local_steps=None)
    sample = run.samples[BAD][-1]
    streams = client_streams(seed, 0, [BAD])
    plan = plan_batches([run.samples[BAD]], streams, batch_size=2, local_epochs=1)
    step = int((plan.index[:, 0] == sample).any(axis=1).argmax())
    where = rf"client {BAD} diverged in round 1 at step {step} in blocks\.0\.attention\.q_proj"
    with pytest.raises(InputError, match=where) as caught:
        make_run(seed=seed, task=spoilt(run.task, [sample]), batch_size=2, local_steps=None).run()
    assert str(caught.value).startswith("learning_rate=0.001: expected a rate at which training")
    assert str(caught.value).endswith("or nonfinite='drop-client'")


@pytest.mark.parametrize("layer", ["blocks.0.attention.v_proj", "blocks.0.fc1", "blocks.0.fc2"])
def test_the_layer_is_the_first_that_overflows(tiny_task, make_adapters, cohort_samples, layer):
    adapters = make_adapters(RANKS)
    lora_a, lora_b = adapters[layer]
    adapters[layer] = (lora_a * 1e160, lora_b * 1e160)
    stack = Stack(adapters, torch.ones(5), rates=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    plan = plan_batches(cohort_samples, client_streams(0, 0, range(5)), batch_size=4, local_steps=2)
    found = find_divergence(tiny_task, stack, plan, CONFIGS["sgd"], 3, 17)
    assert (found.client, found.step, found.layer, found.learning_rate) == (17, 0, layer, 4.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e200])
def test_one_clients_nan_touches_no_bit_of_another(
    tiny_task, make_adapters, cohort_samples, name, value
):
    """For any padding of the others' batches and any place in the data."""
    stack = Stack(make_adapters(RANKS), torch.ones(5))
    plan = plan_batches(
        cohort_samples, client_streams(0, 0, range(5)), batch_size=16, local_epochs=2
    )
    for bad in range(5):
        task = spoilt(tiny_task, cohort_samples[bad], value)
        clean = train_on_plan(tiny_task, stack, plan, CONFIGS[name])
        found = train_on_plan(task, stack, plan, CONFIGS[name])
        others = np.delete(np.arange(5), bad)
        assert found.finite.tolist() == [k != bad for k in range(5)]
        assert torch.equal(found.losses[:, others], clean.losses[:, others])
        for module, pair in clean.adapters.items():
            for actual, wanted in zip(found.adapters[module], pair, strict=True):
                assert torch.equal(actual[others], wanted[others])


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["raflora", "hetlora", "flora"])
def test_a_round_without_the_client_is_one_that_it_took_no_part_in(make_run, rule):
    run = make_run(rule)
    dropping = make_run(rule, task=spoilt_clients(run, BAD), **DROP)
    absent = make_run(rule, **DROP)
    absent.cohorts = [(np.delete(k, BAD), np.delete(drawn, BAD)) for k, drawn in absent.cohorts]
    kept, wanted = dropping.train(0), absent.train(0)
    assert kept.weights[kept.kept].tolist() == wanted.weights.tolist()
    for name, updates in wanted.updates.items():
        for update, other in zip(kept.updates[name], updates, strict=True):
            assert torch.equal(update.lora_A, other.lora_A)
            assert torch.equal(update.lora_B, other.lora_B)
    first, second = dropping.run(), absent.run()
    np.testing.assert_allclose(
        first.singular_values, second.singular_values, rtol=relative("iteration")
    )


def test_the_measures_record_dropped_clients(make_run):
    run = make_run()
    result = make_run(task=spoilt_clients(run, BAD, 5), counterfactuals=True, **DROP).run()
    out = np.isin(np.arange(7), (BAD, 5))
    assert (result.dropped[1:] == out).all()
    assert not result.dropped[0].any()
    assert (result.cohort[1:] == np.arange(7)).all()
    assert (result.client_weight[1:, out] == 0).all()
    np.testing.assert_allclose(result.client_weight[1:].sum(1), 1.0, rtol=relative("reduction"))
    for name in ("update_energy", "client_preservation"):
        measured = getattr(result, name)
        assert np.isnan(measured[:, :, out]).all()
        assert np.isfinite(measured[2:, :, ~out]).all()
    assert np.isnan(result.amplitude[:, :, out]).all()
    for name in ("loss", "accuracy"):
        assert np.isfinite(getattr(result, name)).all()
    assert np.isfinite(result.counterfactual_energy[1:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pruned", "importance", "heads", "sampled"])
def test_runs_of_every_kind_continue_without_the_client(make_run, tiny_task, kind):
    changes = {
        "pruned": {"pruning_decay": 0.6, "pruning_penalty": 5.0, "learning_rate": 0.03},
        "importance": {"allocation": "importance"},
        "heads": {},
        "sampled": {"cohort_size": 3, "sampling": "with_replacement"},
    }[kind]
    run = make_run(**changes)
    task = spoilt_clients(run, BAD)
    if kind == "heads":
        task = replace(task, head_modules=("head",))
    dropping = make_run(task=task, **changes, **DROP)
    result = dropping.run()
    assert np.isfinite(result.loss).all()
    assert result.dropped.any()
    assert (result.dropped == (result.cohort == BAD)).all()
    assert (result.client_rank[:, BAD] == run.scenario.ranks[BAD]).all()
    for parts in dropping.state.heads.values():
        assert all(torch.isfinite(x).all() for x in parts)


def test_a_round_without_clients_ends_the_run(make_run):
    run = make_run()
    task = spoilt_clients(run, *range(7))
    with pytest.raises(InputError, match=r"client 0 diverged .*all the others too\)$"):
        make_run(task=task, **DROP).run()


def test_a_sparse_stage_that_diverges_is_refused_by_name(make_run):
    run = make_run()
    where = rf"client {BAD} diverged in round 1 at step 0 in blocks\.0\.attention\.q_proj, in SLoRA"
    with pytest.raises(InputError, match=rf"^learning_rate=0\.001: .*{where}") as caught:
        make_run(initializer="slora", task=spoilt_clients(run, BAD))
    assert str(caught.value).endswith("'s sparse stage), or nonfinite='drop-client'")
    with pytest.raises(InputError, match=r"learning_rate=1e\+200"):
        make_run(initializer="slora", optimizer="sgd", learning_rate=1e200, **DROP)


def test_a_sparse_stage_continues_without_the_client(make_run, monkeypatch):
    """As if the client had not taken part."""
    task = spoilt_clients(make_run(), BAD)
    found = make_run(initializer="slora", task=task, **DROP)
    everybody = slora.draw_cohorts

    def without_it(*given):
        return everybody(*given) * (np.arange(7) != BAD)

    monkeypatch.setattr(slora, "draw_cohorts", without_it)
    wanted = make_run(initializer="slora", **DROP)
    for name, adapter in wanted.state.adapters.items():
        assert adapter.norm() > 0
        assert torch.equal(found.state.adapters[name].delta(), adapter.delta())
    assert np.isfinite(found.run().loss).all()
