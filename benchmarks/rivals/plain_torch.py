"""The model in plain PyTorch, as a Flower or pfl-research user would write it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.rivals.exchange import Adapters, Exchange, Settings


class LoRALinear(nn.Module):
    """A frozen linear map and its adapter, as in PEFT: `y = base(x) + scaling * B(A(x))`."""

    def __init__(self, base: nn.Linear, rank: int, scaling: float) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_empty(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = functional.linear(x, self.lora_A)
        return self.base(x) + self.scaling * functional.linear(low, self.lora_B)


class Attention(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(d, d), nn.Linear(d, d)
        self.v_proj, self.o_proj = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, d: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Attention(d, heads)
        self.fc1, self.fc2 = nn.Linear(d, hidden), nn.Linear(hidden, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(functional.relu(self.fc1(self.norm2(x))))


class Classifier(nn.Module):
    """Pre-norm transformer on square patches of 8x8 images."""

    def __init__(self, settings: Settings, hidden: int, classes: int) -> None:
        super().__init__()
        d, self.patch = settings.d_model, settings.patch
        self.embed = nn.Linear(self.patch**2, d)
        self.positions = nn.Parameter(torch.zeros((8 // self.patch) ** 2, d))
        self.blocks = nn.ModuleList(
            Block(d, settings.num_heads, hidden) for _ in range(settings.num_layers)
        )
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, classes)

    def forward(self, images: Tensor) -> Tensor:
        side, patch = 8 // self.patch, self.patch
        cut = images.reshape(-1, side, patch, side, patch).transpose(2, 3)
        x = self.embed(cut.reshape(-1, side * side, patch * patch)) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        return functional.cross_entropy(self(images), labels)


def build(exchange: Exchange) -> Classifier:
    """Return the frozen model with the initial adapters, the only trainable parameters."""
    hidden, classes = len(exchange.weights["blocks.0.fc1.bias"]), len(exchange.weights["head.bias"])
    model = Classifier(exchange.settings, hidden, classes)
    model.to(getattr(torch, exchange.settings.dtype)).requires_grad_(False)
    model.load_state_dict({name: torch.from_numpy(x) for name, x in exchange.weights.items()})
    for name, (lora_a, _) in exchange.adapters.items():
        parent, _, leaf = name.rpartition(".")
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        adapted = LoRALinear(base, len(lora_a), exchange.settings.scaling)
        setattr(model.get_submodule(parent), leaf, adapted)
    write_adapters(model, exchange.adapters)
    return model


def write_adapters(model: Classifier, adapters: Adapters) -> None:
    """Copy adapters into the model."""
    with torch.no_grad():
        for name, (lora_a, lora_b) in adapters.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, LoRALinear)
            layer.lora_A.copy_(torch.from_numpy(lora_a))
            layer.lora_B.copy_(torch.from_numpy(lora_b))


def read_adapters(model: Classifier) -> Adapters:
    """Return copies of the model's adapters."""
    return {
        name: (_copy(layer.lora_A), _copy(layer.lora_B))
        for name, layer in model.named_modules()
        if isinstance(layer, LoRALinear)
    }


def trained_parameters(model: Classifier) -> list[nn.Parameter]:
    """Return the trainable parameters."""
    return [p for p in model.parameters() if p.requires_grad]


def _copy(x: Tensor) -> NDArray[Any]:
    return x.detach().numpy().copy()


def train(
    model: Classifier,
    settings: Settings,
    images: Tensor,
    labels: Tensor,
    batches: NDArray[np.int64],
) -> None:
    """Train on these batches, (steps, b), starting at the model's adapters."""
    optimizer = torch.optim.SGD(
        trained_parameters(model), lr=settings.learning_rate, momentum=settings.momentum
    )
    for batch in torch.from_numpy(batches):
        optimizer.zero_grad()
        model.loss(images[batch], labels[batch]).backward()
        optimizer.step()
