"""Pretrained models of transformers, frozen; what a checkpoint lacks is drawn by a seed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fedlora_sim.errors import expected
from fedlora_sim.randomness import library_draws, stream
from fedlora_sim.tasks.silence import silent_transformers
from fedlora_sim.tasks.untrusted import reason_of, tensors_only

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
