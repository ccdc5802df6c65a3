"""A small pre-norm transformer classifier for 8x8 images, every linear map addressable by name.

The block is the one of Vaswani et al. 2017 (arXiv 1706.03762) with the normalisation moved before
each branch (Xiong et al. 2020, arXiv 2002.04745); no dropout, so a forward pass is a function.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from fedlora_sim.errors import check_positive_int, expected

IMAGE_SIDE = 8


class Attention(nn.Module):
    """Multi-head self-attention with four separate projections, each a LoRA target.

    Args:
        d_model: token width.
        num_heads: heads; must divide `d_model`.
        generator: source of the initial weights.
    """

    def __init__(self, d_model: int, num_heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = _linear(d_model, d_model, generator)
        self.k_proj = _linear(d_model, d_model, generator)
        self.v_proj = _linear(d_model, d_model, generator)
        self.o_proj = _linear(d_model, d_model, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T, d_model) to (N, T, d_model)."""
        query, key, value = (
            project(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One pre-norm block: attention, then a ReLU network, each added to its input.

    Args:
        d_model: token width.
        num_heads: attention heads.
        mlp_ratio: hidden width over `d_model`.
        generator: source of the initial weights.
    """

    def __init__(
        self, d_model: int, num_heads: int, mlp_ratio: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, num_heads, generator)
        self.norm2 = nn.LayerNorm(d_model)
        self.fc1 = _linear(d_model, mlp_ratio * d_model, generator)
        self.fc2 = _linear(mlp_ratio * d_model, d_model, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T, d_model) to (N, T, d_model)."""
        tokens = tokens + self.attention(self.norm1(tokens))
        hidden = functional.relu(self.fc1(self.norm2(tokens)))
        return tokens + self.fc2(hidden)


class TinyTransformer(nn.Module):
    """Transformer classifier of 8x8 grey images, cut into square patches.

    LoRA targets, for block i: `blocks.{i}.attention.{q,k,v,o}_proj`, `blocks.{i}.fc1`,
    `blocks.{i}.fc2`; also `embed` and `head`.

    Args:
        generator: source of the initial weights; the same state gives the same bits.
        num_classes: width of the output.
        d_model: token width.
        num_layers: blocks.
        num_heads: attention heads; must divide `d_model`.
        mlp_ratio: hidden width over `d_model`.
        patch: height and width of a token in pixels; each must divide 8. The default gives four
            tokens: enough for digits, and twice as fast as eight.

    Raises:
        ValueError: if the heads do not divide `d_model`, or a patch side does not divide 8.
    """

    def __init__(
        self,
        generator: torch.Generator,
        *,
        num_classes: int = 10,
        d_model: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        mlp_ratio: int = 2,
        patch: tuple[int, int] = (4, 4),
    ) -> None:
        super().__init__()
        if d_model % check_positive_int("num_heads", num_heads):
            raise expected("num_heads", num_heads, f"a divisor of d_model={d_model}")
        if any(IMAGE_SIDE % check_positive_int("patch", side) for side in patch):
            raise expected("patch", patch, f"sides that divide {IMAGE_SIDE}")
        self.patch = patch
        num_tokens = (IMAGE_SIDE // patch[0]) * (IMAGE_SIDE // patch[1])
        self.embed = _linear(patch[0] * patch[1], d_model, generator)
        self.positions = nn.Parameter(0.1 * torch.randn(num_tokens, d_model, generator=generator))
        self.blocks = nn.ModuleList(
            Block(d_model, num_heads, mlp_ratio, generator) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = _linear(d_model, num_classes, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: grey values, shape (N, 8, 8).

        Returns:
            Logits, shape (N, num_classes).
        """
        tokens = self.embed(_patches(images, self.patch)) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(dim=1))


def _linear(d_in: int, d_out: int, generator: torch.Generator) -> nn.Linear:
    """A linear map with Xavier-uniform weights and zero bias, drawn from `generator` alone."""
    # nn.Linear's own initialisation would advance torch's global generator: skip it.
    layer = skip_init(nn.Linear, d_in, d_out)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _patches(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cut (N, 8, 8) images into tokens (N, T, pixels), row by row of patches."""
    grid = images.unflatten(2, (-1, patch[1])).unflatten(1, (-1, patch[0]))
    return grid.transpose(2, 3).flatten(3).flatten(1, 2)
