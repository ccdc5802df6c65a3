"""A federation of three clients with ranks 4, 8 and 16, for `flower_app.py` and `nvflare_job.py`.

The initial adapter has 60% of its energy above rank 4.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from fedlora_sim.randomness import library_draws

RANKS, ALPHA, WIDTH = (4, 8, 16), 16, 48
ENERGIES = (1.0,) * 4 + (0.76,) * 4 + (0.37,) * 8
"""Energy of each rank component of the initial adapter."""
SAMPLES = 64
NAME = "base_model.model.0.lora_{}.weight"


def adapted_model(rank: int) -> torch.nn.Module:
    """Return a small network with LoRA on one layer."""
    with library_draws(0):  # torch initializes layers from its global generator
        base = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 1))
        return get_peft_model(base, LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=["0"]))


def initial_adapter() -> dict[str, Tensor]:
    """Return an adapter of rank 16 whose rank components are its singular vectors."""
    rng = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(WIDTH, 16, generator=rng))[0] for _ in range(2))
    root = torch.tensor(ENERGIES) ** 0.25  # B and A have half of an amplitude each
    factors = {NAME.format("A"): (root * v).T, NAME.format("B"): u * root}
    return {key: factor.contiguous() for key, factor in factors.items()}


class GlobalAdapter(torch.nn.Module):
    """The initial adapter as a module, from which NVFlare's server takes it."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the adapter under PEFT's keys."""
        return initial_adapter()


def train_locally(
    adapter: dict[str, Tensor],
    correction: dict[str, Tensor],
    client: int,
    steps: int,
    *,
    frozen_a: bool = False,
) -> dict[str, Tensor]:
    """Return a client's adapter after steps of gradient descent on its own samples.

    Args:
        adapter: the adapter of the client's rank.
        correction: what the rule has moved into the base weights; empty for most rules.
        client: its number.
        steps: number of steps.
        frozen_a: train B only, for the rule `ffa`.
    """
    model = adapted_model(RANKS[client])
    if correction:
        a, b = (correction[NAME.format(factor)] for factor in "AB")
        model.base_model.model[0].base_layer.weight.data += ALPHA / len(a) * b @ a
    loaded = set_peft_model_state_dict(model, adapter)
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    rng = torch.Generator().manual_seed(client)
    inputs = torch.randn(SAMPLES, WIDTH, generator=rng)
    frozen = "lora_A" if frozen_a else "base_layer"
    trained = [x for name, x in model.named_parameters() if "lora_" in name and frozen not in name]
    optimizer = torch.optim.SGD(trained, lr=0.002)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True)).backward()
        optimizer.step()
    return get_peft_model_state_dict(model)
