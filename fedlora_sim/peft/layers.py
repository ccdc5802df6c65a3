"""Aggregate one module of a federation of adapters; tensors of unequal length."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedlora_sim.errors import InputError, expected
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import compute_dtype
from fedlora_sim.metrics import energy_ratio
from fedlora_sim.peft.agreement import AdapterCohort
from fedlora_sim.peft.read import Adapter
from fedlora_sim.rules import Aggregated, aggregate, get_rule


@dataclass(frozen=True)
class LayerReport:
    """Effect of the aggregation on one module.

    Energies of stacked experts are sums over the experts, direction by direction.

    Args:
        module: name in the base model; for target_parameters the name of the parameter.
        client_ranks: rank of each client that has the module.
        levels: rank levels that the rule used.
        rank: rank of the written update, not counting components of zeros that pad it to the rank
            of other modules.
        energy_before: energies `sigma_i**2`, weighted mean over the clients' updates.
        energy_after: energies of the written update.
        rho_before: share of the energy at the lowest level, weighted mean over the clients'
            updates; None if all updates are zero.
        rho_after: the same share of the written update; None if it is zero.
        experts: number of experts that the parameter stacks; 1 for other modules.
        owners: positions of the clients that have the module, from 0. Empty for a module that was
            kept from the last global adapter.
        coverage: weight share of these clients. Their weights are normalized to 1, so that the
            other clients do not dilute the module: its prediction is that of a federation of the
            owners alone.
    """

    module: str
    client_ranks: tuple[int, ...]
    levels: tuple[int, ...]
    rank: int
    energy_before: tuple[float, ...]
    energy_after: tuple[float, ...]
    rho_before: float | None
    rho_after: float | None
    experts: int = 1
    owners: tuple[int, ...] = ()
    coverage: float = 1.0


@dataclass(frozen=True)
class Request:
    """Arguments of the aggregation that apply to all modules.

    Args:
        rule: name of the rule, with its options.
        rank_levels: ranks of the federation, for modules whose rank no pattern sets.
        empty_partition: `zero | carry | error`.
        target_rank: rank to which the written update is truncated.
        device: compute device.
    """

    rule: str
    rank_levels: tuple[int, ...] | None
    empty_partition: str
    target_rank: int | None
    device: torch.device


def aggregate_layer(
    module: str, cohort: AdapterCohort, request: Request
) -> tuple[Aggregated, LoRAFactors, LayerReport]:
    """Aggregate one module's updates.

    Returns:
        The rule's result; the written update (adapter plus base correction, truncated to the target
        rank); and the report.

    Raises:
        InputError: names the module.
    """
    dtype = computing_dtype(cohort, module)
    levels = rank_levels_of(module, cohort, request.rank_levels)
    owners, previous = cohort.owners(module), cohort.previous_of(module)
    clients = [cohort.clients[k] for k in owners]
    weights = tuple(cohort.weights[k] for k in owners)

    def factors(folder: Adapter) -> LoRAFactors:
        return folder.factors(module, dtype, request.device, width=levels[-1])

    updates = []
    for client, weight in zip(clients, weights, strict=True):
        with without_samples(client, weight):
            updates.append(factors(client))
    last = None if previous is None else factors(previous).truncate(levels[-1])
    # A client without samples takes no part. It is left out here, so that the engine's client
    # numbers match the names below.
    present = [k for k, weight in enumerate(weights) if weight > 0]
    try:
        result = aggregate(
            [updates[k] for k in present],
            [weights[k] for k in present],
            request.rule,
            rank_levels=levels,
            previous=last,
            empty_partition=request.empty_partition,
        )
        if result.state:
            expectation = "a rule that keeps nothing from round to round, as folders cannot"
            raise expected("rule", request.rule, expectation)
        total = _written(result, request.target_rank)
        ranks, own = tuple(update.rank for update in updates), [_energies(u) for u in updates]
        report = _report(module, ranks, own, total, _energies(total), levels, weights)
        coverage = cohort.coverage(module)
        return result, total, replace(report, owners=owners, coverage=coverage)
    except InputError as error:
        names = (f"{module} in {clients[k].name}" for k in present)
        raise InputError(_with_names(str(error), module, list(names))) from None
    except torch.linalg.LinAlgError:
        largest = max(float(t.abs().max()) for u in updates for t in (u.lora_A, u.lora_B))
        expectation = f"factors whose products {dtype} can hold"
        raise expected(f"largest entry of {module}", largest, expectation) from None


def shape_of(module: str, cohort: AdapterCohort, request: Request) -> Hashable:
    """Return all that modules must share to be aggregated in one batch."""
    clients = [cohort.clients[k] for k in cohort.owners(module)]
    previous = cohort.previous_of(module)
    sizes = [
        (own.config.rank_of(module), own.config.scaling_of(module))
        for own in (*clients, *([] if previous is None else [previous]))
    ]
    return (
        cohort.layer(module).form,
        cohort.owners(module),
        tuple(sizes),
        previous is None,
        computing_dtype(cohort, module),
        rank_levels_of(module, cohort, request.rank_levels),
    )


def size_of(module: str, cohort: AdapterCohort) -> int:
    """Return the bytes of all clients' factors of a module, in the compute dtype."""
    layers = [client.layers[module] for client in cohort.holders(module)]
    entries = sum(math.prod(layer.shape_A) + math.prod(layer.shape_B) for layer in layers)
    return entries * computing_dtype(cohort, module).itemsize


Found = tuple[Aggregated, LoRAFactors, LayerReport]


@torch.no_grad()
def aggregate_layers(
    modules: Sequence[str], cohort: AdapterCohort, request: Request
) -> list[Found]:
    """Aggregate modules of one shape (`shape_of`) in one batch; see `aggregate_layer`.

    Raises:
        InputError: names the module.
    """
    if len(modules) > 1:
        found = _aggregate_together(modules, cohort, request)
        if found is not None:
            return found
    return [aggregate_layer(module, cohort, request) for module in modules]


def _aggregate_together(
    modules: Sequence[str], cohort: AdapterCohort, request: Request
) -> list[Found] | None:
    """Return the results of a batch; None if something is refused, whose module has to be named."""
    first = modules[0]
    dtype = computing_dtype(cohort, first)
    levels, owners = rank_levels_of(first, cohort, request.rank_levels), cohort.owners(first)
    weights = tuple(cohort.weights[k] for k in owners)

    def stack(adapter: Adapter) -> LoRAFactors:
        parts = [
            adapter.factors(m, dtype, request.device, width=levels[-1], is_checked=False)
            for m in modules
        ]
        lora_a, lora_b = (
            torch.stack(x) for x in zip(*((p.lora_A, p.lora_B) for p in parts), strict=True)
        )
        return LoRAFactors(lora_a, lora_b, parts[0].scaling)

    previous = cohort.previous_of(first)
    try:
        updates = [stack(cohort.clients[k]) for k in owners]
        last = None if previous is None else stack(previous).truncate(levels[-1])
        every = [*updates, *([] if last is None else [last])]
        sums = torch.stack([x.sum() for update in every for x in (update.lora_A, update.lora_B)])
        if not bool(torch.isfinite(sums).all()):  # one check for the stack
            return None
        present = [k for k, weight in enumerate(weights) if weight > 0]
        result = aggregate(
            [updates[k] for k in present],
            [weights[k] for k in present],
            request.rule,
            rank_levels=levels,
            previous=last,
            empty_partition=request.empty_partition,
        )
        if result.state:
            return None
        total = _written(result, request.target_rank)
        own, after = [energies(update) for update in updates], energies(total)
    except (InputError, torch.linalg.LinAlgError):
        return None
    found = []
    for i, module in enumerate(modules):
        before = [energy[i] for energy in own]
        ranks = tuple(update.rank for update in updates)
        written = _at(total, i)
        report = _report(module, ranks, before, written, after[i], levels, weights)
        report = replace(report, owners=owners, coverage=cohort.coverage(module))
        base = None if result.base is None else result.base.at(i)
        found.append((Aggregated(_at(result.adapter, i), base), written, report))
    return found


def _at(factors: LoRAFactors, i: int) -> LoRAFactors:
    return LoRAFactors(factors.lora_A[i], factors.lora_B[i], factors.scaling)


def keep_layer(
    module: str, cohort: AdapterCohort, request: Request
) -> tuple[Aggregated, LoRAFactors, LayerReport]:
    """Return the result for a module of the last global adapter that no client in the cohort has.

    The whole module is an empty partition: it is kept, set to zero or refused, under every rule.
    """
    (last,) = cohort.holders(module)
    dtype = computing_dtype(cohort, module)
    kept = last.factors(module, dtype, request.device)
    if request.empty_partition == "error":
        raise expected(f"{module}: empty_partition", "error", "a client in the cohort that has it")
    if request.empty_partition == "zero":
        kept = LoRAFactors(kept.lora_A, torch.zeros_like(kept.lora_B), kept.scaling)
    result = Aggregated(kept)
    total = _written(result, request.target_rank)
    after = _energies(total)
    levels = (last.config.rank_of(module),)
    ratio = float(energy_ratio(after, levels[0]))
    experts = math.prod(total.lora_A.shape[:-2])
    share = None if np.isnan(ratio) else ratio
    report = LayerReport(
        module, (), levels, total.rank, (), tuple(after.tolist()), None, share, experts, (), 0.0
    )
    return result, total, report


@contextmanager
def without_samples(client: Adapter, weight: float) -> Iterator[None]:
    """Add to read errors that the client has no samples, so that its folder is not needed.

    The folder is refused nevertheless: values that are not finite are never ignored silently.
    """
    try:
        yield
    except InputError as error:
        if weight > 0:
            raise
        hint = f"; its client has 0 samples and takes no part: leave {client.name} out"
        raise InputError(f"{error}{hint}") from None


def computing_dtype(cohort: AdapterCohort, module: str) -> torch.dtype:
    """Return the compute dtype that can hold all clients' factors of a module."""
    return compute_dtype(kept_dtype(cohort, module))


def kept_dtype(cohort: AdapterCohort, module: str) -> torch.dtype:
    """Return the clients' dtype of a module; if they differ, the one that can hold all of them."""
    clients = cohort.holders(module)
    dtype = clients[0].layers[module].dtype
    for client in clients[1:]:
        dtype = torch.promote_types(dtype, client.layers[module].dtype)
    return dtype


def rank_levels_of(
    module: str, cohort: AdapterCohort, given: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the federation's ranks for a module, ascending.

    These are `given` if no client's rank_pattern sets the rank of the module, and twice `given` if
    PEFT doubled r for a fused parameter. Otherwise they are the clients' ranks and that of the last
    global adapter, which the highest client received.

    Raises:
        InputError: if a client's rank is not a given level or above the last adapter's.
    """
    clients = [cohort.clients[k] for k in cohort.owners(module)]
    previous = cohort.previous_of(module)
    ranks = {client.config.rank_of(module) for client in clients}
    multiples = {client.config.rank_multiple(module) for client in clients}
    multiple = multiples.pop() if len(multiples) == 1 else None
    if given is not None and multiple is not None:
        levels = sorted({multiple * level for level in given})
        for client in clients:
            rank = client.config.rank_of(module)
            if rank not in levels:
                where = f"rank of {module} in {client.name}"
                raise expected(where, rank, f"one of the ranks in rank_levels, {levels}")
    else:
        levels = sorted(ranks | ({previous.config.rank_of(module)} if previous else set()))
    if previous is not None and _rank_carried(previous, module, levels[-1]) != levels[-1]:
        rank = previous.config.rank_of(module)
        where = f"rank of {module} in the last adapter {previous.name}"
        raise expected(where, rank, f"the highest rank level, {levels[-1]}")
    return tuple(levels)


def _rank_carried(previous: Adapter, module: str, highest: int) -> int:
    """Return the rank of the last adapter, ignoring components above `highest` if all are zero.

    An adapter is written with such components if no pattern gives a module its own rank.
    """
    rank = previous.config.rank_of(module)
    if rank <= highest:
        return rank
    lora_b = previous.factors(module, torch.float64, torch.device("cpu")).lora_B
    return rank if bool(lora_b[..., highest:].any()) else highest


def check_nothing_to_keep(
    module: str, cohort: AdapterCohort, levels: Sequence[int], request: Request
) -> None:
    """Refuse to carry an empty partition without a last global adapter.

    Usually this is the first round of a federation with sampled clients.

    Raises:
        InputError: names the module and the remedy.
    """
    if request.empty_partition != "carry" or not get_rule(request.rule).has_empty_partition_policy:
        return
    present = [cohort.clients[k] for k in cohort.owners(module) if cohort.weights[k] > 0]
    highest = max(client.config.rank_of(module) for client in present)
    if highest < levels[-1]:
        expectation = (
            "the last global adapter, because no client in this cohort sends components "
            f"{highest + 1} to {levels[-1]} and empty_partition='carry' keeps the last ones; in "
            "the first round, which has no previous adapter, choose empty_partition='zero'"
        )
        raise expected(f"{module}: previous", None, expectation)


def _written(result: Aggregated, target_rank: int | None) -> LoRAFactors:
    """Return the sum of adapter and base correction, truncated to the target rank."""
    total = result.total()
    if target_rank is None or target_rank >= total.rank:
        return total
    return result.total(target_rank)


def _with_names(message: str, module: str, names: Sequence[str]) -> str:
    """Return the engine's message with the client's folder instead of the number of the update."""
    found = re.match(r"updates\[(\d+)\]\.(.*)", message, flags=re.DOTALL)
    return f"{module}: {message}" if found is None else f"{names[int(found[1])]}: {found[2]}"


def _report(
    module: str,
    ranks: tuple[int, ...],
    own: Sequence[np.ndarray],
    total: LoRAFactors,
    after: np.ndarray,
    levels: tuple[int, ...],
    weights: tuple[float, ...],
) -> LayerReport:
    """Return the report of a module from the energies of its updates and of the written one."""
    before = np.zeros((len(own), max(len(energy) for energy in own)))
    for row, energy in zip(before, own, strict=True):
        row[: len(energy)] = energy
    shares = np.asarray(weights) / sum(weights)
    ratios = energy_ratio(before, levels[0])
    some = ~np.isnan(ratios) & (shares > 0)
    ratio = float(energy_ratio(after, levels[0]))
    return LayerReport(
        module,
        ranks,
        levels,
        total.rank,
        tuple((shares @ before).tolist()),
        tuple(after.tolist()),
        float(np.average(ratios[some], weights=shares[some])) if some.any() else None,
        None if np.isnan(ratio) else ratio,
        math.prod(total.lora_A.shape[:-2]),
    )


def _energies(update: LoRAFactors) -> np.ndarray:
    """Return energies of one module's update, (r,); summed over stacked experts."""
    batch = LoRAFactors(update.lora_A[None], update.lora_B[None], update.scaling)
    return energies(batch)[0]


def energies(update: LoRAFactors) -> np.ndarray:
    """Return energies `sigma_i**2` of updates, descending, (modules, r); summed over experts."""
    singular = update.product.amplitudes().cpu().numpy()
    found: np.ndarray = (singular**2).reshape(len(singular), -1, singular.shape[-1]).sum(axis=1)
    return found
