"""Models and tokenizers of Hugging Face: loaded from local files, safely, without progress bars."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fedlora_sim.errors import expected
from fedlora_sim.randomness import library_draws, stream

# Hugging Face's libraries without progress bars and reports: a task loads, or raises


@contextmanager
def silent_transformers() -> Iterator[None]:
    """Transformers and the hub's client log errors only, then what they logged before."""
    from transformers.utils import logging as library

    bars = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        with _errors_only("transformers", "huggingface_hub"):
            yield
    finally:
        if bars:
            library.enable_progress_bar()


@contextmanager
def silent_datasets() -> Iterator[None]:
    """Datasets and the hub's client log errors only, then what they logged before."""
    import datasets

    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with _errors_only("datasets", "huggingface_hub"):
            yield
    finally:
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def _errors_only(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


# Files of models and data that strangers wrote: read as data, whatever they ask for.
#
# Libraries are called with `trust_remote_code=False`, and every `torch.load` within them is held
# to tensors, also one that says `weights_only=False`.

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
FORBID = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Of `torch.load`; the first wins over what its caller asks for, and refuses beside the second."""


@contextmanager
def tensors_only() -> Iterator[None]:
    """Let `torch.load` build tensors and plain values only, whoever calls it within the block."""
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORBID)}
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def reason_of(error: BaseException) -> str:
    """The first line of a library's message, or the type of an error that has none."""
    first = " ".join(str(error).strip().partition("\n")[0].split())
    return first or type(error).__name__


# Pretrained models of transformers, frozen; what a checkpoint lacks is drawn by a seed

INSTALL = "pip install 'fedlora-sim[lora]'"


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A frozen model in evaluation mode, and what of it the checkpoint did not have.

    Args:
        model: of transformers, on the CPU; no parameter wants a gradient.
        new_parameters: full names of the parameters that were drawn by the seed.
    """

    model: nn.Module
    new_parameters: frozenset[str]

    @property
    def new_linear(self) -> tuple[str, ...]:
        """Full names of the `nn.Linear` modules that were drawn anew, in the model's order."""
        owners = {name.rpartition(".")[0] for name in self.new_parameters}
        modules = self.model.named_modules()
        return tuple(n for n, m in modules if n in owners and isinstance(m, nn.Linear))


def load_pretrained(
    auto_class_name: str,
    name_or_folder: str | None,
    dtype: torch.dtype,
    seed: int,
    **kwargs: object,
) -> Pretrained:
    """Load a model by transformers, from a folder, its cache or the hub.

    Args:
        auto_class_name: as in transformers, e.g. `AutoModelForSequenceClassification`.
        name_or_folder: hub name, or a folder that `save_pretrained` wrote.
        dtype: of all floating-point parameters.
        seed: of the parameters that the checkpoint lacks, or has in another shape.
        kwargs: of `from_pretrained`, e.g. `num_labels`.

    Raises:
        InputError: if transformers is not installed or the model cannot be had.
    """
    with library_draws(int(stream(seed, "new parameters").integers(2**31))):
        model, report = from_pretrained(
            auto_class_name,
            name_or_folder,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            weights_only=True,
            **kwargs,
        )
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # keys and values are of use in generation only
    new = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    return Pretrained(model.eval().requires_grad_(False), frozenset(new))


def text_positions(model: Any) -> int | None:
    """Return the most tokens that a model has positions for; None if it has no limit.

    Where a table of positions has a padding index, as RoBERTa's and MPNet's, a text's positions
    start after it. A table that is longer than the limit says nothing: OPT's and BART's have rows
    in front that no text counts.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        is_table = isinstance(module, nn.Embedding) and name.endswith("position_embeddings")
        if is_table and module.padding_idx is not None and module.num_embeddings == limit:
            return int(limit) - int(module.padding_idx) - 1
    return limit


def from_pretrained(auto_class_name: str, name_or_folder: str | None, **kwargs: object) -> Any:
    """`from_pretrained` of a class of transformers, silent, by the local cache before the hub.

    No code of the model's is run: `trust_remote_code=False`, and pickled weights
    (`pytorch_model.bin`) are read as tensors only.

    Args:
        auto_class_name: as in transformers, e.g. `AutoTokenizer`.
        name_or_folder: hub name, or a folder that `save_pretrained` wrote.
        kwargs: handed through.

    Raises:
        InputError: if transformers is not installed, or what was asked for cannot be had.
    """
    wanted = "a Hugging Face hub name, or a folder written by save_pretrained"
    if not isinstance(name_or_folder, str) or not name_or_folder:
        raise expected("model", name_or_folder, wanted)
    load = getattr(_transformers(name_or_folder), auto_class_name).from_pretrained
    reason = ""
    with silent_transformers(), tensors_only():
        for only_here in (True, False):  # what the cache has not, or not whole, the hub may have
            try:
                return load(
                    name_or_folder,
                    local_files_only=only_here,
                    trust_remote_code=False,  # None would ask on the terminal
                    **kwargs,
                )
            except Exception as error:  # a damaged or crafted file can fail anywhere in it
                reason = reason_of(error)
    wanted = f"{wanted}, that {auto_class_name} can load ({reason})"
    raise expected("model", name_or_folder, wanted)


def _transformers(model: str) -> ModuleType:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise expected("model", model, f"transformers to load it with: {INSTALL}") from None


# Data sets of Hugging Face: of the hub, or in a folder

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
