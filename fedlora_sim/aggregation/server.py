"""`aggregate`: the public door to the rules, which checks everything before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora_sim.aggregation.cohort import Cohort
from fedlora_sim.aggregation.registry import get_rule
from fedlora_sim.aggregation.result import Aggregated
from fedlora_sim.aggregation.rule import AggregationRule
from fedlora_sim.errors import (
    check_choice,
    check_finite,
    check_positive_int,
    check_sequence,
    expected,
)
from fedlora_sim.factors import LoRAFactors, check_tensor_finite
from fedlora_sim.federation import EMPTY_PARTITION, check_num_samples
from fedlora_sim.lazy import LazySequence


@torch.no_grad()
def aggregate(
    updates: Sequence[LoRAFactors],
    num_samples: Sequence[float] | None,
    rule: str | AggregationRule = "raflora",
    *,
    rank_levels: Sequence[int] | None = None,
    positions: Sequence[Sequence[int]] | None = None,
    previous: LoRAFactors | None = None,
    empty_partition: str = "carry",
    rank: int | None = None,
    scaling: float | None = None,
) -> Aggregated:
    """Aggregate the LoRA updates of one round's cohort.

    Args:
        updates: one update per client: `lora_A` (..., r_k, d_in), `lora_B` (..., d_out, r_k), each
            with its own scaling; same leading dimensions (layers of one shape), dtype and device.
            Any sequence, also one that loads a client when it is indexed: where the ranks sum to
            more than min(d_in, d_out), no more than one client is held at a time.
        num_samples: `n_k` of every client of the cohort; equal when None.
        rule: name of a rule (see `rule_names`), with options as in `raflora:canonicalize=true`, or
            an `AggregationRule`.
        rank_levels: distinct ranks of the *federation*. When None, the updates are taken to be the
            whole federation; a server that samples clients must pass its levels.
        positions: which rank indices every client's columns stand at, for clients that were
            allocated other directions than the first r_k.
        previous: the last global adapter, of rank `max(rank_levels)`: what `carry` keeps.
        empty_partition: a partition without contributors is lost (`zero`), kept from `previous`
            (`carry`) or refused (`error`). Only `raflora` and `rbla` have such partitions.
        rank: cut the adapter to its first components.
        scaling: write the adapter with this scaling.

    Returns:
        The global adapter, of rank `max(rank_levels)`, and the correction that `flora` and `fedex`
        merge into the base. Product-space rules return the balanced split `B = U sqrt(S)`,
        `A = sqrt(S) V^T` with scaling 1; factor-space rules their averaged factors. Half-precision
        inputs are computed in float32 and their adapter returned in their own dtype.

    Raises:
        ValueError: naming the argument, its value and what was expected.

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 5, Algorithm 1, for `raflora`; each rule names its own.
    """
    chosen = get_rule(rule)
    form, ranks = _check_updates(updates)
    weights = (1.0,) * len(ranks) if num_samples is None else num_samples
    weights = check_num_samples(weights, len(ranks))
    levels = _check_levels(rank_levels, ranks, min(form.d_in, form.d_out))
    r_max = levels[-1]
    held = _check_positions(positions, ranks, r_max, chosen)
    _check_previous(previous, form, r_max)
    empty_partition = check_choice("empty_partition", empty_partition, EMPTY_PARTITION)
    cut = _check_rank(rank, r_max)
    _check_scaling(scaling)
    # A client of weight zero takes no part; relative weights fit any dtype.
    present = [k for k, weight in enumerate(weights) if weight > 0]
    shares = torch.tensor([weights[k] for k in present], dtype=torch.float64) / max(weights)
    kept = None if held is None else [held[k].to(form.device) for k in present]
    cohort_updates = LazySequence(len(present), lambda k: updates[present[k]])
    cohort = Cohort.from_updates(cohort_updates, shares, r_max, kept)

    def finish(adapter: LoRAFactors) -> LoRAFactors:
        adapter = adapter.truncate(cut)
        adapter = adapter if scaling is None else chosen.rescale(adapter, scaling)
        return adapter.to(form.dtype)

    return chosen.aggregate(cohort, previous, empty_partition, finish)


@dataclass(frozen=True)
class _Form:
    """Everything but the rank that the updates of one cohort must share."""

    batch: tuple[int, ...]
    d_out: int
    d_in: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, update: LoRAFactors) -> _Form:
        batch = tuple(update.lora_A.shape[:-2])
        return cls(batch, update.d_out, update.d_in, update.dtype, update.device)

    def __str__(self) -> str:
        dims = f"d_out={self.d_out}, d_in={self.d_in}"
        return f"batch={self.batch}, {dims}, {self.dtype}, {self.device}"


def _check_updates(updates: Sequence[LoRAFactors]) -> tuple[_Form, list[int]]:
    """Refuse an empty cohort, updates that do not fit each other and values that are not finite.

    Returns:
        The form that the updates share, and the rank of every client.
    """
    if not isinstance(updates, Sequence):
        raise expected("updates", type(updates).__name__, "a sequence of LoRAFactors")
    if len(updates) == 0:
        raise expected("updates", [], "a cohort of at least one client")
    form, rank = _check_update(0, updates[0], None)
    # By index: a loop variable would hold one client too many.
    others = (_check_update(k, updates[k], form)[1] for k in range(1, len(updates)))
    return form, [rank, *others]


def _check_update(k: int, update: LoRAFactors, wanted: _Form | None) -> tuple[_Form, int]:
    if not isinstance(update, LoRAFactors):
        raise expected(f"updates[{k}]", type(update).__name__, "LoRAFactors")
    form = _Form.of(update)
    if wanted is not None and form != wanted:
        raise expected(f"updates[{k}]", str(form), f"the form of updates[0], {wanted}")
    for name, tensor in (("lora_A", update.lora_A), ("lora_B", update.lora_B)):
        check_tensor_finite(f"updates[{k}].{name}", tensor)
    return form, update.rank


def _check_levels(
    rank_levels: Sequence[int] | None, ranks: Sequence[int], limit: int
) -> tuple[int, ...]:
    given = ranks if rank_levels is None else check_sequence("rank_levels", rank_levels, "ranks")
    levels = tuple(sorted({check_positive_int("rank_levels", level) for level in given}))
    if not levels or levels[-1] > limit:
        raise expected("rank_levels", list(given), f"ranks from 1 to min(d_in, d_out) = {limit}")
    for k, rank in enumerate(ranks):
        if rank not in levels:
            raise expected(f"updates[{k}].rank", rank, f"one of the rank levels {list(levels)}")
    return levels


def _check_positions(
    positions: Sequence[Sequence[int]] | None,
    ranks: Sequence[int],
    r_max: int,
    rule: AggregationRule,
) -> list[Tensor] | None:
    if positions is None:
        return None
    if rule.needs_svd_allocation:
        raise expected("positions", list(positions), f"None for {rule.label}: SVD allocation only")
    given = check_sequence("positions", positions, "one row of rank indices per client")
    if len(given) != len(ranks):
        raise expected("positions", f"{len(given)} rows", f"{len(ranks)}, one per client")
    rows = []
    for k, (row, rank) in enumerate(zip(given, ranks, strict=True)):
        expectation = f"{rank} distinct rank indices in 0..{r_max - 1}"
        held = check_sequence(f"positions[{k}]", row, expectation)
        allowed = [i for i in range(r_max) if i in held]
        if len(held) != rank or len(allowed) != rank:
            raise expected(f"positions[{k}]", held, expectation)
        rows.append(torch.tensor([int(i) for i in held]))  # type: ignore[call-overload]
    return rows


def _check_previous(previous: LoRAFactors | None, form: _Form, r_max: int) -> None:
    if previous is None:
        return
    if not isinstance(previous, LoRAFactors):
        raise expected("previous", type(previous).__name__, "LoRAFactors or None")
    if _Form.of(previous) != form:
        raise expected("previous", str(_Form.of(previous)), f"the form of the updates, {form}")
    if previous.rank != r_max:
        raise expected("previous.rank", previous.rank, f"the highest rank level, {r_max}")
    check_tensor_finite("previous.lora_A", previous.lora_A)
    check_tensor_finite("previous.lora_B", previous.lora_B)


def _check_rank(rank: int | None, r_max: int) -> int:
    cut = r_max if rank is None else check_positive_int("rank", rank)
    if cut > r_max:
        raise expected("rank", rank, f"at most the highest rank level, {r_max}")
    return cut


def _check_scaling(scaling: float | None) -> None:
    if scaling is not None and check_finite("scaling", scaling) <= 0:
        raise expected("scaling", scaling, "a positive number")
