"""`aggregate`: the public door to the rules, which checks everything before any work."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedlora_sim.aggregation.registry import get_rule
from fedlora_sim.aggregation.rule import AggregationRule, Cohort
from fedlora_sim.errors import (
    check_choice,
    check_finite,
    check_positive_int,
    check_sequence,
    expected,
)
from fedlora_sim.factors import LoRAFactors, check_tensor_finite
from fedlora_sim.federation import EMPTY_PARTITION, check_num_samples


def aggregate(
    updates: Sequence[LoRAFactors],
    num_samples: Sequence[float] | None,
    rule: str | AggregationRule = "raflora",
    *,
    rank_levels: Sequence[int] | None = None,
    previous: LoRAFactors | None = None,
    empty_partition: str = "carry",
    **options: float,
) -> LoRAFactors:
    """Aggregate the LoRA updates of one round's cohort.

    Args:
        updates: one update per client: `lora_A` (..., r_k, d_in), `lora_B` (..., d_out, r_k), each
            with its own scaling; same leading dimensions (layers of one shape), dtype and device.
        num_samples: `n_k` of every client of the cohort; equal when None.
        rule: name of a rule (see `rule_names`) or an `AggregationRule`.
        rank_levels: distinct ranks of the *federation*. When None, the updates are taken to be the
            whole federation; a server that samples clients must pass its levels.
        previous: the last global update, of rank `max(rank_levels)`: what `carry` keeps.
        empty_partition: a partition without contributors is lost (`zero`), kept from `previous`
            (`carry`) or refused (`error`). Only `raflora` has such partitions.
        **options: `rank`: cut the result to its first components; `scaling`: the scaling to write
            the result with.

    Returns:
        The global update, rank `max(rank_levels)`. Product-space rules return the balanced split
        `B = U sqrt(S)`, `A = sqrt(S) V^T` with scaling 1; `zero_pad` returns its averaged factors.
        Half-precision inputs are computed in float32 and returned in their own dtype.

    Raises:
        ValueError: naming the argument, its value and what was expected.

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 5, Algorithm 1, for `raflora`; each rule names its own.
    """
    chosen = get_rule(rule)
    check_updates(updates)
    weights = (1.0,) * len(updates) if num_samples is None else num_samples
    weights = check_num_samples(weights, len(updates))
    levels = _check_levels(rank_levels, updates)
    _check_previous(previous, updates[0], levels[-1])
    empty_partition = check_choice("empty_partition", empty_partition, EMPTY_PARTITION)
    rank, scaling = _check_options(options, levels[-1])
    # A client of weight zero takes no part; relative weights fit any dtype.
    present = [k for k, weight in enumerate(weights) if weight > 0]
    shares = torch.tensor([weights[k] for k in present], dtype=torch.float64) / max(weights)
    cohort = Cohort.from_updates([updates[k] for k in present], shares, levels)
    result = chosen.aggregate(cohort, previous, empty_partition).truncate(rank)
    if scaling is not None:
        result = result.rescale(scaling)
    dtype = updates[0].dtype
    return LoRAFactors(result.lora_A.to(dtype), result.lora_B.to(dtype), result.scaling)


def check_updates(updates: Sequence[LoRAFactors]) -> None:
    """Refuse an empty cohort, updates that do not fit each other and values that are not finite."""
    if len(updates) == 0:
        raise expected("updates", [], "a cohort of at least one client")
    for k, update in enumerate(updates):
        if not isinstance(update, LoRAFactors):
            raise expected(f"updates[{k}]", type(update).__name__, "LoRAFactors")
        if _form(update) != _form(updates[0]):
            raise expected(
                f"updates[{k}]", _form(update), f"the form of updates[0], {_form(updates[0])}"
            )
        for name, tensor in (("lora_A", update.lora_A), ("lora_B", update.lora_B)):
            check_tensor_finite(f"updates[{k}].{name}", tensor)


def _form(update: LoRAFactors) -> str:
    """Everything but the rank that the updates of one cohort must share."""
    batch = tuple(update.lora_A.shape[:-2])
    dims = f"d_out={update.d_out}, d_in={update.d_in}"
    return f"batch={batch}, {dims}, {update.dtype}, {update.device}"


def _check_levels(
    rank_levels: Sequence[int] | None, updates: Sequence[LoRAFactors]
) -> tuple[int, ...]:
    ranks = [update.rank for update in updates]
    given = ranks if rank_levels is None else check_sequence("rank_levels", rank_levels, "ranks")
    levels = tuple(sorted({check_positive_int("rank_levels", level) for level in given}))
    limit = min(updates[0].d_in, updates[0].d_out)
    if not levels or levels[-1] > limit:
        raise expected("rank_levels", list(given), f"ranks from 1 to min(d_in, d_out) = {limit}")
    for k, rank in enumerate(ranks):
        if rank not in levels:
            raise expected(f"updates[{k}].rank", rank, f"one of the rank levels {list(levels)}")
    return levels


def _check_previous(previous: LoRAFactors | None, update: LoRAFactors, r_max: int) -> None:
    if previous is None:
        return
    if not isinstance(previous, LoRAFactors):
        raise expected("previous", type(previous).__name__, "LoRAFactors or None")
    if _form(previous) != _form(update):
        raise expected("previous", _form(previous), f"the form of the updates, {_form(update)}")
    if previous.rank != r_max:
        raise expected("previous.rank", previous.rank, f"the highest rank level, {r_max}")
    check_tensor_finite("previous.lora_A", previous.lora_A)
    check_tensor_finite("previous.lora_B", previous.lora_B)


def _check_options(options: dict[str, float], r_max: int) -> tuple[int, float | None]:
    """Rank and scaling of the result; an unknown option is refused, never ignored."""
    unknown = sorted(set(options) - {"rank", "scaling"})
    if unknown:
        given = options[unknown[0]]
        raise expected(unknown[0], given, "no such option; the options are rank and scaling")
    rank = check_positive_int("rank", options.get("rank", r_max))
    if rank > r_max:
        raise expected("rank", rank, f"at most the highest rank level, {r_max}")
    scaling = options.get("scaling")
    if scaling is not None and check_finite("scaling", scaling) <= 0:
        raise expected("scaling", scaling, "a positive number")
    return rank, scaling
