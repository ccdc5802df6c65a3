"""`aggregate_adapters`: aggregate one round of PEFT folders, including tensors besides LoRA."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fedlora_sim.errors import (
    check_choice,
    check_positive_int,
    check_seed,
    check_sequence,
    expected,
)
from fedlora_sim.federation import EMPTY_PARTITION, check_num_samples
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.peft.agreement import MODULES, AdapterCohort, check_mergeable
from fedlora_sim.peft.config import NAME, agreed_base_model
from fedlora_sim.peft.layers import (
    Found,
    LayerReport,
    Request,
    aggregate_layers,
    check_nothing_to_keep,
    computing_dtype,
    keep_layer,
    rank_levels_of,
    shape_of,
    size_of,
    without_samples,
)
from fedlora_sim.peft.read import PREFIX, Adapter, AdapterFolder
from fedlora_sim.peft.write import (
    AdapterContent,
    Factors,
    base_content,
    base_factors,
    check_output,
    client_content,
    client_places,
    global_content,
    with_fresh_components,
    write_adapters,
)
from fedlora_sim.rules import get_rule
from fedlora_sim.runtime import full_precision, in_parts, map_on_threads, resolve_device
from fedlora_sim.storage import only_writer

# Tensors besides the LoRA factors: trained ones are averaged, frozen ones must agree


def average_extras(cohort: AdapterCohort) -> dict[str, Tensor]:
    """Return the average of `modules_to_save`, trained biases and resized embeddings.

    Args:
        cohort: the clients. Those without samples take no part. Each tensor is averaged over the
            clients that have it.

    Returns:
        Tensors by key, in the clients' dtype, or in the one that can hold all of theirs. A tensor
        that is equal in all adapters is unchanged. Of a counter, such as `num_batches_tracked` of
        BatchNorm, the largest value is returned.

    Raises:
        InputError: if frozen weights differ by more than their precision, or integers differ that
            are not counters.
    """
    result = {}
    for key, having in cohort.extras.items():
        total = sum(cohort.weights[k] for k in having)
        present = []
        for k in having:
            client, weight = cohort.clients[k], cohort.weights[k]
            if weight > 0:
                present.append((client, weight / total))
                continue
            with without_samples(client, weight):
                client.tensor(key)
        result[key] = _average(key, present)
    for module in cohort.carried:  # frozen weights next to the LoRA of an embedding
        (last,) = cohort.holders(module)
        keys = [key for key in last.extras if key.startswith(f"{PREFIX}{module}.")]
        result |= {key: last.tensor(key) for key in keys if key not in result}
    return result


def _average(key: str, clients: Sequence[tuple[Adapter, float]]) -> Tensor:
    first_client = clients[0][0]
    first, order = first_client.tensor(key), first_client.token_indices(key)
    kept, is_same = first, True
    mean = torch.zeros(first.shape, dtype=_summed_in(first))
    for client, share in clients:
        tensor = _in_order(client.tensor(key), client.token_indices(key), order)
        if tensor.is_floating_point() != first.is_floating_point():
            raise expected(
                f"{key} in {client.name}", tensor.dtype, f"{first.dtype}, as in {first_client.name}"
            )
        is_equal = tensor.dtype == first.dtype and torch.equal(tensor, first)
        is_same &= is_equal
        if not tensor.is_floating_point() and tensor.ndim == 0:
            kept = torch.maximum(kept, tensor)
        elif client.is_frozen(key) or not tensor.is_floating_point():
            if not is_equal and not _same_but_for_precision(tensor, kept):
                what = "frozen weights" if client.is_frozen(key) else "whole numbers"
                where = f"{key} in {client.name}"
                raise expected(where, f"{what} that differ", f"the same as in {first_client.name}")
            if _digits(tensor) > _digits(kept):
                kept = tensor
        else:
            mean = mean.to(torch.promote_types(mean.dtype, _summed_in(tensor)))
            mean += share * tensor.to(mean.dtype)
            kept = kept.to(torch.promote_types(kept.dtype, tensor.dtype))
    is_averaged = first.is_floating_point() and not first_client.is_frozen(key)
    return mean.to(kept.dtype) if is_averaged and not is_same else kept


def _same_but_for_precision(one: Tensor, other: Tensor) -> bool:
    """Return True if two tensors are equal after rounding to the less precise dtype."""
    if one.dtype == other.dtype or not one.is_floating_point():
        return False
    types = [torch.finfo(x.dtype) for x in (one, other)]
    wide = torch.promote_types(one.dtype, other.dtype)
    one, other = one.to(wide), other.to(wide)
    rounding = max(t.eps for t in types) * torch.maximum(one.abs(), other.abs())
    rounding += max(t.eps * t.smallest_normal for t in types)
    return bool(((one - other).abs() <= rounding).all())


def _digits(tensor: Tensor) -> float:
    return -torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0


def _in_order(rows: Tensor, tokens: list[int] | None, order: list[int] | None) -> Tensor:
    """Return rows of single tokens in another order of the same tokens; other tensors unchanged."""
    if tokens is None or order is None or tokens == order:
        return rows
    return rows[[tokens.index(token) for token in order]]


def _summed_in(tensor: Tensor) -> torch.dtype:
    """Return the dtype of sums: float32 for half precision, to save memory for embeddings."""
    return torch.float32 if tensor.element_size() <= 2 else torch.float64


# `aggregate_adapters`


@dataclass(frozen=True)
class AggregationReport:
    """Inputs, operations and outputs of an aggregation of adapter folders.

    Args:
        rule: the rule, with its options.
        out: the output folder.
        folders: the clients' folders.
        num_samples: their sample counts.
        base_model: the base model's name in the output.
        base_models: all names that the clients use for it.
        client_folders: the folder that each client receives, within `out`; empty if not requested.
        has_base: whether `out` is the sum of `out/adapter` and `out/base`.
        seed: seed of the draws for empty components.
        layers: one report per module.
        modules: how clients with different modules were treated: `same | shared | owners`.
        left_out: modules that a client has and the output has not.
    """

    rule: str
    out: str
    folders: tuple[str, ...]
    num_samples: tuple[float, ...]
    base_model: str | None
    base_models: tuple[str, ...]
    client_folders: tuple[str, ...]
    has_base: bool
    seed: int
    layers: tuple[LayerReport, ...]
    modules: str = "same"
    left_out: tuple[str, ...] = ()


BATCH_BYTES = 2**25
"""Size of all clients' factors of a batch of modules; larger modules are separate batches."""


@dataclass(frozen=True, eq=False)
class Results:
    """The written update, the adapter for the clients and the base correction, by module."""

    total: dict[str, LoRAFactors]
    adapter: dict[str, LoRAFactors]
    base: dict[str, LoRAFactors]


def aggregate_adapters(
    folders: Sequence[str | Path],
    num_samples: Sequence[float] | None,
    rule: str,
    out: str | Path,
    *,
    base_model: str | None = None,
    rank_levels: Sequence[int] | None = None,
    previous: str | Path | None = None,
    target_rank: int | None = None,
    uniform_rank: bool = False,
    client_folders: bool = False,
    modules: str = "same",
    empty_partition: str = "carry",
    device: str = "auto",
    seed: int = 0,
    force: bool = False,
) -> AggregationReport:
    """Aggregate PEFT LoRA folders into one that `PeftModel.from_pretrained` loads.

    Args:
        folders: one adapter folder per client, `adapter_config.json` and
            `adapter_model.safetensors`. Ranks and scalings may differ, the base model may not, and
            modules only if `modules` says so. A folder may be listed more than once.
        num_samples: sample count of each client; equal when None.
        rule: name of a rule, with options after a colon.
        out: output folder. Under a rule that merges a correction into the base weights it holds the
            sum of adapter and correction; `out/adapter` and `out/base` hold them separately.
        base_model: name of the base model, written to every configuration. It declares that all
            clients use this model, whatever name they give. When None the names must agree,
            ignoring trailing slashes, the snapshot path in the hub's cache, and the location of
            folders of the same name on other machines; a missing revision means `main`.
        rank_levels: ranks of the federation, for modules whose rank is not set by a client's
            rank_pattern. For the others, and when None, the distinct ranks of the clients (and of
            `previous`).
        previous: the last global adapter, of the highest rank level, from which `carry` keeps
            partitions. In the first round there is no previous adapter: pass
            `empty_partition="zero"` if the cohort leaves a partition empty.
        target_rank: truncate `out` to this rank (best approximation).
        uniform_rank: write `out`, `out/adapter` and `out/base` with one rank and one alpha for all
            modules and without patterns, as serving engines require. Factors of lower rank are
            padded with zeros; the updates do not change.
        client_folders: also write what each client receives, `out/clients/rank-*`: the adapter
            truncated to its ranks, in its own scaling and configuration.
        modules: what to do if clients have different modules. `same`: refuse. `shared`: aggregate
            the modules that all clients have, and leave the others out. `owners`: aggregate every
            module over the clients that have it; modules of `previous` that no client in the cohort
            has are an empty partition as a whole, under every rule.
        empty_partition: `zero | carry | error`, see `aggregate`.
        device: compute device: `auto | cpu | cuda | mps`.
        seed: seed for components without energy (all of them under `flora`, those above the
            cohort's ranks under other rules). They are written as LoRA initializes them, A random
            and B zero, because clients could not train two zero factors. Use a new seed every
            round. The update does not depend on it, and a rule that freezes A draws nothing.
        force: replace an existing adapter folder.

    Returns:
        A report of the aggregation, also written to `out/aggregation.json`.

    Raises:
        InputError: before anything is written; names the argument or file, its value and what was
            expected.
    """
    paths = [Path(str(path)) for path in check_sequence("folders", folders, "adapter folders")]
    if not paths:
        raise expected("folders", [], "at least one adapter folder")
    out, last = Path(out), None if previous is None else Path(previous)
    samples = [1.0] * len(paths) if num_samples is None else num_samples
    weights = check_num_samples(samples, len(paths))
    seed = check_seed("seed", seed)
    check_choice("modules", modules, MODULES)
    request = check_request(rule, rank_levels, empty_partition, target_rank)
    check_output(out, [*paths, *([] if last is None else [last])], force=force)
    if base_model is not None and (not isinstance(base_model, str) or not base_model.strip()):
        raise expected("base_model", base_model, "a hub name or a path")
    with only_writer(out, inside=False):
        opened = {path: AdapterFolder(path) for path in dict.fromkeys(paths)}
        clients = [opened[path] for path in paths]
        previous_folder = None if last is None else AdapterFolder(last)
        cohort = AdapterCohort(clients, relative_weights(weights), previous_folder, modules)
        check_mergeable(cohort, rule)
        used = [*opened.values(), *([] if previous_folder is None else [previous_folder])]
        model = agreed_base_model([folder.config for folder in used], base_model)
        results, layers = aggregate_modules(cohort, request, device)
        extras = average_extras(cohort)
        report = AggregationReport(
            rule,
            str(out),
            tuple(str(path) for path in paths),
            weights,
            model[NAME],
            tuple(
                dict.fromkeys(
                    str(c.config.options[NAME]) for c in clients if c.config.options.get(NAME)
                )
            ),
            client_places(cohort) if client_folders else (),
            bool(results.base),
            seed,
            layers,
            cohort.policy,
            cohort.left_out,
        )
        contents = _contents(cohort, results, extras, report, uniform_rank)
        named = ((place, replace(own, config={**own.config, **model})) for place, own in contents)
        write_adapters(out, named, force=force)
    return report


def check_request(
    rule: str, rank_levels: Sequence[int] | None, empty_partition: str, target_rank: int | None
) -> Request:
    """Return the checked request for all modules; the device follows when the dtype is known."""
    if not isinstance(rule, str):
        raise expected("rule", rule, "the name of a rule, which the report can tell")
    get_rule(rule)
    return Request(
        rule,
        _check_levels(rank_levels),
        check_choice("empty_partition", empty_partition, EMPTY_PARTITION),
        None if target_rank is None else check_positive_int("target_rank", target_rank),
        torch.device("cpu"),
    )


def relative_weights(num_samples: Sequence[float]) -> tuple[float, ...]:
    """Return checked sample counts divided by the largest; their sum is always finite."""
    return tuple(count / max(num_samples) for count in num_samples)


def _check_levels(rank_levels: Sequence[int] | None) -> tuple[int, ...] | None:
    if rank_levels is None:
        return None
    given = check_sequence("rank_levels", rank_levels, "ranks", ordered=False)
    if not given:
        raise expected("rank_levels", given, "at least one rank")
    return tuple(sorted({check_positive_int("rank_levels", level) for level in given}))


@full_precision()
def aggregate_modules(
    cohort: AdapterCohort, request: Request, device: str
) -> tuple[Results, tuple[LayerReport, ...]]:
    """Aggregate the modules, with the factors of one batch a thread in memory at a time."""
    results, reports = Results({}, {}, {}), []
    found = {computing_dtype(cohort, module) for module in cohort.modules}
    dtype = torch.float64 if torch.float64 in found else torch.float32
    request = replace(request, device=resolve_device(device, dtype, "aggregation"))
    _check_highest_level(cohort, request.rank_levels)
    for module in cohort.modules:  # run all checks before the first, possibly long, computation
        levels = rank_levels_of(module, cohort, request.rank_levels)
        if cohort.previous_of(module) is None:
            check_nothing_to_keep(module, cohort, levels, request)
    bar = tqdm(total=len(cohort.modules), unit="module", disable=None, leave=False)

    def solve(modules: Sequence[str]) -> dict[str, Found]:
        parts = in_parts(lambda own: aggregate_layers(own, cohort, request), modules)
        bar.update(len(modules))
        return dict(zip(modules, (found for part in parts for found in part), strict=True))

    batches = _batches(cohort, request)
    with bar:
        # One thread a batch: threads that share small products mostly wait for each other.
        is_cpu = request.device.type == "cpu"
        solved = map_on_threads(solve, batches) if is_cpu else [solve(own) for own in batches]
    by_module = {module: one for part in solved for module, one in part.items()}
    for module in (*cohort.modules, *cohort.carried):
        is_carried = module in cohort.carried
        result, total, report = (
            keep_layer(module, cohort, request) if is_carried else by_module.pop(module)
        )
        results.total[module], results.adapter[module] = total, result.adapter
        if result.base is not None:
            results.base[module] = base_factors(result.base)
        reports.append(report)
    _check_some_trained(cohort, reports)
    highest = max(report.rank for report in reports)
    if request.target_rank is not None and highest < request.target_rank:
        expectation = f"at most the rank of the aggregated update, {highest}"
        raise expected("target_rank", request.target_rank, expectation)
    return results, tuple(reports)


def _batches(cohort: AdapterCohort, request: Request) -> list[list[str]]:
    """Return the modules in batches of one shape; each takes a bounded part of the memory."""
    by_shape: dict[Hashable, list[str]] = {}
    for module in cohort.modules:
        by_shape.setdefault(shape_of(module, cohort, request), []).append(module)
    batches = []
    for modules in by_shape.values():
        count = max(1, BATCH_BYTES // size_of(modules[0], cohort))
        batches += [modules[i : i + count] for i in range(0, len(modules), count)]
    return batches


def _check_some_trained(cohort: AdapterCohort, reports: Sequence[LayerReport]) -> None:
    """Refuse a round in which all updates are zero and no other tensor was trained."""
    if any(any(report.energy_before) for report in reports):
        return
    if all(cohort.is_frozen(key) for key in cohort.extras):
        kind, names = cohort.clients[0].kind, [client.name for client in cohort.clients]
        expectation = (
            f"a client that has trained: in every {kind} with samples every update B @ A is zero, "
            "as LoRA starts it"
        )
        raise expected(f"{kind}s", names, expectation)


def _check_highest_level(cohort: AdapterCohort, levels: tuple[int, ...] | None) -> None:
    """Refuse levels above the limit of all modules.

    The federation's rank may exceed that of some.
    """
    limits = [cohort.layer(module).limit for module in cohort.modules]
    limit = max(*limits, *(client.config.rank for client in cohort.clients))
    if levels is not None and levels[-1] > limit:
        expectation = f"ranks from 1 to {limit}, the largest min(d_in, d_out) of a module"
        raise expected("rank_levels", list(levels), expectation)


def _contents(
    cohort: AdapterCohort,
    results: Results,
    extras: Mapping[str, Tensor],
    report: AggregationReport,
    uniform_rank: bool,
) -> Iterator[tuple[str, AdapterContent]]:
    described: dict[str, Any] = asdict(report)
    frozen_a, seed = get_rule(report.rule).frozen_a, report.seed

    def start(factors: Factors) -> Factors:
        return factors if frozen_a else with_fresh_components(cohort, factors, seed)

    def content(factors: Factors, *others: Any) -> AdapterContent:
        how: dict[str, Any] = {"start": start, "frozen_a": frozen_a, "uniform_rank": uniform_rank}
        return global_content(cohort, factors, *others, **how)

    yield "", content(results.total, extras, described)
    if results.base:
        # These are applied to the corrected base; PEFT would restore its embeddings to the old
        # ones.
        extras = {key: x for key, x in extras.items() if not cohort.is_frozen(key)}
        yield "adapter", content(results.adapter, extras)
        yield "base", base_content(cohort, results.base, uniform_rank=uniform_rank)
    receivers = dict(zip(reversed(report.client_folders), reversed(cohort.clients), strict=False))
    for place, client in receivers.items():  # by the first client of each folder
        yield (
            place,
            client_content(client, cohort, results.adapter, extras, frozen_a=frozen_a, seed=seed),
        )
