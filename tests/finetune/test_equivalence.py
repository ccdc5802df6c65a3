"""Stacked adapters equal merged weights, or the model is refused."""

from __future__ import annotations

import pytest
import torch
from network_cases import CLASSES, WIDTH, network_task, random_network
from torch import Tensor, nn

from fedlora_sim.errors import InputError
from fedlora_sim.finetune.model_checks import check_equivalence, check_isolation
from fedlora_sim.randomness import library_draws
from fedlora_sim.tasks.task import MASK, Examples, Task

LENGTH, WORDS = 6, 9


class Scaled(nn.Linear):
    """A linear map by type that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class Reader(nn.Module):
    """Uses a map's weight without calling the map."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.inner.weight.mT


class Positions(nn.Module):
    """Maps a tensor shared by all samples, with as many rows as the trial has samples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.table = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(6, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.table).sum(0)


class Sequences(nn.Module):
    """Any module between an embedding and a classifier of the mean over positions."""

    def __init__(self, middle: nn.Module, *, masked: bool = True) -> None:
        super().__init__()
        self.embed, self.middle = nn.Embedding(WORDS, WIDTH), middle
        self.last, self.masked = nn.Linear(WIDTH, CLASSES), masked

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.middle(self.embed(tokens))
        found = found[0] if isinstance(found, tuple) else found
        seen = attention_mask if self.masked else torch.ones_like(attention_mask)
        seen = seen.unsqueeze(-1).to(found)
        return self.last((found * seen).sum(1) / seen.sum(1))


class SelfAttention(nn.MultiheadAttention):
    """Self-attention."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x, need_weights=False)[0]


def middle_task(middle: nn.Module, *targets: str) -> Task:
    """Return the network with this module between its maps and new random parameters."""
    return network_task(random_network(middle).requires_grad_(False), targets, heads=("last",))


def sequence_task(middle: nn.Module, *targets: str, full: bool = True, masked: bool = True) -> Task:
    """Return a task of twelve sequences of lengths 1 to 6, or all of full length."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(WORDS, (12, LENGTH), generator=generator)
    length = torch.full((12,), LENGTH) if full else 1 + torch.arange(12) % LENGTH
    mask = (torch.arange(LENGTH) < length[:, None]).long()
    part = Examples({"tokens": tokens, MASK: mask}, torch.arange(12) % CLASSES)
    with library_draws(0):
        model = Sequences(middle, masked=masked).double().eval().requires_grad_(False)
    return Task(model, part, part, targets, ("last",))


def encoder() -> nn.Module:
    """Return torch's encoder block, whose fast path reads the weights of its maps."""
    block = nn.TransformerEncoderLayer(WIDTH, 2, 12, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(block, 1)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: middle_task(Scaled(WIDTH, WIDTH), "first", "middle"), r"'middle' \(Scaled\)"),
        (lambda: middle_task(Reader(), "first", "middle.inner"), r"'middle\.inner' \(Linear\)"),
        (lambda: middle_task(Positions(), "first", "middle.inner"), r"'middle\.inner' \(Linear\)"),
        (
            lambda: sequence_task(encoder(), "middle.layers.0.linear1"),
            r"'middle\.layers\.0\.linear1' \(Linear\)",
        ),
        (
            lambda: sequence_task(SelfAttention(WIDTH, 2, batch_first=True), "middle.out_proj"),
            r"'middle\.out_proj'",
        ),
    ],
    ids=["own forward", "read", "positions", "fast path", "attention"],
)
def test_a_target_that_is_not_called_as_a_linear_map_is_named(make, named):
    with pytest.raises(InputError, match=f"calls its targets as plain linear maps.*not so {named}"):
        check_equivalence(make())


def test_a_target_with_a_hook_is_refused():
    model = random_network().requires_grad_(False)
    model.first.register_forward_hook(lambda module, x, y: y.clamp(-0.1, 0.1))
    with pytest.raises(InputError, match="'first'"):
        check_equivalence(network_task(model))


def test_a_model_that_looks_at_padding_is_refused():
    check_equivalence(sequence_task(nn.Linear(WIDTH, WIDTH), "middle", full=False))
    blind = sequence_task(nn.Linear(WIDTH, WIDTH), "middle", full=False, masked=False)
    with pytest.raises(InputError, match="leaves out what attention_mask calls padding"):
        check_equivalence(blind)
    check_equivalence(sequence_task(nn.Linear(WIDTH, WIDTH), "middle", masked=False))


def test_samples_that_meet_only_those_before_them_are_found():
    """As if batch_first were forgotten: only the first sample is right."""
    task = sequence_task(nn.LSTM(WIDTH, WIDTH), "last")
    with pytest.raises(InputError, match="model='Sequences'"):
        check_isolation(task)


@pytest.mark.parametrize("heads", [(), ("last",)])
def test_plain_models_pass_and_are_unchanged(heads):
    model = random_network(nn.Tanh())
    before = {name: x.clone() for name, x in model.state_dict().items()}
    check_equivalence(network_task(model, heads=heads))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_a_run_tries_its_model_before_anything_is_trained(make_run):
    with pytest.raises(InputError, match="not so 'middle'"):
        make_run(ranks="2x7", task=middle_task(Scaled(WIDTH, WIDTH), "middle"))


def test_targets_that_cannot_be(make_run):
    with pytest.raises(InputError, match=r"target_modules=\(\)"):
        make_run(task=network_task(random_network(), ()))
    with pytest.raises(InputError, match="ranks=8: expected ranks up to 6, what target 'first'"):
        make_run(task=network_task(random_network()))
    with pytest.raises(InputError, match="head_modules='middle'"):
        make_run(ranks="2x7", task=network_task(random_network(), heads=("middle",)))
