"""Models in which clients can share a batch; those that mix samples or are random are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from network_cases import WIDTH, Function, Network, network_task, random_network
from torch import Tensor, nn
from torch.nn import functional

from fedlora_sim.errors import InputError
from fedlora_sim.finetune.model_checks import check_isolation
from fedlora_sim.tasks.task import Examples, Task


class BatchAttention(nn.Module):
    """Attention between samples; its maps do not mix samples."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return functional.softmax(self.query(x) @ self.key(x).mT, dim=-1) @ x


class SequenceFirst(nn.Module):
    """Samples along the second axis: no map mixes them, and none distinguishes clients."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.T.unsqueeze(-1)).squeeze(-1).T


@pytest.mark.parametrize(
    ("middle", "named"),
    [
        (nn.BatchNorm1d(WIDTH, track_running_stats=False), r"'middle' \(BatchNorm1d\)"),
        (BatchAttention(), r"'middle' \(BatchAttention\)"),
        (Function(lambda x: x - x.mean(0)), r"'middle' \(Function\)"),
        (nn.Sequential(nn.Tanh(), Function(lambda x: x.roll(1, 0))), r"'middle\.1' \(Function\)"),
        (Function(lambda x: x * (x > x.max(0).values / 2)), r"'middle' \(Function\)"),
    ],
)
def test_modules_that_mix_samples_are_named(middle, named):
    task = network_task(random_network(middle))
    with pytest.raises(InputError, match=f"model='Network': expected .*do not mix.*{named}"):
        check_isolation(task)


def test_mixing_in_the_model_itself_is_named_too():
    class Whole(Network):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(0)

    model = Whole(nn.Identity()).double()
    with pytest.raises(InputError, match=r"do not mix: module '' \(Whole\)"):
        check_isolation(network_task(model))


def test_samples_that_are_not_the_first_axis_of_a_target_are_refused():
    """Its clients' adapters would meet positions instead of samples."""
    model = random_network(SequenceFirst())
    check_isolation(network_task(model))
    with pytest.raises(InputError, match=r"samples come first.*'middle\.inner' \(Linear\)"):
        check_isolation(network_task(model, ("first", "middle.inner")))


@pytest.mark.parametrize("middle", [nn.Dropout(0.5), nn.BatchNorm1d(WIDTH), nn.LayerNorm(WIDTH)])
def test_modules_that_keep_samples_apart_in_evaluation_mode_pass_and_stay(middle):
    model = random_network(middle).train()
    before = copy.deepcopy(model.state_dict())
    check_isolation(network_task(model, heads=("last",)))
    assert model.training
    assert model.middle.training
    assert not any(module._forward_hooks for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_model_that_is_random_is_refused():
    noisy = Function(lambda x: functional.dropout(x, 0.5))
    task = network_task(random_network(noisy))
    with torch.random.fork_rng(devices=[]), pytest.raises(InputError, match="model='Network'"):
        check_isolation(task)


def test_a_run_looks_at_its_model_before_anything_is_trained(make_run):
    with pytest.raises(InputError, match="model='Network'"):
        make_run(ranks="2x7", task=network_task(random_network(BatchAttention())))


def test_equal_samples_test_nothing():
    task = network_task(random_network(BatchAttention()))
    same = Examples({"x": torch.ones(4, WIDTH, dtype=torch.float64)}, torch.zeros(4).long())
    assert check_isolation(Task(task.model, same, same, ("first",))) is None
