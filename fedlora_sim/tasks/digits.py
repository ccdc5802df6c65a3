"""A task that takes seconds: scikit-learn's digits, and a model pretrained on one domain of them.

1,797 gray 8x8 images of handwritten digits (Alpaydin and Kaynak 1998, UCI "Optical Recognition of
Handwritten Digits"), bundled with scikit-learn. The samples are split, class by class, into
disjoint parts: pretraining 50 %, federated training 32 %, test 18 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from fedlora_sim.errors import check_choice, check_finite, check_positive_int, expected
from fedlora_sim.randomness import stream
from fedlora_sim.runtime import one_thread
from fedlora_sim.tasks.targets import resolve_targets
from fedlora_sim.tasks.task import Examples, Task, TaskOptions, stratified_sample

# A small pre-norm transformer classifier for 8x8 images, with a name for every linear map.
#
# The block is that of Vaswani et al. 2017 (arXiv 1706.03762) with the normalization moved before
# each branch (Xiong et al. 2020, arXiv 2002.04745). It has no dropout, so the forward pass is
# deterministic.

IMAGE_SIDE = 8


class Attention(nn.Module):
    """Multi-head self-attention with four separate projections, each a LoRA target.

    Args:
        d_model: token width.
        num_heads: number of heads; must divide `d_model`.
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
        """Return the attention output (N, T, d_model) of tokens (N, T, d_model)."""
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
        """Return the block's output (N, T, d_model) for tokens (N, T, d_model)."""
        tokens = tokens + self.attention(self.norm1(tokens))
        hidden = functional.relu(self.fc1(self.norm2(tokens)))
        return tokens + self.fc2(hidden)


class TinyTransformer(nn.Module):
    """Transformer classifier of 8x8 gray images, cut into square patches.

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
        InputError: if the heads do not divide `d_model`, or a patch side does not divide 8.
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
            images: gray values, shape (N, 8, 8).

        Returns:
            Logits, shape (N, num_classes).
        """
        tokens = self.embed(_patches(images, self.patch)) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(dim=1))


def _linear(d_in: int, d_out: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear map with Xavier-uniform weights from `generator` only, and zero bias."""
    # nn.Linear's own initialization would advance torch's global generator: skip it.
    layer = skip_init(nn.Linear, d_in, d_out)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _patches(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Split (N, 8, 8) images into tokens (N, T, pixels), row by row of patches."""
    grid = images.unflatten(2, (-1, patch[1])).unflatten(1, (-1, patch[0]))
    return grid.transpose(2, 3).flatten(3).flatten(1, 2)


# The task: data, shifts and pretraining

SHIFTS = ("rotated", "unseen")
NUM_LAYERS = 2
TARGETS = ("attention.q_proj", "attention.v_proj", "fc1", "fc2")
PRETRAIN_SHARE, TRAIN_SHARE = 0.5, 0.32
HALF = 5


@dataclass(frozen=True, eq=False)
class DigitsTask(Task):
    """A classifier of images (n, 8, 8), gray in [0, 1], and the shifted domain to adapt to.

    Args:
        source: unseen images of the domain on which the model was pretrained.
    """

    source: Examples = field(kw_only=True)


def load_digits_task(
    seed: int, *, shift: str = "rotated", dtype: torch.dtype = torch.float32
) -> DigitsTask:
    """Split the data and pretrain the model in a few seconds; the process caches the result.

    Shifts:
        rotated: pretrained on upright digits, adapted to digits rotated by 90 degrees; ten classes.
        unseen: pretrained on the digits 0-4 (all of them except the test part), adapted to 5-9. A
            frozen head has no outputs for new classes, so the class is the digit modulo 5: the head
            is unchanged, and adaptation must map 5 to the output of 0, 6 to that of 1, ...

    Args:
        seed: seed of the split and of the pretraining, non-negative.
        shift: `rotated | unseen`.
        dtype: `torch.float32 | torch.float64`, of images and model.

    Returns:
        The task, on the CPU; LoRA on q, v and both MLP maps of each block.

    Raises:
        InputError: if an argument is invalid; names the argument, its value and what was expected.
    """
    if int(check_finite("seed", seed, minimum=0)) != seed:
        raise expected("seed", seed, "a whole number of at least 0")
    if dtype not in (torch.float32, torch.float64):
        raise expected("dtype", dtype, "torch.float32 or torch.float64")
    return _load(int(seed), check_choice("shift", shift, SHIFTS), dtype)


def load_adjusted_digits(options: TaskOptions) -> Task:
    """Return the digits task with a scenario's targets, sample numbers and head training."""
    task = load_digits_task(options.task_seed, dtype=getattr(torch, options.dtype))
    targets = options.target_modules or task.target_modules
    return replace(
        task,
        train=_subset(task.train, options.max_train, options.task_seed, "train"),
        test=_subset(task.test, options.max_test, options.task_seed, "test"),
        target_modules=resolve_targets(task.model, targets, options.adapted_layers),
        head_modules=("head",) if options.train_head else (),
    )


def _subset(part: Examples, most: int | None, seed: int, which: str) -> Examples:
    """Return at most this number of samples, drawn from a separate stream for each part."""
    drawn = stratified_sample(part.skew_classes, most, stream(seed, "digits subset", which))
    return part.take(torch.from_numpy(drawn))


@lru_cache(maxsize=32)
def _load(seed: int, shift: str, dtype: torch.dtype) -> DigitsTask:
    bunch = load_digits()
    images = torch.as_tensor(bunch.images / 16.0, dtype=dtype)
    digits = np.asarray(bunch.target, dtype=np.int64)
    pretrain, train, test = _parts(digits, stream(seed, "digits parts"))
    source_test, classes, shifted = test, digits, images
    if shift == "rotated":
        shifted = torch.rot90(images, 1, (1, 2)).contiguous()
    else:
        most = np.concatenate([pretrain, train])
        pretrain, train = most[digits[most] < HALF], most[digits[most] >= HALF]
        source_test, test = test[digits[test] < HALF], test[digits[test] >= HALF]
        classes = digits % HALF
    labels = torch.as_tensor(classes)
    with one_thread():
        model = _pretrain(images[pretrain], labels[pretrain], stream(seed, "digits pretraining"))
    targets = tuple(f"blocks.{i}.{name}" for i in range(NUM_LAYERS) for name in TARGETS)

    def examples(domain: Tensor, part: NDArray[np.int64]) -> Examples:
        return Examples({"images": domain[part]}, labels[part])

    return DigitsTask(
        model,
        examples(shifted, train),
        examples(shifted, test),
        targets,
        class_names=tuple(str(name) for name in np.unique(classes)),
        source=examples(images, source_test),
    )


def _parts(digits: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Return disjoint shuffled parts for pretraining, training and test, stratified by class."""
    parts: list[list[NDArray[np.int64]]] = [[], [], []]
    for digit in np.unique(digits):
        own = rng.permutation(np.flatnonzero(digits == digit))
        cuts = np.rint(np.cumsum([PRETRAIN_SHARE, TRAIN_SHARE]) * len(own)).astype(np.int64)
        for part, piece in zip(parts, np.split(own, cuts), strict=True):
            part.append(piece)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def _pretrain(
    images: Tensor,
    labels: Tensor,
    rng: np.random.Generator,
    *,
    epochs: int = 70,
    batch_size: int = 128,
    rate: float = 4e-3,
) -> TinyTransformer:
    """Train centrally by AdamW with one rate cycle, on images shifted by at most one pixel."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    model = TinyTransformer(generator, num_classes=int(labels.max()) + 1, num_layers=NUM_LAYERS).to(
        images.dtype
    )
    moved = _shifted_copies(images)
    steps = len(labels) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    for _ in range(epochs):
        order = torch.as_tensor(rng.permutation(len(labels)))
        which = torch.as_tensor(rng.integers(moved.shape[1], size=len(labels)))
        for batch in order[: steps * batch_size].split(batch_size):
            # Label smoothing keeps the logits small, so that adaptation starts from useful
            # gradients.
            loss = functional.cross_entropy(
                model(moved[batch, which[batch]]), labels[batch], label_smoothing=0.1
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.requires_grad_(False)


def _shifted_copies(images: Tensor) -> Tensor:
    """Return the images (n, 8, 8) shifted by -1, 0 or 1 pixel along each axis, (n, 9, 8, 8)."""
    padded = functional.pad(images, (1, 1, 1, 1))
    side = range(3)
    windows = [padded[:, i : i + IMAGE_SIDE, j : j + IMAGE_SIDE] for i in side for j in side]
    return torch.stack(windows, dim=1)
