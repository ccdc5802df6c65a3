"""Laws on how a round is computed: dtypes, devices, batches, and small changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fedlora_sim.aggregation import Aggregator, as_rule
from fedlora_sim.aggregation.round import check_round
from fedlora_sim.conformance.case import Case
from fedlora_sim.conformance.law import Check, by_property, require_close, universal
from fedlora_sim.conformance.result import NotApplicable, Violation
from fedlora_sim.conformance.spectra import gap_at
from fedlora_sim.factors import LoRAFactors
from fedlora_sim.tolerances import LARGEST_SLOPE, SMALL_STEP, relative

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _dtypes(rule: Aggregator, case: Case) -> None:
    wide = case.delta(rule)
    if wide.dtype != torch.float64:
        raise Violation(f"updates in {torch.float64} come back in {wide.dtype}")
    for dtype in DTYPES:
        result = case.to(dtype).step(rule)[0]
        if result.adapter.dtype != dtype:
            raise Violation(f"updates in {dtype} come back in {result.adapter.dtype}")
        found, what = result.delta().double(), f"the results in float64 and in {dtype}"
        off = float(torch.linalg.vector_norm(found - wide))
        bound = relative("dtype", dtype) * case.size
        if not off <= bound:
            raise Violation(f"{what} differ by {off:.3g} in norm, {bound:.1g} is rounding")


def _device(rule: Aggregator, case: Case) -> None:
    place = _accelerator()
    assert place is not None  # else the check is skipped
    narrow = case.to(torch.float32)
    moved = narrow.map(lambda u: _changed(u, lambda x: x.to(place)))
    result = moved.step(rule)[0]
    if result.adapter.device.type != place:
        raise Violation(f"updates on {place} come back on {result.adapter.device}")
    found, wanted = result.delta().cpu().double(), narrow.delta(rule).double()
    off = float(torch.linalg.vector_norm(found - wanted))
    bound = relative("dtype", torch.float32) * case.size
    if not off <= bound:
        raise Violation(f"the results on {place} and on the CPU differ by {off:.3g} in norm")


def _accelerator() -> str | None:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def _batched(rule: Aggregator, case: Case) -> None:
    """Two layers at once: the round, and the same with every B turned upside down."""
    other = case.map(lambda u: replace(u, lora_B=u.lora_B.flip(0)))
    updates = tuple(map(_stacked, case.updates, other.updates))
    previous = _stacked(case.previous, other.previous)
    checked = check_round(
        updates,
        case.weights,
        rank_levels=case.rank_levels,
        positions=None,
        previous=previous,
        empty_partition=case.empty_partition,
        svd_only=None,
    )
    found = as_rule(rule).aggregate(checked.cohort, previous, case.empty_partition).delta()
    for layer, alone in enumerate((case, other)):
        what = f"layer {layer} of a batch, and the layer alone,"
        require_close(found[layer], alone.delta(rule), what, case.size, "iteration")


def _continuous(rule: Aggregator, case: Case) -> None:
    """A step of all B at once, where what is cut away lies apart from what is kept."""
    case, r_max = replace(case, empty_partition="zero"), case.rank_levels[-1]
    limit = min(case.previous.d_out, case.previous.d_in)
    if r_max < limit:
        padded = _padded(case.previous, limit)
        whole = replace(case, rank_levels=(*case.rank_levels, limit), previous=padded)
        if not gap_at(whole.delta(rule), r_max):
            raise NotApplicable
    generator, step = case.generator, SMALL_STEP * case.size

    def moved(update: LoRAFactors) -> LoRAFactors:
        noise = torch.randn(update.lora_B.shape, generator=generator, dtype=torch.float64)
        return replace(update, lora_B=update.lora_B + SMALL_STEP * noise)

    change = float(torch.linalg.vector_norm(case.map(moved).delta(rule) - case.delta(rule)))
    bound = LARGEST_SLOPE * (step + SMALL_STEP * sum(abs(u.scaling) for u in case.updates))
    if not change <= bound:
        raise Violation(f"updates moved by {step:.1g} move the result by {change:.3g} in norm")


def _padded(update: LoRAFactors, r: int) -> LoRAFactors:
    more = r - update.rank
    lora_a = torch.cat([update.lora_A, update.lora_A.new_zeros(more, update.d_in)])
    lora_b = torch.cat([update.lora_B, update.lora_B.new_zeros(update.d_out, more)], dim=1)
    return LoRAFactors(lora_a, lora_b, update.scaling)


def _stacked(first: LoRAFactors, second: LoRAFactors) -> LoRAFactors:
    lora_a = torch.stack([first.lora_A, second.lora_A])
    return LoRAFactors(lora_a, torch.stack([first.lora_B, second.lora_B]), first.scaling)


def _changed(update: LoRAFactors, change: Callable[[Tensor], Tensor]) -> LoRAFactors:
    return LoRAFactors(change(update.lora_A), change(update.lora_B), update.scaling)


CHECKS = (
    Check(
        "dtypes", "The result is that of float64, in the dtype of the updates.", _dtypes, universal
    ),
    Check(
        "device",
        "Updates on an accelerator give what they give on the CPU, there.",
        _device,
        universal,
        missing=lambda: None if _accelerator() else "no GPU",
    ),
    Check("batched", "Layers in a batch are layers one by one.", _batched, by_property("batched")),
    Check(
        "continuous",
        "A small change of the updates is a small change of the result.",
        _continuous,
        by_property("continuous"),
        {"full_rank": False},
    ),
)
