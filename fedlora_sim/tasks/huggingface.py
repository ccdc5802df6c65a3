"""Load models, tokenizers and data sets of Hugging Face safely and without console output."""

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

# Silence progress bars and log messages of Hugging Face's libraries


@contextmanager
def silent_transformers() -> Iterator[None]:
    """Restrict the logs of transformers and the hub's client to errors for a block."""
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
    """Restrict the logs of datasets and the hub's client to errors for a block."""
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


# Untrusted model and data files, read as data only.
#
# Libraries are called with `trust_remote_code=False`, and every `torch.load` within them is
# restricted to tensors, including calls with `weights_only=False`.

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
FORBID = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Settings of `torch.load`: the first overrides the caller's, and refuses the second."""


@contextmanager
def tensors_only() -> Iterator[None]:
    """Restrict all calls of `torch.load` within the block to tensors and plain values."""
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORBID)}
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def reason_of(error: BaseException) -> str:
    """Return the first line of a library's message, or the type of an error without a message."""
    first = " ".join(str(error).strip().partition("\n")[0].split())
    return first or type(error).__name__


# Frozen pretrained models of transformers; parameters missing in a checkpoint are drawn by a seed

INSTALL = "pip install 'fedlora-sim[lora]'"


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A frozen model in evaluation mode, and its parameters that the checkpoint lacked.

    Args:
        model: a model of transformers, on the CPU; no parameter requires gradients.
        new_parameters: full names of the parameters that were drawn by the seed.
    """

    model: nn.Module
    new_parameters: frozenset[str]

    @property
    def new_linear(self) -> tuple[str, ...]:
        """Full names of the `nn.Linear` modules that were newly drawn, in the model's order."""
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
        dtype: dtype of all floating-point parameters.
        seed: seed of the parameters that the checkpoint lacks, or has in another shape.
        kwargs: arguments of `from_pretrained`, e.g. `num_labels`.

    Raises:
        InputError: if transformers is not installed or the model is not available.
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
        model.config.use_cache = False  # keys and values are used in generation only
    new = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    return Pretrained(model.eval().requires_grad_(False), frozenset(new))


def text_positions(model: Any) -> int | None:
    """Return the maximum number of tokens of a model; None if it has no limit.

    If a table of positions has a padding index, as in RoBERTa and MPNet, a text's positions start
    after it. Tables longer than the limit are ignored: OPT's and BART's have leading rows that
    texts do not use.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        is_table = isinstance(module, nn.Embedding) and name.endswith("position_embeddings")
        if is_table and module.padding_idx is not None and module.num_embeddings == limit:
            return int(limit) - int(module.padding_idx) - 1
    return limit


def from_pretrained(auto_class_name: str, name_or_folder: str | None, **kwargs: object) -> Any:
    """Return a class's `from_pretrained`, from the local cache or the hub, without messages.

    No code from the model is run: `trust_remote_code=False`, and pickled weights
    (`pytorch_model.bin`) are read as tensors only.

    Args:
        auto_class_name: as in transformers, e.g. `AutoTokenizer`.
        name_or_folder: hub name, or a folder that `save_pretrained` wrote.
        kwargs: passed on.

    Raises:
        InputError: if transformers is not installed, or the object is not available.
    """
    wanted = "a Hugging Face hub name, or a folder written by save_pretrained"
    if not isinstance(name_or_folder, str) or not name_or_folder:
        raise expected("model", name_or_folder, wanted)
    load = getattr(_transformers(name_or_folder), auto_class_name).from_pretrained
    reason = ""
    with silent_transformers(), tensors_only():
        for only_here in (True, False):  # the hub may have what the cache lacks
            try:
                return load(
                    name_or_folder,
                    local_files_only=only_here,
                    trust_remote_code=False,  # None would prompt on the terminal
                    **kwargs,
                )
            except Exception as error:  # a damaged or crafted file may raise anything
                reason = reason_of(error)
    wanted = f"{wanted}, that {auto_class_name} can load ({reason})"
    raise expected("model", name_or_folder, wanted)


def _transformers(model: str) -> ModuleType:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise expected("model", model, f"transformers to load it with: {INSTALL}") from None


# Data sets of Hugging Face, from the hub or from a folder

SAVED = ("dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` wrote."""


def load_huggingface_parts(argument: str, name: str, otherwise: str) -> dict[str, Any]:
    """Return the parts of a data set by name; only `train` if it has no parts.

    Args:
        argument: the caller's name of the argument.
        name: hub name, as `cifar100` or `organization/name`, or a folder.
        otherwise: other possible values, for the message.

    Returns:
        A `datasets.Dataset` per part.

    Raises:
        InputError: if the package datasets is not installed, or the data are not available.
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
            else:  # None would prompt on the terminal, where datasets still knows scripts
                loaded = datasets.load_dataset(name, trust_remote_code=False)
        except failures as error:
            wanted = f"{otherwise}, or a data set of Hugging Face ({reason_of(error)})"
            raise expected(argument, name, wanted) from error
    return dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
