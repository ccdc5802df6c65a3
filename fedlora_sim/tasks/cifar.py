"""CIFAR-100's python version: pickles, read without running anything that is in them.

Reference:
    Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fedlora_sim.errors import expected
from fedlora_sim.tasks.images import Read, images_of

SIDE = 32
_EMPTY = np.empty(0, dtype=np.uint8)
ALLOWED = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": _EMPTY.__reduce__()[0],  # what arrays are pickled as, up to protocol 4
    "_frombuffer": _EMPTY.__reduce_ex__(5)[0],
}
"""The only names that a pickle may ask for, of numpy; all else is numbers, texts and containers."""


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and plain values, and refuses to look up anything else."""

    def find_class(self, module: str, name: str) -> Any:
        # The name alone decides what is returned: never what the module has by that name.
        if name in ALLOWED and (module == "numpy" or module.startswith("numpy.")):
            return ALLOWED[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


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
        x = np.asarray(file["data"])
        if x.ndim != 2 or x.shape[1] != 3 * SIDE * SIDE:
            raise expected(argument, str(path), f"data of shape (n, 3072), not {x.shape}")
        pixels = x.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        parts[part] = images_of(argument, str(path), pixels, file["fine_labels"])
    names = _load(argument, folder / "meta", ("fine_label_names",))["fine_label_names"]
    return parts, tuple(_text(name) for name in names)


def _load(argument: str, path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """A pickled dictionary that has these keys, as text or as Python 2's strings."""
    wanted = f"a file of CIFAR-100's python version with {', '.join(keys)}"
    try:
        with path.open("rb") as file:
            found = _ArraysOnly(file, encoding="bytes").load()
        values = {_text(key): value for key, value in found.items()}
        return {key: values[key] for key in keys}
    except Exception as error:  # a damaged pickle can raise anything
        raise expected(argument, str(path), f"{wanted} ({error})") from None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
