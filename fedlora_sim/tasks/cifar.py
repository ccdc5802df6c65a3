"""CIFAR-100's python version: pickles, read as data (see `plain_pickle`).

Reference:
    Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedlora_sim.errors import InputError, expected
from fedlora_sim.tasks.images import Read, images_of
from fedlora_sim.tasks.plain_pickle import MOST_BYTES, load_plain_pickle

SIDE = 32


def read_cifar_folder(argument: str, folder: Path) -> Read:
    """The 100 fine classes, from the files `train`, `test` and `meta`.

    Args:
        argument: for which the folder was given.
        folder: usually called `cifar-100-python`.

    Returns:
        Both parts, 32x32 colour images; and the names of the classes.

    Raises:
        InputError: naming the file, if it is not there, is no pickle of the expected contents, or
            asks for anything but numpy arrays and plain values.
    """
    parts = {}
    for part in ("train", "test"):
        path = folder / part
        file = _load(argument, path, ("data", "fine_labels"))
        x, labels = file["data"], file["fine_labels"]
        if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != 3 * SIDE * SIDE:
            found = getattr(x, "shape", type(x).__name__)
            raise expected(argument, str(path), f"data of shape (n, 3072), not {found}")
        # Checked item by item: NumPy would unfold lists of lists, and a small file can nest many.
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
    """A pickled dictionary that has these keys, as text or as Python 2's strings."""
    wanted = f"a file of CIFAR-100's python version with {', '.join(keys)}"
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise expected(argument, str(path), f"{wanted}, of at most {MOST_BYTES:,} bytes")
        found = load_plain_pickle(path.read_bytes())
        values = {_text(key): value for key, value in found.items()}
        return {key: values[key] for key in keys}
    except InputError:
        raise
    except Exception as error:  # what is no dictionary, or lacks a key
        raise expected(argument, str(path), f"{wanted} ({error})") from None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
