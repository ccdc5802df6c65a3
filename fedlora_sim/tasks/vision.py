"""Image classification: models, images, and the task."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fedlora_sim.errors import InputError, expected
from fedlora_sim.randomness import library_draws, stream
from fedlora_sim.tasks.huggingface import (
    from_pretrained,
    load_huggingface_parts,
    load_pretrained,
    reason_of,
    tensors_only,
)
from fedlora_sim.tasks.plain_pickle import MOST_BYTES, load_plain_pickle
from fedlora_sim.tasks.targets import inside, linear_ends, resolve_targets
from fedlora_sim.tasks.task import Examples, Task, TaskOptions, stratified_sample
from fedlora_sim.tasks.text import cache_folder

# Pretrained image classifiers of transformers and timm, and their image format

TIMM = "timm:"
CHANNELS = 3
QUERY_VALUE_MAPS = (("query", "value"), ("q_proj", "v_proj"), ("qkv",))
"""Names of the query and value maps of attention in libraries and their versions."""


@dataclass(frozen=True, eq=False)
class VisionModel:
    """A frozen image classifier in evaluation mode.

    Args:
        model: on the CPU, called with one tensor of images (n, 3, H, W).
        input_name: argument for the images.
        size: H and W of the model's images, pixels.
        mean: mean of the images' channels in [0, 1], which is subtracted.
        std: standard deviation, by which they are divided.
        head: full names of the classifier's modules.
        head_is_new: whether the checkpoint had no classifier for this number of classes.
    """

    model: nn.Module
    input_name: str
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: tuple[str, ...]
    head_is_new: bool

    @property
    def query_value_maps(self) -> tuple[str, ...]:
        """Name suffixes of the query and value maps; the most common ones if it has none."""
        ends = linear_ends(self.model)
        found = (names for names in QUERY_VALUE_MAPS if {*names} <= {*ends})
        return next(found, QUERY_VALUE_MAPS[0])


def load_vision_model(
    name: str | None, num_classes: int, dtype: torch.dtype, seed: int
) -> VisionModel:
    """Load a classifier for a number of classes.

    Args:
        name: hub name or folder for transformers, or `timm:name` for timm.
        num_classes: number of classes; a classifier for another number is newly drawn.
        dtype: dtype of the parameters.
        seed: seed of a new classifier.

    Raises:
        InputError: if the package is not installed, the model is not available, or it does not
            state its size of color images.
    """
    if isinstance(name, str) and name.startswith(TIMM):
        return _from_timm(name, num_classes, dtype, seed)
    return _from_transformers(name, num_classes, dtype, seed)


def _from_transformers(
    name: str | None, num_classes: int, dtype: torch.dtype, seed: int
) -> VisionModel:
    auto_class = "AutoModelForImageClassification"
    found = load_pretrained(auto_class, name, dtype, seed, num_labels=num_classes)
    model: Any = found.model
    side = getattr(model.config, "image_size", None)
    if side is None or getattr(model.config, "num_channels", CHANNELS) != CHANNELS:
        raise expected("model", name, "a model of color images whose config gives image_size")
    mean, std = _normalization(str(name))
    head = tuple(
        module_name
        for module_name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not inside(module_name, model.base_model_prefix)
    )
    return VisionModel(
        *(model, "pixel_values", _pair(side), mean, std, head),
        head_is_new=bool({*head} & {*found.new_linear}),
    )


def _normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the model's image processor.

    0.5 if a folder has none.
    """
    if Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").is_file():
        return (0.5,) * CHANNELS, (0.5,) * CHANNELS
    processor = from_pretrained("AutoImageProcessor", name)
    if not processor.do_normalize:
        return (0.0,) * CHANNELS, (1.0,) * CHANNELS
    return tuple(processor.image_mean), tuple(processor.image_std)


def _from_timm(name: str, num_classes: int, dtype: torch.dtype, seed: int) -> VisionModel:
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        raise expected("model", name, "timm to load it with: pip install timm") from None
    with library_draws(int(stream(seed, "new parameters").integers(2**31))), tensors_only():
        try:
            model = timm.create_model(
                name.removeprefix(TIMM), pretrained=True, num_classes=num_classes
            )
        except Exception as error:  # a damaged or crafted file may raise anything
            wanted = f"timm:name of a model that timm can load ({reason_of(error)})"
            raise expected("model", name, wanted) from error
    wanted, classifier = timm.data.resolve_model_data_config(model), model.get_classifier()
    head = tuple(n for n, module in model.named_modules() if module is classifier)
    return VisionModel(
        *(model.to(dtype).eval().requires_grad_(False), "x", _pair(wanted["input_size"][1:])),
        *(tuple(wanted["mean"]), tuple(wanted["std"]), head),
        head_is_new=model.pretrained_cfg["num_classes"] != num_classes,
    )


def _pair(side: Any) -> tuple[int, int]:
    """Return height and width from one number or two."""
    height, width = (side, side) if isinstance(side, int) else side
    return int(height), int(width)


# A part of an image data set: labels, and images on demand

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Images:
    """A part of an image data set; images are decoded on demand.

    Args:
        read: returns the images at these indices, (m,): an array (m, H, W) or (m, H, W, 3) or, if
            sizes differ, a list of arrays (H, W, 3); uint8.
        labels: class of each image, int64 (n,).
        groups: writer of each image, any integers (n,), or None.
    """

    read: Callable[[NDArray[np.int64]], Pixels | Sequence[Pixels]]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None


Read = tuple[Mapping[str, Images], tuple[str, ...]]
"""Parts by name, `train` and optionally `test`; and the class names, if known."""


def images_of(
    argument: str, data: object, pixels: object, labels: object, groups: object = None
) -> Images:
    """Return checked images in memory.

    Args:
        argument: the caller's argument, for the message.
        data: its value.
        pixels: uint8 (n, H, W) or (n, H, W, 3).
        labels: integers of at least 0, (n,).
        groups: integers (n,), or None.

    Raises:
        InputError: names the argument, if they are anything else.
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
    """Return the labels as int64; an error names their source."""
    y = np.asarray(labels)
    whole = np.issubdtype(y.dtype, np.integer) and y.shape == (number,) and number > 0
    if not whole or y.min() < 0:
        found = f"not {y.dtype} of shape {y.shape} for {number} images"
        raise expected(argument, data, f"a label per image, integers of at least 0, {found}")
    return y.astype(np.int64)


# CIFAR-100's Python version: pickles, read as data (see `plain_pickle`).
#
# Reference: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".

SIDE = 32


def read_cifar_folder(argument: str, folder: Path) -> Read:
    """Return the 100 fine classes, from the files `train`, `test` and `meta`.

    Args:
        argument: the argument with the folder.
        folder: usually called `cifar-100-python`.

    Returns:
        Both parts, 32x32 color images, and the class names.

    Raises:
        InputError: names a file that is missing, is not a pickle of the expected content, or
            requires anything but NumPy arrays and plain values.
    """
    parts = {}
    for part in ("train", "test"):
        path = folder / part
        file = _load(argument, path, ("data", "fine_labels"))
        x, labels = file["data"], file["fine_labels"]
        if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != 3 * SIDE * SIDE:
            found = getattr(x, "shape", type(x).__name__)
            raise expected(argument, str(path), f"data of shape (n, 3072), not {found}")
        # Checked item by item: NumPy would expand lists of lists, and a small file can nest many.
        if not isinstance(labels, np.ndarray) and not _is_list(labels, int):
            raise expected(argument, str(path), "fine_labels, a list of whole numbers")
        pixels = x.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        parts[part] = images_of(argument, str(path), pixels, labels)
    path = folder / "meta"
    names = _load(argument, path, ("fine_label_names",))["fine_label_names"]
    if not _is_list(names, str | bytes):
        raise expected(argument, str(path), "fine_label_names, a list of texts")
    return parts, tuple(_text(name) for name in names)


def _is_list(values: object, kind: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _load(argument: str, path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return a pickled dictionary with these keys, as text or as Python 2's strings."""
    wanted = f"a file of CIFAR-100's python version with {', '.join(keys)}"
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise expected(argument, str(path), f"{wanted}, of at most {MOST_BYTES:,} bytes")
        found = load_plain_pickle(path.read_bytes())
        values = {_text(key): value for key, value in found.items()}
        return {key: values[key] for key in keys}
    except InputError:
        raise
    except Exception as error:  # not a dictionary, or a key is missing
        raise expected(argument, str(path), f"{wanted} ({error})") from None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# Labeled images from files, folders and named data sets

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
        train: part that is split among the clients.
        test: part on which the global model is evaluated.
        class_names: one per class; numbers if the data have no names.
    """

    train: Images
    test: Images
    class_names: tuple[str, ...]


def load_image_data(data: str | None, test_data: str | None = None) -> ImageData:
    """Return an image data set; the kind of its name determines the source.

    Args:
        data: path of an `.npz` file; a folder with CIFAR-100's `train`, `test` and `meta`, or its
            parent; `cifar100`; or, with the package datasets, a hub name or local folder.
        test_data: a further source, whose test part, or else only part, replaces that of `data`.

    Returns:
        Both parts.

    Raises:
        InputError: names the argument, if nothing can be read from it, a package is missing, or
            there is no test part.
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
    """Return the parts of a data set from the source that its name means."""
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
    return _read_huggingface(argument, data)


def _read_npz(argument: str, path: Path) -> Read:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:  # a damaged or crafted archive may raise anything
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
    """Return CIFAR-100 by torchvision, cached."""
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


def _read_huggingface(argument: str, data: str) -> Read:
    """Return a data set of Hugging Face, with columns of images and of labels."""
    splits = load_huggingface_parts(argument, data, KINDS)
    test = next((name for name in TEST_SPLITS if name in splits), None)
    train = "train" if "train" in splits else next(iter(splits))
    parts = {"train": _columns(argument, data, splits[train])}
    if test is not None and test != train:
        parts["test"] = _columns(argument, data, splits[test])
    label = splits[train].features[_column(argument, data, splits[train], LABEL_COLUMNS)]
    return parts, tuple(getattr(label, "names", None) or ())


def _columns(argument: str, data: str, split: Any) -> Images:
    """Return images, labels and writers (if any) of one split."""
    image = _column(argument, data, split, IMAGE_COLUMNS)
    label = _column(argument, data, split, LABEL_COLUMNS)
    writer = next((name for name in WRITER_COLUMNS if name in split.column_names), None)

    def read(index: NDArray[np.int64]) -> list[Pixels]:
        rows = split.select(index.tolist())
        return [np.asarray(picture.convert("RGB")) for picture in rows[image]]

    labels = check_labels(argument, data, list(split[label]), len(split))
    groups = None
    if writer is not None:  # names or numbers of writers
        groups = np.unique(np.asarray(list(split[writer])), return_inverse=True)[1]
    return Images(read, labels, groups)


def _column(argument: str, data: str, split: Any, names: Sequence[str]) -> str:
    for name in names:
        if name in split.column_names:
            return name
    raise expected(argument, data, f"a column {' or '.join(names)}, not {split.column_names}")


# The task: images by class for a pretrained vision transformer, e.g. a ViT on CIFAR-100.
#
# Images are scaled to the model's size once, before the first round. This requires memory: an image
# of 224x224 in float32 takes 0.6 MB, CIFAR-100's 60,000 images take 36 GB. `max_train` and
# `max_test` reduce their number.
#
# Reference: Dosovitskiy et al. 2021 (arXiv 2010.11929); Krizhevsky 2009 (CIFAR-100).

CHUNK = 256
"""Number of images that are decoded and scaled at a time."""


def load_vision_task(options: TaskOptions) -> Task:
    """Load model and data, and scale and normalize the images as the model requires.

    Args:
        options: `model`: hub name or folder of an image classifier of transformers, or
            `timm:name` for one of timm; `data` and `test_data`: see `load_image_data`;
            `max_train` and `max_test`: number of images, stratified by class; `target_modules`:
            by default query and value maps (`qkv` if a model has them in one);
            `adapted_layers`, `train_head`, `task_seed` and `dtype`.

    Returns:
        The task, on the CPU. Groups are the data's writers, if it names them.

    Raises:
        InputError: names the field, if model or data are not available or do not match, or if the
            images would need more memory than the machine has.
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
    """Scale and normalize images as a model requires.

    Args:
        images: uint8 (n, H, W) or (n, H, W, 3), or a list of (H, W, 3); gray becomes color.
        like: the model, for its image size, mean and standard deviation.

    Returns:
        `(scaled(images / 255) - mean) / std`, float32 (n, 3, H', W'); bicubic with antialias.
    """
    if not isinstance(images, np.ndarray):
        return torch.cat([prepare_images(image[None], like) for image in images])
    color = images if images.ndim == 4 else np.repeat(images[..., None], CHANNELS, axis=3)
    x = torch.tensor(color).permute(0, 3, 1, 2).float() / 255
    if tuple(x.shape[2:]) != like.size:
        # Bicubic interpolation overshoots at edges; pixels of a scaled image must not.
        x = functional.interpolate(x, like.size, mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (like.mean, like.std))
    return (x - mean) / std


def _examples(
    images: Images, index: NDArray[np.int64], like: VisionModel, dtype: torch.dtype
) -> Examples:
    """Return the images at these indices, decoded and scaled in chunks into one tensor."""
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
    """Refuse images that do not fit in the machine's memory, before any is decoded."""
    each, there = CHANNELS * size[0] * size[1] * dtype.itemsize, _physical_memory()
    if number * each > there:
        fewer = f"together with max_test at most {there // each} images, as memory holds of"
        raise expected("max_train", max_train, f"{fewer} {size[0]}x{size[1]}, not {number}")


def _physical_memory() -> int:
    """Return the memory of the machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
