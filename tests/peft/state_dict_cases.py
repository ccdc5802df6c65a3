"""Shared by the tests of state dicts: small ones, and comparison with an adapter folder."""

from __future__ import annotations

import math

import torch
from safetensors.torch import load_file

from fedlora_sim.peft import AdapterFolder

ALPHA = 12
KEY = "base_model.model.layer.lora_{}.weight"


def states(folders):
    return [load_file(folder / "adapter_model.safetensors") for folder in folders]


def client(rank, seed=0, d_in=9, d_out=7, dtype=torch.float64):
    """Return the state dict of a model with one LoRA layer."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {"A": (rank, d_in), "B": (d_out, rank)}
    return {
        KEY.format(factor): torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
        for factor, shape in shapes.items()
    }


def product(state, alpha=ALPHA, key=KEY):
    a, b = state[key.format("A")].double(), state[key.format("B")].double()
    return alpha / a.shape[0] * b @ a


def assert_bits_of_folder(state, folder, alpha, *, use_rslora=False, frozen_a=False):
    """Check that a state dict is the adapter of a folder, in the scaling of `alpha`."""
    folder = AdapterFolder(folder)
    assert set(state) == set(folder.keys)
    for module, layer in folder.layers.items():
        a, b = folder.tensor(layer.key_A), folder.tensor(layer.key_B)
        rank = a.shape[0] // layer.experts
        scaling = alpha / (math.sqrt(rank) if use_rslora else rank)
        ratio = folder.config.scaling_of(module) / scaling
        a0, b0 = a, b
        no_a = (a == 0).flatten(1).all(1)
        no_b = (b == 0).movedim(1, 0).flatten(1).all(1)
        on_a, on_b = (1.0, ratio) if frozen_a else (math.sqrt(ratio),) * 2
        a, b = a * on_a, b * on_b
        if layer.experts == 1:  # a component without energy is drawn in its final size
            a[no_b], b[:, no_a] = a0[no_b], b0[:, no_a]
        assert torch.equal(state[layer.key_A], a), module
        assert torch.equal(state[layer.key_B], b), module
    for key in folder.extras:
        assert torch.equal(state[key], folder.tensor(key))
