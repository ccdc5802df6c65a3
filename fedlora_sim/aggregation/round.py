"""One round as a server meets it: everything is checked, then the cohort is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora_sim.aggregation.cohort import Cohort
from fedlora_sim.aggregation.result import Aggregated
from fedlora_sim.errors import check_choice, check_positive_int, check_sequence, expected
from fedlora_sim.federation import EMPTY_PARTITION, check_num_samples
from fedlora_sim.lora import LoRAFactors, check_tensor_finite
from fedlora_sim.lowrank import LazySequence, compute_dtype


@dataclass(frozen=True, eq=False)
class Round:
    """A round that has been checked.

    Args:
        cohort: the clients that take part, in the dtype that they are computed in.
        empty_partition: `zero | carry | error`.
        dtype: of the updates.
    """

    cohort: Cohort
    empty_partition: str
    dtype: torch.dtype


def check_round(
    updates: Sequence[LoRAFactors],
    weights: Sequence[float] | None,
    *,
    rank_levels: Sequence[int] | None,
    positions: Sequence[Sequence[int]] | None,
    previous: LoRAFactors | None,
    empty_partition: str,
    svd_only: str | None,
) -> Round:
    """The cohort of a round, without its clients of weight zero.

    Args:
        updates: as for `aggregate`.
        weights: unnormalised, one per client; equal when None.
        rank_levels: as for `aggregate`.
        positions: as for `aggregate`.
        previous: as for `aggregate`.
        empty_partition: as for `aggregate`.
        svd_only: label of a rule that knows no other allocation than SVD; None for the others.

    Raises:
        InputError: naming the argument, its value and what was expected.
    """
    form, ranks = _check_updates(updates)
    weights = check_num_samples((1.0,) * len(ranks) if weights is None else weights, len(ranks))
    levels = _check_levels(rank_levels, ranks, min(form.d_in, form.d_out))
    held = _check_positions(positions, ranks, levels[-1], svd_only)
    _check_previous(previous, form, levels[-1])
    empty_partition = check_choice("empty_partition", empty_partition, EMPTY_PARTITION)
    # A client of weight zero takes no part; relative weights fit any dtype.
    present = [k for k, weight in enumerate(weights) if weight > 0]
    shares = torch.tensor([weights[k] for k in present], dtype=torch.float64) / max(weights)
    kept = None if held is None else [held[k].to(form.device) for k in present]
    cohort_updates = LazySequence(len(present), lambda k: updates[present[k]])
    cohort = Cohort.from_updates(cohort_updates, shares, levels, kept)
    return Round(cohort, empty_partition, form.dtype)


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
    limits = torch.finfo(compute_dtype(update.dtype))
    if update.scaling != 0 and not limits.tiny <= abs(update.scaling) <= limits.max:
        size = f"0, or a size from {limits.tiny:.2g} to {limits.max:.2g}, as {limits.dtype} holds"
        raise expected(f"updates[{k}].scaling", update.scaling, size)
    return form, update.rank


def check_result(result: Aggregated) -> Aggregated:
    """Refuse an aggregate that its dtype does not hold.

    Raises:
        InputError: naming the factor and the dtype.
    """
    for name in ("lora_A", "lora_B"):
        tensor = getattr(result.adapter, name)
        if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
            first = tensor[~torch.isfinite(tensor)].flatten()[0].item()
            wanted = f"updates whose aggregate {tensor.dtype} can hold"
            raise expected(f"{name} of the aggregate", first, wanted)
    return result


def _check_levels(
    rank_levels: Sequence[int] | None, ranks: Sequence[int], limit: int
) -> tuple[int, ...]:
    given = (
        ranks
        if rank_levels is None
        else check_sequence("rank_levels", rank_levels, "ranks", ordered=False)
    )
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
    svd_only: str | None,
) -> list[Tensor] | None:
    if positions is None:
        return None
    if svd_only is not None:
        raise expected("positions", list(positions), f"None for {svd_only}: SVD allocation only")
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
