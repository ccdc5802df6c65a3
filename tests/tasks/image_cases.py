"""Small image data sets, and stand-ins for packages that are not needed to test."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

from fedlora_sim.randomness import library_draws
from fedlora_sim.tasks.huggingface import silent_transformers
from fedlora_sim.tasks.task import TaskOptions

NAMES = tuple(f"digit {k}" for k in range(10))


def digit_images(number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the first of scikit-learn's digits, gray 8x8 of 0 to 240, and their classes."""
    bunch = load_digits()
    return (bunch.images[:number] * 15).astype(np.uint8), bunch.target[:number].astype(np.int64)


def write_npz(path: Path, train: int = 60, test: int = 20, **more: object) -> str:
    """Write digits as an `.npz` file; further arrays by name."""
    x, y = digit_images(train + test)
    arrays = {"x_train": x[:train], "y_train": y[:train], "x_test": x[train:], "y_test": y[train:]}
    np.savez(path, **{**arrays, **more})
    return str(path)


def cifar_pixels(number: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Return color images (n, 32, 32, 3) of noise, and classes."""
    rng = np.random.default_rng(number)
    return rng.integers(256, size=(number, 32, 32, 3), dtype=np.uint8), [
        k % 10 for k in range(number)
    ]


def write_cifar(folder: Path, *, python2: bool = True) -> Path:
    """Return a folder like CIFAR-100's python version, of ten classes; 30 and 20 images."""
    folder.mkdir(parents=True)
    dump = python2_pickle if python2 else pickle.dumps
    for part, number in (("train", 30), ("test", 20)):
        pixels, labels = cifar_pixels(number)
        rows = pixels.transpose(0, 3, 1, 2).reshape(number, -1)
        (folder / part).write_bytes(dump({"fine_labels": labels, "data": rows}))
    (folder / "meta").write_bytes(dump({"fine_label_names": list(NAMES)}))
    return folder


def python2_pickle(value: object) -> bytes:
    """Return Python 2's `pickle.dumps(value, 2)` for the types in CIFAR's files."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: object) -> bytes:
    if isinstance(value, dict):
        items = b"".join(_python2(k) + _python2(v) for k, v in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        return b"T" + struct.pack("<i", len(value)) + value.encode()
    assert isinstance(value, np.ndarray)
    shape = b"(" + b"".join(_python2(int(n)) for n in value.shape) + b"t"
    data = value.tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01" + shape + b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    )


class FakePicture:
    """The used part of a PIL image."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def convert(self, mode: str) -> NDArray[np.uint8]:
        assert mode == "RGB"
        gray = self.pixels.ndim == 2
        return np.repeat(self.pixels[..., None], 3, axis=2) if gray else self.pixels


class FakeSplit:
    """The used part of a `datasets.Dataset`."""

    def __init__(self, columns: Mapping[str, Sequence], names: Sequence[str] | None) -> None:
        self.columns, self.names = columns, names
        self.features = {name: SimpleNamespace(names=names) for name in columns}

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> list:
        return list(self.columns[name])

    def select(self, index: Sequence[int]) -> FakeSplit:
        chosen = {name: [column[k] for k in index] for name, column in self.columns.items()}
        return FakeSplit(chosen, self.names)


def fake_package(name: str, **members: object) -> ModuleType:
    """Return a module to put into `sys.modules`."""
    module = ModuleType(name)
    vars(module).update(members)
    return module


def write_vit(
    parent: Path, *, head: bool = False, processor: dict[str, Any] | None = None, **config: Any
) -> str:
    """Write a random two-block ViT for 16x16 images, optionally with its classifier."""
    folder = parent / f"vit-{head}"
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"intermediate_size": 24, "image_size": 16, "patch_size": 8, "num_labels": 10}
    with library_draws(0), silent_transformers():
        model = ViTForImageClassification(ViTConfig(**{**sizes, **more, **config}))
        (model if head else model.base_model).save_pretrained(folder)
    if processor is not None:
        kind = {"image_processor_type": "ViTImageProcessor"}
        (folder / "preprocessor_config.json").write_text(json.dumps({**kind, **processor}))
    return str(folder)


def vision_options(tmp_path: Path, model: str | None, **changes: Any) -> TaskOptions:
    """Return the task of 60 and 20 digits."""
    data = write_npz(tmp_path / "digits.npz")
    return TaskOptions(**{"task": "vision", "model": model, "data": data, **changes})
