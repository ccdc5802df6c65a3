"""A cached prefix: equal outputs, gradients and names; refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedlora_sim.errors import InputError
from fedlora_sim.randomness import library_draws
from fedlora_sim.tasks import Examples, Task
from fedlora_sim.tasks.digits import TinyTransformer
from fedlora_sim.tasks.prefix import cache_prefix
from fedlora_sim.tasks.targets import resolve_targets, target_blocks, usual_targets
from fedlora_sim.tasks.task import logits_of
from fedlora_sim.tolerances import relative

ARCHITECTURES = ["bert", "roberta", "distilbert", "gpt2", "llama"]
TIGHT = relative("factorization", "float64")


def samples(count: int, seed: int, length: int = 12) -> Examples:
    """Return random tokens of random lengths, the longest shorter than the tensor, padded by 0."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, length - 1, (count, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    tokens = torch.randint(1, 24, (count, length), generator=generator) * mask
    labels = torch.randint(3, (count,), generator=generator)
    groups = torch.arange(count).numpy()
    return Examples({"input_ids": tokens, "attention_mask": mask}, labels, groups=groups)


@pytest.fixture
def make_task(tiny_model) -> Callable[..., Task]:
    """Return a tiny classifier of four blocks, adapted in its last ones."""

    def make(architecture: str = "bert", adapted_layers: int | None = 2, **heads: object) -> Task:
        model = tiny_model(architecture)
        targets = resolve_targets(model, usual_targets(model), adapted_layers)
        return Task(model, samples(21, 0), samples(9, 1), targets, **heads)

    return make


def gradients(task: Task, index: Tensor) -> list[Tensor]:
    """Return gradients of the loss in the adapted maps' weights, in a copy of the model."""
    model, batch = copy.deepcopy(task.model), task.train.take(index)
    weights = [model.get_submodule(name).weight.requires_grad_() for name in task.target_modules]
    losses, _ = task.objective.losses(logits_of(model, batch.inputs), batch.labels)
    return list(torch.autograd.grad(losses.sum(), weights))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers", [1, 3])
def test_same_outputs_and_gradients(make_task, architecture, layers):
    task = make_task(architecture, layers)
    cached = cache_prefix(task, batch_size=4)
    for index in (torch.arange(9), torch.tensor([3]), torch.tensor([8, 0, 5])):
        whole, short = task.test.take(index), cached.test.take(index)
        assert short.inputs["prefix"].shape == (*short.inputs["input_ids"].shape, 16)
        torch.testing.assert_close(
            logits_of(cached.model, short.inputs),
            logits_of(task.model, whole.inputs),
            rtol=TIGHT,
            atol=TIGHT,
        )
        for found, exact in zip(gradients(cached, index), gradients(task, index), strict=True):
            torch.testing.assert_close(found, exact, rtol=TIGHT, atol=TIGHT * exact.norm().item())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_blocks_are_gone_and_not_computed(make_task, architecture):
    task = make_task(architecture)
    cached = cache_prefix(task)
    whole, kept = dict(task.model.named_parameters()), dict(cached.model.named_parameters())
    frozen = target_blocks(task.model, task.target_modules)[:2]
    for name, parameter in whole.items():
        if name.startswith(tuple(f"{block}." for block in frozen)):
            assert name not in kept
        else:
            assert kept[name] is parameter
    prefix = cached.train.inputs["prefix"]
    assert prefix.is_contiguous()
    assert not prefix.is_inference()
    assert not prefix.requires_grad
    assert torch.equal(cached.train.labels, task.train.labels)
    assert cached.train.groups is task.train.groups


def test_an_adapter_changes_the_resumed_model_as_the_whole_one(make_task):
    task = make_task()
    cached = cache_prefix(task)
    models = [copy.deepcopy(t.model) for t in (task, cached)]
    for model in models:
        for name in task.target_modules:
            model.get_submodule(name).weight.data *= 1.5
    parts = [t.train.take(torch.arange(21)).inputs for t in (task, cached)]
    whole, resumed = (logits_of(m, x) for m, x in zip(models, parts, strict=True))
    torch.testing.assert_close(resumed, whole, rtol=TIGHT, atol=TIGHT)
    assert (whole - logits_of(task.model, parts[0])).norm() > 0.01 * whole.norm()


def test_the_task_is_unchanged(make_task):
    task = make_task()
    names = [name for name, _ in task.model.named_modules()]
    before = logits_of(task.model, task.test.inputs)
    cache_prefix(task)
    assert [name for name, _ in task.model.named_modules()] == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in task.model.modules())
    assert set(task.train.inputs) == {"input_ids", "attention_mask"}
    torch.testing.assert_close(logits_of(task.model, task.test.inputs), before, rtol=0, atol=0)


def test_moves_and_narrows_with_its_task(make_task):
    cached = cache_prefix(make_task()).to(torch.device("cpu"), torch.float32)
    assert cached.train.inputs["prefix"].dtype == torch.float32
    assert logits_of(cached.model, cached.test.take(torch.arange(4)).inputs).dtype == torch.float32


def test_samples_without_padding():
    generator = torch.Generator().manual_seed(0)
    model = TinyTransformer(generator, d_model=16, num_layers=3, num_heads=2)
    images = torch.rand(30, 8, 8, generator=generator)
    labels = torch.randint(10, (30,), generator=generator)
    part = Examples({"images": images}, labels)
    task = Task(model.requires_grad_(False), part, part, resolve_targets(model, ("fc1",), 1))
    cached = cache_prefix(task, batch_size=7)
    assert cached.train.inputs["prefix"].shape == (30, 4, 16)
    torch.testing.assert_close(
        logits_of(cached.model, cached.train.inputs),
        logits_of(model, part.inputs),
        rtol=relative("factorization", "float32"),
        atol=relative("factorization", "float32"),
    )


class Blocks(nn.Module):
    """Residual maps, the first of them before a list of blocks; blocks may be run in any order."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        with library_draws(0):
            self.embed = nn.Linear(4, 4)
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.order = order
        self.double().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i in self.order:
            x = x + torch.tanh(self.blocks[i](x))
        return x.mean(1)


def blocks_task(model: nn.Module, targets: tuple[str, ...], **heads: object) -> Task:
    x = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part = Examples({"x": x}, torch.arange(5) % 3)
    return Task(model, part, part, targets, **heads)


class Block(nn.Linear):
    """A residual map with a setting that the model looks up; returns a tuple."""

    scale: float

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + torch.tanh(super().forward(x)), None


class LooksUp(Blocks):
    """A model that asks its blocks for their settings and takes tuples from them."""

    def __init__(self) -> None:
        super().__init__()
        for i, old in enumerate(self.blocks):
            self.blocks[i] = Block(4, 4)
            self.blocks[i].load_state_dict(old.state_dict())
            self.blocks[i].scale = i + 1.0
        self.double().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        total = 0.0
        for block in self.blocks:
            x, _ = block(x)
            total += block.scale
        return total * x.mean(1)


def test_blocks_with_settings_that_return_tuples():
    task = blocks_task(LooksUp(), ("blocks.2",))
    cached = cache_prefix(task)
    found, exact = (logits_of(t.model, t.train.inputs) for t in (cached, task))
    torch.testing.assert_close(found, exact, rtol=TIGHT, atol=TIGHT)
    assert len(list(cached.model.parameters())) == len(list(task.model.parameters())) - 4


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: blocks_task(Blocks(), ("blocks.0",)), "a frozen block before the first of"),
        (lambda: blocks_task(Blocks(), ("embed",)), "a frozen block .*: set adapted_layers"),
        (lambda: blocks_task(Blocks(), ("embed", "blocks.2")), "nothing adapted before blocks.1"),
        (
            lambda: blocks_task(Blocks(), ("blocks.2",), head_modules=("embed",)),
            r"nothing adapted before blocks.1, unlike \['embed'\]",
        ),
        (
            lambda: blocks_task(Blocks(), ("blocks.2",), head_modules=("blocks.0",)),
            "a frozen block before the first",
        ),
        (lambda: blocks_task(Blocks((2, 0, 1)), ("blocks.2",)), "nothing adapted before blocks.1"),
        (lambda: blocks_task(Blocks((0, 1, 1, 2)), ("blocks.2",)), "runs each of .* once"),
        (lambda: blocks_task(Blocks((0, 2)), ("blocks.2",)), "runs each of .* once"),
        # Residual sums are outside of the blocks: a block does not return the hidden state.
        (lambda: blocks_task(Blocks(), ("blocks.2",)), "outputs differ by"),
    ],
)
def test_refusals(task, message):
    with pytest.raises(InputError, match=f"^cache_prefix=True: expected .*{message}"):
        cache_prefix(task())


def test_a_whole_model_adapted_has_no_prefix(make_task):
    with pytest.raises(InputError, match=r"^cache_prefix=True: .*set adapted_layers"):
        cache_prefix(make_task(adapted_layers=None))
