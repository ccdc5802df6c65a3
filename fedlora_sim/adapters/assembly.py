"""The folders that an aggregation writes: their tensors and configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedlora_sim.adapters.config import written_config
from fedlora_sim.adapters.layers import kept_dtype
from fedlora_sim.adapters.padding import resized
from fedlora_sim.adapters.reading import AdapterFolder
from fedlora_sim.adapters.restart import restarted
from fedlora_sim.adapters.writing import AdapterContent
from fedlora_sim.errors import expected
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import LowRankProduct

# What the base correction's folder must not promise: it holds LoRA factors and nothing else.
BASE_OPTIONS = {
    "task_type": None,
    "modules_to_save": None,
    "bias": "none",
    "trainable_token_indices": None,
}
TOKENS = "trainable_token_indices"

Factors = Mapping[str, LoRAFactors]


def global_content(
    clients: Sequence[AdapterFolder],
    factors: Factors,
    extras: Mapping[str, Tensor],
    report: Mapping[str, Any] | None = None,
    *,
    start: Callable[[Factors], Factors] = lambda factors: factors,
    frozen_a: bool = False,
    uniform_rank: bool = False,
) -> AdapterContent:
    """The adapter of all clients: the first client's options, the ranks and scalings of `factors`.

    It is written in rsLoRA's convention if every client is, in alpha/r otherwise.

    Args:
        clients: the folders that were aggregated.
        factors: update of every module.
        extras: other tensors by key.
        report: how the adapter came about.
        start: what to do with components that carry nothing, once the ranks are those written.
        frozen_a: whether a change of scaling goes to B alone.
        uniform_rank: write one rank and one alpha, and no patterns.
    """
    use_rslora = all(client.config.use_rslora for client in clients)
    layers = {module: (update.rank, update.scaling) for module, update in factors.items()}
    tied = {name: module for name, (_, module) in clients[0].tied.items()}
    layers |= {name: layers[module] for name, module in tied.items()}
    options = clients[0].config.options
    configs = [] if uniform_rank else [client.config for client in clients]
    config, sizes = written_config(options, layers, use_rslora, clients=configs)
    while uneven := [name for name, module in tied.items() if sizes[name][0] != sizes[module][0]]:
        for name in uneven:  # factors that are tied have one rank, the higher one
            module = tied[name]
            rank = max(sizes[name][0], sizes[module][0])
            layers |= {one: (rank, layers[one][1]) for one in (name, module)}
        config, sizes = written_config(options, layers, use_rslora, clients=configs)
    written = {m: resized(own, *sizes[m], frozen_a=frozen_a) for m, own in factors.items()}
    return AdapterContent(config, {**_stored(clients, start(written)), **extras}, report)


def base_content(
    clients: Sequence[AdapterFolder], factors: Factors, *, uniform_rank: bool = False
) -> AdapterContent:
    """The correction that is merged into the base weights, as an adapter of its own."""
    content = global_content(clients, factors, {}, uniform_rank=uniform_rank)
    return AdapterContent({**content.config, **BASE_OPTIONS}, content.tensors)


def client_content(
    client: AdapterFolder,
    clients: Sequence[AdapterFolder],
    adapter: Factors,
    extras: Mapping[str, Tensor],
    *,
    frozen_a: bool,
    seed: int,
) -> AdapterContent:
    """What a client receives: the adapter cut to its ranks, with its scalings and options.

    Components that carry nothing start afresh, in the client's own scaling. Under a rule that
    freezes A they stay, and the change of scaling goes to B alone.
    """
    config = client.config
    cut = {
        m: resized(update, config.rank_of(m), config.scaling_of(m), frozen_a=frozen_a)
        for m, update in adapter.items()
    }
    if not frozen_a:
        cut = restarted(clients, cut, seed)
    options = dict(client.config.options)
    if options.get(TOKENS) is not None:  # the rows are in the first client's order
        options[TOKENS] = clients[0].config.options[TOKENS]
    return AdapterContent(options, {**_stored(clients, cut), **extras})


def client_places(clients: Sequence[AdapterFolder]) -> tuple[str, ...]:
    """Where in the output each client's folder stands; clients who receive the same share one."""
    places: dict[tuple[tuple[int, float], ...], str] = {}
    result = []
    for number, client in enumerate(clients, start=1):
        config = client.config
        form = tuple((config.rank_of(m), config.scaling_of(m)) for m in clients[0].layers)
        place = f"clients/rank-{config.rank}"
        if form not in places:
            taken = place in places.values()
            places[form] = f"{place}-client-{number}" if taken else place
        result.append(places[form])
    return tuple(result)


def base_factors(product: LowRankProduct) -> LoRAFactors:
    """A base correction as factors with scaling 1, of no more columns than a matrix can need."""
    if product.columns <= min(product.shape):
        return LoRAFactors(product.A, product.B)
    u, s, vh = product.svd()
    return LoRAFactors(s.unsqueeze(-1) * vh, u)


def _stored(clients: Sequence[AdapterFolder], factors: Factors) -> dict[str, Tensor]:
    """Tensors by key, in the shapes and the dtype that the clients store them in."""
    tensors = {}
    for module, update in factors.items():
        layer, dtype = clients[0].layers[module], kept_dtype(clients, module)
        lora_a, lora_b = layer.packed(update.lora_A, update.lora_B)
        for key, tensor in ((layer.key_A, lora_a), (layer.key_B, lora_b)):
            tensors[key] = _as_dtype(key, tensor, dtype)
    for layer, module in clients[0].tied.values():
        own = clients[0].layers[module]
        tensors |= {layer.key_A: tensors[own.key_B].mT, layer.key_B: tensors[own.key_A].mT}
    return tensors


def _as_dtype(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    written = tensor.to("cpu", dtype)
    if not bool(torch.isfinite(written).all()):
        largest = float(tensor.abs().max())
        limit = torch.finfo(dtype).max
        raise expected(f"largest entry of {key}", largest, f"at most {limit:g}, to fit {dtype}")
    return written
