"""The shared model is never changed or trained, and is used in evaluation mode."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from network_cases import network_task, random_network
from torch import nn

from fedlora_sim.errors import InputError
from fedlora_sim.finetune.run import FederatedRun, evaluate
from fedlora_sim.finetune.stacked import attach, find_linear, frozen_copy
from fedlora_sim.tolerances import relative

MIDDLES = {
    "dropout": lambda: nn.Dropout(0.5),
    "batch norm": lambda: nn.BatchNorm1d(6),
    "both": lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3)),
}
RULES = ["raflora", "flora"]


@pytest.fixture(params=MIDDLES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    """Return a model in training mode that requires gradients and has running statistics."""
    network = random_network(MIDDLES[request.param]())
    generator = torch.Generator().manual_seed(2)
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5, generator=generator)
    return network.train()


def run_on(make_run, model: nn.Module, rule: str, **changes: object) -> FederatedRun:
    changes = {"ranks": "1x3,2x2", **changes}
    return make_run(rule, task=network_task(model, heads=("last",)), **changes)


@pytest.mark.parametrize("rule", RULES)
def test_a_run_leaves_model_and_buffers_alone(make_run, model, rule):
    before = copy.deepcopy(model.state_dict())
    wanted = [p.requires_grad for p in model.parameters()]
    result = run_on(make_run, model, rule, counterfactuals=True).run()
    assert np.isfinite(result.loss).all()
    assert model.training
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_model_in_training_mode_runs_as_in_evaluation_mode(make_run, model, rule):
    """Otherwise dropout and batch statistics would depend on the other clients of a stack."""
    trained = run_on(make_run, model, rule).run()
    stacked = run_on(make_run, model.eval().requires_grad_(False), rule).run()
    np.testing.assert_array_equal(trained.singular_values, stacked.singular_values)
    np.testing.assert_array_equal(trained.loss, stacked.loss)
    alone = run_on(make_run, model.train(), rule, stack_size=1).run()
    np.testing.assert_allclose(
        alone.singular_values, stacked.singular_values, rtol=relative("iteration")
    )


def test_nothing_is_drawn_from_torchs_own_generator(make_run, model):
    before = torch.get_rng_state()
    run_on(make_run, model, "fedavg").run()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_shares_the_memory_of_all_that_is_not_replaced(model):
    weight = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    found = frozen_copy(model, {"first.weight": weight})
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    own, other = found.state_dict(), model.state_dict()
    shared = {name for name in own if own[name].data_ptr() == other[name].data_ptr()}
    assert shared == set(other) - {"first.weight"}
    assert own["first.weight"].data_ptr() == weight.data_ptr()


def test_evaluation_changes_no_statistics(model):
    task, before = network_task(model), copy.deepcopy(model.state_dict())
    first = evaluate(task, {"first": torch.ones(6, 6, dtype=torch.float64)})
    assert evaluate(task, {"first": torch.ones(6, 6, dtype=torch.float64)}) == first
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_module_in_two_places_is_refused():
    """An adapter would sit in one of them, and the merged update in both."""
    model = random_network()
    model.middle = model.first
    adapters = {"first": (torch.zeros(1, 2, 6).double(), torch.zeros(1, 6, 2).double())}
    with pytest.raises(InputError, match=r"target_modules='first'.*\['first', 'middle'\]"):
        attach(model, adapters, [1.0])
    with pytest.raises(InputError, match="one place, not 2"):
        find_linear(model, "first")
