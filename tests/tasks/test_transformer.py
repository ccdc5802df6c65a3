"""The classifier: deterministic from its generator, patches in order, targets by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlora_sim.errors import InputError
from fedlora_sim.tasks.digits import TinyTransformer, _patches


def build(seed: int = 0, **options) -> TinyTransformer:
    return TinyTransformer(torch.Generator().manual_seed(seed), **options)


def test_generator_decides_the_weights_and_the_global_one_is_left_alone():
    before = torch.get_rng_state()
    first, second, other = build(), build(), build(1)
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("patch", [(4, 4), (2, 2), (1, 8), (8, 1), (2, 4)])
def test_patches_are_blocks_of_the_image(patch: tuple[int, int]):
    image = torch.arange(64.0).view(1, 8, 8)
    tokens = _patches(image, patch)
    rows, columns = patch
    expected = [
        image[0, i : i + rows, j : j + columns].flatten()
        for i in range(0, 8, rows)
        for j in range(0, 8, columns)
    ]
    assert torch.equal(tokens[0], torch.stack(expected))
    assert build(patch=patch)(image).shape == (1, 10)


def test_all_targets_are_separate_linear_modules():
    modules = dict(build().named_modules())
    for block in range(2):
        for name in ("attention.q_proj", "attention.k_proj", "attention.v_proj", "fc1", "fc2"):
            assert isinstance(modules[f"blocks.{block}.{name}"], nn.Linear)


def test_images_do_not_influence_each_other():
    model, images = build().double(), torch.rand(3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads=3"),
        ({"patch": (3, 2)}, "patch"),
        ({"num_heads": 0}, "num_heads=0"),
    ],
)
def test_bad_input(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        build(**options)
