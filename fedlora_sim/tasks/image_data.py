"""Labelled images from files, folders and data sets by name, and what is common to all of them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_sim.errors import expected
from fedlora_sim.tasks.cifar import read_cifar_folder
from fedlora_sim.tasks.hub import load_hub_parts
from fedlora_sim.tasks.images import Images, Pixels, Read, check_labels, images_of
from fedlora_sim.tasks.tokens import cache_folder
from fedlora_sim.tasks.untrusted import reason_of

CIFAR_FOLDER = "cifar-100-python"
KINDS = (
    "an .npz file (x_train, y_train, x_test, y_test), a folder of CIFAR-100's python version, or "
    "'cifar100' to download it by torchvision"
)
IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "character")
WRITER_COLUMNS = ("writer_id", "writer", "client_id", "user_id")
TEST_SPLITS = ("test", "validation", "valid")


@dataclass(frozen=True, eq=False)
class ImageData:
    """Training and test part of an image data set.

    Args:
        train: what is split among the clients.
        test: what the global model is judged on.
        class_names: one per class; numbers where the data have no names.
    """

    train: Images
    test: Images
    class_names: tuple[str, ...]


def load_image_data(data: str | None, test_data: str | None = None) -> ImageData:
    """Find an image data set by the kind of its name.

    Args:
        data: path of an `.npz` file; a folder with CIFAR-100's `train`, `test` and `meta`, or the
            one around it; `cifar100`; or, by the package datasets, a hub name or local folder.
        test_data: the like, whose test part, or else its only part, replaces that of `data`.

    Returns:
        Both parts.

    Raises:
        InputError: naming the argument, where nothing can be read from it, a package for it is
            missing, or no part is left for the test.
    """
    parts, names = _read("data", data)
    parts = dict(parts)
    if test_data is not None:
        others, other_names = _read("test_data", test_data)
        if names and other_names and names != other_names:
            raise expected("test_data", test_data, f"the same classes as in data={data!r}")
        parts["test"] = others.get("test", others["train"])
    if "test" not in parts:
        raise expected("test_data", None, f"data to test on, for data={data!r} has no such part")
    most = 1 + max(int(part.labels.max()) for part in parts.values())
    if names and most > len(names):
        raise expected("data", data, f"labels below {len(names)}, the number of class names")
    numbers = tuple(str(label) for label in range(most))
    return ImageData(parts["train"], parts["test"], names or numbers)


def _read(argument: str, data: str | None) -> Read:
    """The parts of a data set, from whichever source its name means."""
    if not isinstance(data, str) or not data:
        raise expected(argument, data, f"{KINDS}, or a data set of Hugging Face")
    path = Path(data)
    if path.suffix == ".npz":
        return _read_npz(argument, path)
    for folder in (path, path / CIFAR_FOLDER):
        if all((folder / name).is_file() for name in ("train", "meta")):
            return read_cifar_folder(argument, folder)
    if data.lower() == "cifar100":
        return _download_cifar(argument, data)
    return _read_hub(argument, data)


def _read_npz(argument: str, path: Path) -> Read:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:  # a damaged or crafted archive can fail anywhere in NumPy
        raise expected(
            argument, str(path), f"a readable .npz file of numbers ({reason_of(error)})"
        ) from None
    names = [part for part in ("train", "test") if f"x_{part}" in arrays]
    if "train" not in names or any(f"y_{part}" not in arrays for part in names):
        raise expected(argument, str(path), f"x_train, y_train (x_test, y_test), not {[*arrays]}")
    parts = {
        part: images_of(
            argument,
            str(path),
            *(arrays[f"x_{part}"], arrays[f"y_{part}"], arrays.get(f"groups_{part}")),
        )
        for part in names
    }
    return parts, ()


def _download_cifar(argument: str, data: str) -> Read:
    """CIFAR-100 by torchvision, kept in the cache."""
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except ImportError:
        needed = "torchvision to download it with (pip install torchvision), or its folder"
        raise expected(argument, data, needed) from None
    root = cache_folder() / "cifar100"
    try:
        sets = {
            part: datasets.CIFAR100(root, train=part == "train", download=True)
            for part in ("train", "test")
        }
    except (OSError, RuntimeError) as error:
        raise expected(argument, data, f"a download that works, or its folder ({error})") from error
    parts = {part: images_of(argument, data, of.data, of.targets) for part, of in sets.items()}
    return parts, tuple(sets["train"].classes)


def _read_hub(argument: str, data: str) -> Read:
    """A data set of Hugging Face, with columns of images and of labels."""
    splits = load_hub_parts(argument, data, KINDS)
    test = next((name for name in TEST_SPLITS if name in splits), None)
    train = "train" if "train" in splits else next(iter(splits))
    parts = {"train": _columns(argument, data, splits[train])}
    if test is not None and test != train:
        parts["test"] = _columns(argument, data, splits[test])
    label = splits[train].features[_column(argument, data, splits[train], LABEL_COLUMNS)]
    return parts, tuple(getattr(label, "names", None) or ())


def _columns(argument: str, data: str, split: Any) -> Images:
    """The images, labels and, if there are any, writers of one split."""
    image = _column(argument, data, split, IMAGE_COLUMNS)
    label = _column(argument, data, split, LABEL_COLUMNS)
    writer = next((name for name in WRITER_COLUMNS if name in split.column_names), None)

    def read(index: NDArray[np.int64]) -> list[Pixels]:
        rows = split.select(index.tolist())
        return [np.asarray(picture.convert("RGB")) for picture in rows[image]]

    labels = check_labels(argument, data, list(split[label]), len(split))
    groups = None
    if writer is not None:  # names of writers, or their numbers
        groups = np.unique(np.asarray(list(split[writer])), return_inverse=True)[1]
    return Images(read, labels, groups)


def _column(argument: str, data: str, split: Any, names: Sequence[str]) -> str:
    for name in names:
        if name in split.column_names:
            return name
    raise expected(argument, data, f"a column {' or '.join(names)}, not {split.column_names}")
