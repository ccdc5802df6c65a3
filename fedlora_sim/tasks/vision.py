"""Images by class for a pretrained vision transformer, e.g. a ViT on CIFAR-100.

Images are scaled to what the model was made for once, before the first round. That costs memory:
an image of 224x224 in float32 takes 0.6 MB, CIFAR-100's 60,000 of them 36 GB; `max_train` and
`max_test` take fewer.

Reference:
    Dosovitskiy et al. 2021 (arXiv 2010.11929); Krizhevsky 2009 (CIFAR-100).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fedlora_sim.errors import expected
from fedlora_sim.randomness import stream
from fedlora_sim.tasks.examples import Examples
from fedlora_sim.tasks.image_data import load_image_data
from fedlora_sim.tasks.images import Images, Pixels
from fedlora_sim.tasks.options import TaskOptions
from fedlora_sim.tasks.subsets import stratified_sample
from fedlora_sim.tasks.targets import resolve_targets
from fedlora_sim.tasks.task import Task
from fedlora_sim.tasks.vision_models import CHANNELS, VisionModel, load_vision_model

CHUNK = 256
"""Images that are decoded and scaled at a time."""


def load_vision_task(options: TaskOptions) -> Task:
    """Load model and data, and scale and normalise the images as the model wants them.

    Args:
        options: `model`: hub name or folder of an image classifier of transformers, or
            `timm:name` for one of timm; `data` and `test_data`: see `load_image_data`;
            `max_train` and `max_test`: so many images, every class in its share; `target_modules`:
            query and value maps unless told otherwise (`qkv` where a model has them in one);
            `adapted_layers`, `train_head`, `task_seed` and `dtype`.

    Returns:
        The task, on the CPU. Groups are the data's writers, where it names them.

    Raises:
        InputError: naming the field, where model or data cannot be had or do not fit each other,
            or where the images would take more memory than there is.
    """
    dtype: torch.dtype = getattr(torch, options.dtype)
    data = load_image_data(options.data, options.test_data)
    train, test = (
        stratified_sample(part.labels, size, stream(options.task_seed, "vision", name))
        for part, size, name in (
            (data.train, options.max_train, "train"),
            (data.test, options.max_test, "test"),
        )
    )
    found = load_vision_model(options.model, len(data.class_names), dtype, options.task_seed)
    names = options.target_modules or found.query_value_maps
    targets = resolve_targets(found.model, names, options.adapted_layers)
    train_head = found.head_is_new if options.train_head is None else options.train_head
    heads = found.head if train_head else ()
    if both := {*targets} & {*heads}:
        raise expected("target_modules", sorted(both), "maps besides those that are trained whole")
    _check_memory(options.max_train, len(train) + len(test), found.size, dtype)
    return Task(
        found.model,
        _examples(data.train, train, found, dtype),
        _examples(data.test, test, found, dtype),
        targets,
        heads,
        class_names=data.class_names,
    )


def prepare_images(images: Pixels | Sequence[Pixels], like: VisionModel) -> Tensor:
    """Scale and normalise images as a model wants them.

    Args:
        images: uint8 (n, H, W) or (n, H, W, 3), or a list of (H, W, 3); grey becomes colour.
        like: the model, for its size of images, mean and deviation.

    Returns:
        `(scaled(images / 255) - mean) / std`, float32 (n, 3, H', W'); bicubic with antialias.
    """
    if not isinstance(images, np.ndarray):
        return torch.cat([prepare_images(image[None], like) for image in images])
    colour = images if images.ndim == 4 else np.repeat(images[..., None], CHANNELS, axis=3)
    x = torch.tensor(colour).permute(0, 3, 1, 2).float() / 255
    if tuple(x.shape[2:]) != like.size:
        # A cubic overshoots at edges; pixels of a scaled image would not.
        x = functional.interpolate(x, like.size, mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (like.mean, like.std))
    return (x - mean) / std


def _examples(
    images: Images, index: NDArray[np.int64], like: VisionModel, dtype: torch.dtype
) -> Examples:
    """The images at these indices, decoded and scaled a chunk at a time into one tensor."""
    pixels = torch.empty(len(index), CHANNELS, *like.size, dtype=dtype)
    for start in range(0, len(index), CHUNK):
        chunk = slice(start, start + CHUNK)
        pixels[chunk] = prepare_images(images.read(index[chunk]), like).to(dtype)
    groups = None if images.groups is None else images.groups[index]
    labels = torch.from_numpy(images.labels[index])
    return Examples({like.input_name: pixels}, labels, groups=groups)


def _check_memory(
    max_train: int | None, number: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    """Refuse images that the machine could not hold, before any is decoded."""
    each, there = CHANNELS * size[0] * size[1] * dtype.itemsize, _physical_memory()
    if number * each > there:
        fewer = f"together with max_test at most {there // each} images, as memory holds of"
        raise expected("max_train", max_train, f"{fewer} {size[0]}x{size[1]}, not {number}")


def _physical_memory() -> int:
    """Memory of the machine, bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
