"""Assemble adapters, write them as PEFT folders, and reinitialize empty components."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlora_sim.errors import expected
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import LowRankProduct, pad_last
from fedlora_sim.peft.agreement import SELECTION, TOKENS, AdapterCohort
from fedlora_sim.peft.config import CONFIG_FILE, written_config
from fedlora_sim.peft.layers import kept_dtype
from fedlora_sim.peft.read import WEIGHTS_FILE, Adapter, Layer, resized
from fedlora_sim.randomness import stream
from fedlora_sim.storage import (
    check_folder,
    remove_stale,
    replacing_folder,
    write_tensors,
    write_text,
)
from fedlora_sim.tolerances import relative

# Adapter folders on disk.
#
# An output folder appears, or replaces an older one, in one step, so that at every moment there is
# a complete folder (see `fedlora_sim.storage`).

REPORT_FILE = "aggregation.json"
COMMAND = "aggregate"
"""Writer in the marker of an adapter folder, for all commands."""


@dataclass(frozen=True, eq=False)
class AdapterContent:
    """Content of an adapter folder.

    Args:
        config: the configuration, as PEFT writes it.
        tensors: tensors by key, as PEFT names them.
        report: how the adapter was made; PEFT does not read it.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    report: Mapping[str, Any] | None = None


def check_output(out: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse an output folder that cannot be written, or whose writing would destroy data.

    Args:
        out: output folder.
        inputs: input folders; the output must not be one of them, inside one, or around one.
        force: whether an existing adapter folder may be replaced.

    Raises:
        InputError: names the folder and what was expected.
    """
    for path in (out, *out.absolute().parents):
        if path.is_symlink() if path == out else (path.exists() and not path.is_dir()):
            kind = "a link" if path == out else "a file"
            raise expected("out", str(out), f"a place to write to ({path} is {kind})")
    place = out.resolve()
    for folder in inputs:
        other = folder.resolve()
        if place == other or place in other.parents or other in place.parents:
            raise expected("out", str(out), f"a folder apart from the input folder {folder}")
    remove_stale(out.absolute().parent)
    check_folder(out, force=force)


def write_adapters(
    out: Path, contents: Iterable[tuple[str, AdapterContent]], *, force: bool
) -> None:
    """Write a folder of adapters in one step.

    Args:
        out: output folder, checked by `check_output`.
        contents: adapters by relative path, "" for the folder itself; consumed one by one, so that
            only one is in memory.
        force: whether to replace an existing adapter folder.
    """
    with replacing_folder(out.resolve(), COMMAND, force=force) as new:
        for place, content in contents:
            _write_adapter(new / place, content)


def _write_adapter(folder: Path, content: AdapterContent) -> None:
    write_tensors(folder / WEIGHTS_FILE, content.tensors, {"format": "pt"})
    _write_json(folder / CONFIG_FILE, content.config)
    if content.report is not None:
        _write_json(folder / REPORT_FILE, content.report)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


# Components without energy, reinitialized as LoRA does.
#
# FLoRA sends an adapter of zeros, and a cohort of low ranks leaves the higher components empty.
# With A and B both zero there is no gradient, and a client could not train them. One factor is
# drawn as PEFT draws it and the other one is zero, so that the update does not change.


def with_fresh_components(
    cohort: AdapterCohort, factors: Mapping[str, LoRAFactors], seed: int
) -> dict[str, LoRAFactors]:
    """Return the same updates with lost components reinitialized.

    A module's draw depends only on the seed and its name, and its first rows do not depend on the
    rank, so that all folders of one aggregation start alike.
    """
    return {
        module: _fresh_components(update, module, seed, cohort.layer(module))
        for module, update in factors.items()
    }


def _fresh_components(update: LoRAFactors, module: str, seed: int, layer: Layer) -> LoRAFactors:
    lost = _lost(update)
    if not bool(lost.any()):
        return update
    lora_a, lora_b = update.lora_A, update.lora_B
    if layer.is_embedding:  # PEFT initializes these the other way round
        drawn = stream(seed, "lora_B", module).standard_normal((update.rank, layer.d_out))
        start = pad_last(torch.from_numpy(drawn), update.d_out)
        lora_a = torch.where(lost.unsqueeze(-1), 0.0, lora_a)
        lora_b = torch.where(lost, start.to(lora_b).mT, lora_b)
    else:  # d_in of a convolution includes the kernel, as does Kaiming's fan
        bound = 1 / np.sqrt(layer.d_in)
        experts = [(e,) for e in range(lora_a.shape[0])] if lora_a.ndim > 2 else [()]
        rows = [
            stream(seed, "lora_A", module, *e).uniform(-bound, bound, (update.rank, layer.d_in))
            for e in experts
        ]
        stacked = np.stack(rows).reshape(*lora_a.shape[:-1], layer.d_in)
        start = pad_last(torch.from_numpy(stacked), update.d_in)
        lora_a = torch.where(lost.unsqueeze(-1), start.to(lora_a), lora_a)
        lora_b = torch.where(lost.unsqueeze(-2), 0.0, lora_b)
    return LoRAFactors(lora_a, lora_b, update.scaling)


def _lost(update: LoRAFactors) -> Tensor:
    """Return the components that are zero up to rounding, boolean (..., r).

    In single precision, `lost_columns` of a wide module uses a tolerance above the error of a
    factorization. Small components that were only averaged down must be kept.
    """
    amplitude = update.column_amplitudes()
    blurred = relative("factorization", update.dtype) * amplitude.amax(dim=-1, keepdim=True)
    return update.lost_columns() & (amplitude <= blurred)


# Output folders of an aggregation: tensors and configurations

# Options that the folder of the base correction omits: it holds LoRA factors only.
BASE_OPTIONS = {
    "task_type": None,
    "modules_to_save": None,
    "bias": "none",
    "trainable_token_indices": None,
}

Factors = Mapping[str, LoRAFactors]


def global_content(
    cohort: AdapterCohort,
    factors: Factors,
    extras: Mapping[str, Tensor],
    report: Mapping[str, Any] | None = None,
    *,
    start: Callable[[Factors], Factors] = lambda factors: factors,
    frozen_a: bool = False,
    uniform_rank: bool = False,
) -> AdapterContent:
    """Return the global adapter with the first client's options and the ranks of `factors`.

    It uses rsLoRA's convention if all clients do, otherwise alpha/r.

    Args:
        cohort: the aggregated adapters.
        factors: update of each module.
        extras: other tensors by key.
        report: how the adapter was made.
        start: reinitializes components without energy, after the written ranks are known.
        frozen_a: whether a change of scaling goes to B only.
        uniform_rank: write one rank and one alpha, and no patterns.
    """
    use_rslora = all(client.config.use_rslora for client in cohort.clients)
    layers = {module: (update.rank, update.scaling) for module, update in factors.items()}
    tied = {name: module for name, (_, module) in cohort.tied.items() if module in layers}
    layers |= {name: layers[module] for name, module in tied.items()}
    options = cohort.options
    configs = [] if uniform_rank else [client.config for client in cohort.clients]
    config, sizes = written_config(options, layers, use_rslora, clients=configs)
    while uneven := [name for name, module in tied.items() if sizes[name][0] != sizes[module][0]]:
        for name in uneven:  # tied factors have one rank, the higher one
            module = tied[name]
            rank = max(sizes[name][0], sizes[module][0])
            layers |= {one: (rank, layers[one][1]) for one in (name, module)}
        config, sizes = written_config(options, layers, use_rslora, clients=configs)
    written = {m: resized(own, *sizes[m], frozen_a=frozen_a) for m, own in factors.items()}
    return AdapterContent(config, {**stored(cohort, start(written)), **extras}, report)


def base_content(
    cohort: AdapterCohort, factors: Factors, *, uniform_rank: bool = False
) -> AdapterContent:
    """Return the base correction as a separate adapter."""
    content = global_content(cohort, factors, {}, uniform_rank=uniform_rank)
    return AdapterContent({**content.config, **BASE_OPTIONS}, content.tensors)


def client_content(
    client: Adapter,
    cohort: AdapterCohort,
    adapter: Factors,
    extras: Mapping[str, Tensor],
    *,
    frozen_a: bool,
    seed: int,
) -> AdapterContent:
    """Return what a client receives: its ranks of the adapter, in its own scaling and options.

    Components without energy are reinitialized in the client's own scaling. Under a rule that
    freezes A they are kept, and the change of scaling goes to B only.
    """
    config = client.config
    adapter = {m: update for m, update in adapter.items() if m in client.layers}
    extras = {key: tensor for key, tensor in extras.items() if key in client.keys}
    cut = {
        m: resized(update, config.rank_of(m), config.scaling_of(m), frozen_a=frozen_a)
        for m, update in adapter.items()
    }
    if not frozen_a:
        cut = with_fresh_components(cohort, cut, seed)
    options = dict(client.config.options)
    if len(adapter) < len(client.layers):  # the client keeps its other modules
        options |= {name: cohort.options.get(name) for name in SELECTION}
    if options.get(TOKENS) is not None:  # rows are in the first client's order
        options[TOKENS] = cohort.options[TOKENS]
    return AdapterContent(options, {**stored(cohort, cut), **extras})


def client_places(cohort: AdapterCohort) -> tuple[str, ...]:
    """Return the relative path of each client's folder; clients that receive the same share one."""
    places: dict[tuple[tuple[str, int, float], ...], str] = {}
    result = []
    for number, client in enumerate(cohort.clients, start=1):
        config = client.config
        written = (m for m in cohort.modules if m in client.layers)
        form = tuple((m, config.rank_of(m), config.scaling_of(m)) for m in written)
        place = f"clients/rank-{config.rank}"
        if form not in places:
            taken = place in places.values()
            places[form] = f"{place}-client-{number}" if taken else place
        result.append(places[form])
    return tuple(result)


def base_factors(product: LowRankProduct) -> LoRAFactors:
    """Return a base correction as factors with scaling 1, of no more columns than necessary."""
    if product.columns <= min(product.shape):
        return LoRAFactors(product.A, product.B)
    u, s, vh = product.svd()
    return LoRAFactors(s.unsqueeze(-1) * vh, u)


def stored(cohort: AdapterCohort, factors: Factors) -> dict[str, Tensor]:
    """Return the tensors by key, in the clients' shapes and dtype, on the CPU."""
    tensors = {}
    for module, update in factors.items():
        layer, dtype = cohort.layer(module), kept_dtype(cohort, module)
        lora_a, lora_b = layer.packed(update.lora_A, update.lora_B)
        for key, tensor in ((layer.key_A, lora_a), (layer.key_B, lora_b)):
            tensors[key] = _as_dtype(key, tensor, dtype)
    for layer, module in cohort.tied.values():
        if module not in factors:
            continue
        own = cohort.layer(module)
        tensors |= {layer.key_A: tensors[own.key_B].mT, layer.key_B: tensors[own.key_A].mT}
    return tensors


def _as_dtype(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    written = tensor.to("cpu", dtype)
    if not bool(torch.isfinite(written).all()):
        largest = float(tensor.abs().max())
        limit = torch.finfo(dtype).max
        raise expected(f"largest entry of {key}", largest, f"at most {limit:g}, to fit {dtype}")
    return written
