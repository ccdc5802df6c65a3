"""Data sets of Hugging Face: of the hub, or in a folder."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora_sim.errors import expected
from fedlora_sim.tasks.silence import silent_datasets
from fedlora_sim.tasks.untrusted import reason_of

SAVED = ("dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` wrote."""


def load_hub_parts(argument: str, name: str, otherwise: str) -> dict[str, Any]:
    """The parts of a data set by name; `train` alone where it has none.

    Args:
        argument: what the caller calls the name.
        name: hub name, as `cifar100` or `organisation/name`, or a folder.
        otherwise: what else the name could have been, for the message.

    Returns:
        A `datasets.Dataset` per part.

    Raises:
        InputError: if the package datasets is not installed, or the data cannot be had.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError:
        needed = "or, by the package datasets (pip install datasets), one of Hugging Face"
        raise expected(argument, name, f"{otherwise}, {needed}") from None
    saved = any((Path(name) / file).is_file() for file in SAVED)
    failures = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    with silent_datasets():
        try:
            if saved:
                loaded = datasets.load_from_disk(name)
            else:  # None would ask on the terminal, where datasets still knows scripts
                loaded = datasets.load_dataset(name, trust_remote_code=False)
        except failures as error:
            wanted = f"{otherwise}, or a data set of Hugging Face ({reason_of(error)})"
            raise expected(argument, name, wanted) from error
    return dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
