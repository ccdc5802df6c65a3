"""Targets: the linear maps of a model that carry LoRA, by name suffix as in PEFT."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from torch import nn

from fedlora_sim.errors import check_positive_int, expected

QUERY_VALUE = ("query", "value")
USUAL_TARGETS = {
    "bert": QUERY_VALUE,
    "roberta": QUERY_VALUE,
    "xlm-roberta": QUERY_VALUE,
    "electra": QUERY_VALUE,
    "distilbert": ("q_lin", "v_lin"),
    "gpt2": ("c_attn",),
    "llama": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
}
"""Model type -> the maps of queries and values, those of Hu et al. (2021, arXiv 2106.09685).

GPT-2 has one map for queries, keys and values.
"""


def resolve_targets(
    model: nn.Module, names: Iterable[str], adapted_layers: int | None = None
) -> tuple[str, ...]:
    """Return the full names of the linear maps that a list of names means.

    Args:
        model: any module.
        names: a name means every linear map with this name, or whose full name ends with `.name`
            (the rule of PEFT's `target_modules`).
        adapted_layers: number of last `target_blocks` whose targets are kept; None keeps all.

    Returns:
        Names in the order of `model.named_modules()`.

    Raises:
        InputError: if a name means no linear map (names the closest one that does), if the model
            has fewer blocks, or if its last blocks contain no target.
    """
    ends = tuple(names)
    linear = [name for name, module in model.named_modules() if is_linear(module)]
    if not ends:
        raise expected("target_modules", ends, f"one or more of {', '.join(linear_ends(model))}")
    for end in ends:
        if not any(_means(end, name) for name in linear):
            raise expected("target_modules", end, f"a linear map's name{_closest(end, linear)}")
    found = tuple(name for name in linear if any(_means(end, name) for end in ends))
    if adapted_layers is None:
        return found
    blocks = target_blocks(model, found)
    count = check_positive_int("adapted_layers", adapted_layers)
    if count > len(blocks):
        raise expected(
            "adapted_layers", adapted_layers, f"at most {len(blocks)}, the model's blocks"
        )
    last = blocks[-count:]
    kept = tuple(name for name in found if any(inside(name, block) for block in last))
    if not kept:
        raise expected("adapted_layers", adapted_layers, f"blocks that hold one of {found}")
    return kept


def usual_targets(model: nn.Module) -> tuple[str, ...]:
    """Return the name suffixes of the modules that are usually adapted in a transformers model.

    Args:
        model: a model with `config.model_type`.

    Raises:
        InputError: if the type is not in `USUAL_TARGETS`; names the suffixes of the model.
    """
    kind = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if kind not in USUAL_TARGETS:
        choices = ", ".join(linear_ends(model))
        raise expected("target_modules", None, f"for a model of type {kind!r} some of {choices}")
    return USUAL_TARGETS[kind]


def target_blocks(model: nn.Module, targets: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a model's blocks, first to last.

    Blocks are the children of the outermost `nn.ModuleList`s, and `nn.Sequential`s of several
    modules of one kind, that contain a target.

    Args:
        model: any module.
        targets: full names of modules.

    Returns:
        Full names in the order of `model.named_modules()`; empty if no list contains a target.
    """
    lists: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        nested = any(inside(name, outer) for outer, _ in lists)
        if _is_list_of_blocks(module) and not nested:
            lists.append((name, module))
    return tuple(
        f"{name}.{child}" if name else child
        for name, blocks in lists
        if any(inside(target, name) for target in targets)
        for child, _ in blocks.named_children()
    )


def is_linear(module: nn.Module) -> bool:
    """Return True for an `nn.Linear` or the `Conv1D` that transformers' GPT-2 uses."""
    kind = type(module)
    # By name: transformers takes seconds to import, and most tasks do not need it.
    conv1d = kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
    return isinstance(module, nn.Linear) or conv1d


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return `(d_out, d_in)` of a linear map; `Conv1D` stores its weight as (d_in, d_out)."""
    weight = module.get_parameter("weight")
    rows, columns = weight.shape
    return (rows, columns) if isinstance(module, nn.Linear) else (columns, rows)


def linear_ends(model: nn.Module) -> tuple[str, ...]:
    """Return the last parts of the names of all linear maps, each once, in the model's order."""
    names = (name for name, module in model.named_modules() if is_linear(module))
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))


def inside(name: str, outer: str) -> bool:
    """Return True if a module's full name is that of another, or of a module below it."""
    return not outer or name == outer or name.startswith(f"{outer}.")


def _is_list_of_blocks(module: nn.Module) -> bool:
    kinds = {type(child) for child in module.children()}
    alike = len(kinds) == 1 and len(list(module.children())) > 1
    return isinstance(module, nn.ModuleList) or (isinstance(module, nn.Sequential) and alike)


def _means(end: str, name: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _closest(end: str, linear: Sequence[str]) -> str:
    """Return a hint: the most similar suffix, with as many parts, of a linear map's name."""
    parts = end.count(".") + 1
    tails = [".".join(name.split(".")[-parts:]) for name in linear]
    close = difflib.get_close_matches(end, tails, n=1, cutoff=0.0)
    return f" or its end; the closest is {close[0]!r}" if close else "; the model has none"
