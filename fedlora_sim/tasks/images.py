"""A part of an image data set: its labels, and its images when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora_sim.errors import expected

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Images:
    """A part of an image data set; images are decoded when they are asked for.

    Args:
        read: images at these indices, (m,): an array (m, H, W) or (m, H, W, 3), or, where sizes
            differ, a list of arrays (H, W, 3); uint8.
        labels: class of every image, int64 (n,).
        groups: who wrote the image, any integers (n,), or None.
    """

    read: Callable[[NDArray[np.int64]], Pixels | Sequence[Pixels]]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None


Read = tuple[Mapping[str, Images], tuple[str, ...]]
"""Parts by name, `train` and, if there is one, `test`; and the names of the classes, if known."""


def images_of(
    argument: str, data: object, pixels: object, labels: object, groups: object = None
) -> Images:
    """Images in memory, checked.

    Args:
        argument: of the caller, for the message.
        data: its value.
        pixels: uint8 (n, H, W) or (n, H, W, 3).
        labels: integers of at least 0, (n,).
        groups: integers (n,), or None.

    Raises:
        InputError: naming the argument, if they are anything else.
    """
    x = np.asarray(pixels)
    if x.dtype != np.uint8 or not (x.ndim == 3 or (x.ndim == 4 and x.shape[3] == 3)):
        found = f"not {x.dtype} of shape {x.shape}"
        raise expected(argument, data, f"uint8 images (n, H, W) or (n, H, W, 3), {found}")
    y, writers = check_labels(argument, data, labels, len(x)), None
    if groups is not None:
        writers = np.asarray(groups)
        if writers.shape != y.shape or not np.issubdtype(writers.dtype, np.integer):
            raise expected(argument, data, f"a group per image, integers of shape ({len(x)},)")
    return Images(lambda index: x[index], y, writers)


def check_labels(argument: str, data: object, labels: object, number: int) -> NDArray[np.int64]:
    """Labels as int64, or a refusal that names what they were read from."""
    y = np.asarray(labels)
    whole = np.issubdtype(y.dtype, np.integer) and y.shape == (number,) and number > 0
    if not whole or y.min() < 0:
        found = f"not {y.dtype} of shape {y.shape} for {number} images"
        raise expected(argument, data, f"a label per image, integers of at least 0, {found}")
    return y.astype(np.int64)
