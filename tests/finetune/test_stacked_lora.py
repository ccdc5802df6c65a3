"""Stacked adapters: the same outputs and gradients as one client at a time, padding inert."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fedlora_sim.errors import InputError
from fedlora_sim.finetune.stacked import (
    StackedLoRALinear,
    _Adapted,
    attach,
    find_linear,
    stacked_modules,
)
from fedlora_sim.tolerances import relative

RANKS = [1, 3, 4, 2]
SCALING = [1.0, 0.5, 4.0, 16.0]


def assert_same(actual: torch.Tensor, expected: torch.Tensor, kind: str = "reduction") -> None:
    assert (actual - expected).norm() <= relative(kind) * expected.norm()


def client_loss(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images).square().mean()


def test_output_is_that_of_the_merged_weights(tiny_task, make_adapters):
    adapters, images = make_adapters(RANKS), tiny_task.train.inputs["images"][:12]
    stacked = attach(tiny_task.model, adapters, SCALING)(images)
    for k, rank in enumerate(RANKS):
        merged = copy.deepcopy(tiny_task.model)
        for name, (lora_A, lora_B) in adapters.items():
            delta = SCALING[k] * lora_B[k, :, :rank] @ lora_A[k, :rank]
            find_linear(merged, name).weight.add_(delta)
        assert_same(stacked[3 * k : 3 * k + 3], merged(images[3 * k : 3 * k + 3]), "factorization")


def test_one_backward_pass_gives_every_client_its_own_gradient(tiny_task, make_adapters):
    adapters, images = make_adapters(RANKS), tiny_task.train.inputs["images"][:12]
    stacked = attach(tiny_task.model, adapters, SCALING)
    stacked(images).view(4, -1).square().mean(dim=1).sum().backward()
    for k, rank in enumerate(RANKS):
        own = {n: (A[k : k + 1, :rank], B[k : k + 1, :, :rank]) for n, (A, B) in adapters.items()}
        single = attach(tiny_task.model, own, SCALING[k : k + 1])
        client_loss(single, images[3 * k : 3 * k + 3]).backward()
        for name in tiny_task.target_modules:
            together, alone = stacked.get_submodule(name), single.get_submodule(name)
            assert_same(together.lora_A.grad[k, :rank], alone.lora_A.grad[0], "factorization")
            assert_same(together.lora_B.grad[k, :, :rank], alone.lora_B.grad[0], "factorization")


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(3)
    shapes = {"x": (2, 3, 5), "weight": (4, 5), "bias": (4,), "lora_A": (2, 2, 5)}
    shapes |= {"lora_B": (2, 4, 2)}
    values = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    for name in ("x", "lora_A", "lora_B"):
        values[name].requires_grad_()
    scaling = torch.tensor([0.5, 16.0], dtype=torch.float64)[:, None, None]
    assert torch.autograd.gradcheck(_Adapted.apply, (*values.values(), scaling))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01, fused=True),
    ],
)
def test_padding_stays_exactly_zero(tiny_task, make_adapters, optimizer, dtype):
    adapters = {n: (A.to(dtype), B.to(dtype)) for n, (A, B) in make_adapters(RANKS).items()}
    base = copy.deepcopy(tiny_task.model).to(dtype)
    model = attach(base, adapters, SCALING)
    rule = optimizer([p for p in model.parameters() if p.requires_grad])
    for _ in range(3):
        rule.zero_grad()
        client_loss(model, tiny_task.train.inputs["images"][:12].to(dtype)).backward()
        for name in tiny_task.target_modules:
            layer = model.get_submodule(name)
            for k, rank in enumerate(RANKS):
                assert not layer.lora_A.grad[k, rank:].any()
                assert not layer.lora_B.grad[k, :, rank:].any()
                assert layer.lora_A.grad[k, :rank].any()
        rule.step()
    for name in tiny_task.target_modules:
        layer = model.get_submodule(name)
        for k, rank in enumerate(RANKS):
            assert not layer.lora_A[k, rank:].any()
            assert not layer.lora_B[k, :, rank:].any()


def test_attach_leaves_the_model_and_the_adapters_alone(tiny_task, make_adapters):
    adapters = make_adapters(RANKS)
    before = copy.deepcopy((tiny_task.model.state_dict(), adapters))
    model = attach(tiny_task.model, adapters, SCALING)
    wanted = [p for p in model.parameters() if p.requires_grad]
    assert len(wanted) == 2 * len(tiny_task.target_modules)
    client_loss(model, tiny_task.train.inputs["images"][:12]).backward()
    torch.optim.SGD(wanted, lr=1.0).step()
    assert isinstance(tiny_task.model.get_submodule("blocks.0.fc1"), nn.Linear)
    for name, tensor in tiny_task.model.state_dict().items():
        assert torch.equal(tensor, before[0][name])
    for name, factors in adapters.items():
        assert all(map(torch.equal, factors, before[1][name]))
    assert model.head.weight.data_ptr() == tiny_task.model.head.weight.data_ptr()


def test_keep_first_shares_memory(tiny_task, make_adapters):
    model = attach(tiny_task.model, make_adapters(RANKS), SCALING)
    layer = model.get_submodule("blocks.0.fc1")
    whole = layer.lora_A
    layer.keep_first(2)
    with torch.no_grad():
        layer.lora_A.zero_()
    assert not whole[:2].any()
    assert whole[2:].any()
    assert layer(torch.rand(2, 16, dtype=torch.float64)).shape == (2, 32)


def test_input_must_divide_among_the_clients(tiny_task, make_adapters):
    model = attach(tiny_task.model, make_adapters(RANKS), SCALING)
    with pytest.raises(InputError, match="multiple of 4"):
        model(tiny_task.train.inputs["images"][:6])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.0.attention.q_prj", "closest is 'blocks.0.attention.q_proj'"),
        ("blocks.0.norm1", r"target_modules='blocks\.0\.norm1'"),
    ],
)
def test_unknown_target(tiny_task, make_adapters, name: str, message: str):
    adapters = {name: make_adapters(RANKS)["blocks.0.fc1"]}
    with pytest.raises(InputError, match=message):
        attach(tiny_task.model, adapters, SCALING)


def test_modules_without_adapter_are_unchanged(tiny_task, make_adapters):
    adapters = make_adapters(RANKS)
    adapters.pop("blocks.0.fc1")
    model = attach(tiny_task.model, adapters, SCALING)
    assert set(stacked_modules(model)) == set(adapters)
    assert type(model.get_submodule("blocks.0.fc1")) is nn.Linear


@pytest.mark.parametrize(
    ("lora_A", "lora_B", "scaling", "message"),
    [
        ((2, 3, 5), (2, 7, 3), (2,), "lora_A=(2, 3, 5)"),
        ((3, 6), (7, 3), (1,), "lora_A=(3, 6)"),
        ((2, 3, 6), (2, 7, 2), (2,), "lora_B=(2, 7, 2)"),
        ((2, 3, 6), (2, 7, 3), (3,), "scaling=(3,)"),
    ],
)
def test_shapes_must_fit(lora_A, lora_B, scaling, message: str):
    base = nn.Linear(6, 7)
    with pytest.raises(InputError, match="expected shape") as caught:
        StackedLoRALinear(base, torch.zeros(lora_A), torch.zeros(lora_B), torch.ones(scaling))
    assert message in str(caught.value)


def test_dtypes_must_fit():
    factors = torch.zeros(1, 2, 6).double(), torch.zeros(1, 7, 2).double()
    with pytest.raises(InputError, match=r"lora_A=torch\.float64"):
        StackedLoRALinear(nn.Linear(6, 7), *factors, torch.ones(1))
