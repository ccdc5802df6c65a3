"""The model of `plain_torch` in plain JAX, as a FedJAX user would write it. Needs only JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.rivals.exchange import Settings

Arrays = Mapping[str, Any]
LAYER_NORM_EPS = 1e-5
"""Default of PyTorch."""


def make_loss(settings: Settings, weights: Arrays) -> Callable[[Any, Arrays], Any]:
    """Return the mean cross-entropy of a batch as a function of the adapters.

    Args:
        settings: sizes and LoRA scaling.
        weights: frozen parameters with PyTorch's names and layouts.

    Returns:
        Function of adapters, module -> (A, B), and a batch with images `x` and labels `y`.
    """
    frozen = {name: jnp.asarray(x) for name, x in weights.items()}

    def linear(adapters: Any, name: str, x: Any) -> Any:
        y = x @ frozen[f"{name}.weight"].T + frozen[f"{name}.bias"]
        if name not in adapters:
            return y
        lora_a, lora_b = adapters[name]
        return y + settings.scaling * ((x @ lora_a.T) @ lora_b.T)

    def norm(name: str, x: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + LAYER_NORM_EPS)
        return x * frozen[f"{name}.weight"] + frozen[f"{name}.bias"]

    def attention(adapters: Any, name: str, x: Any) -> Any:
        heads = settings.num_heads
        query, key, value = (
            linear(adapters, f"{name}.{p}_proj", x).reshape(*x.shape[:2], heads, -1) for p in "qkv"
        )
        mixed = jax.nn.dot_product_attention(query, key, value)
        return linear(adapters, f"{name}.o_proj", mixed.reshape(x.shape))

    def loss(adapters: Any, batch: Arrays) -> Any:
        x = linear(adapters, "embed", _patches(batch["x"], settings.patch)) + frozen["positions"]
        for i in range(settings.num_layers):
            block = f"blocks.{i}"
            x = x + attention(adapters, f"{block}.attention", norm(f"{block}.norm1", x))
            hidden = jax.nn.relu(linear(adapters, f"{block}.fc1", norm(f"{block}.norm2", x)))
            x = x + linear(adapters, f"{block}.fc2", hidden)
        logits = linear(adapters, "head", norm("norm", x).mean(1))
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], axis=1)
        return -chosen.mean()

    return loss


def _patches(images: Any, patch: int) -> Any:
    side = 8 // patch
    cut = images.reshape(-1, side, patch, side, patch).transpose(0, 1, 3, 2, 4)
    return cut.reshape(-1, side * side, patch * patch)
