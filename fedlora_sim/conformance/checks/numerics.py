"""Laws on how a round is computed: dtypes, devices, batches, and small changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedlora_sim.aggregation import Aggregator, as_rule
from fedlora_sim.aggregation.round import check_round
from fedlora_sim.conformance.case import Case
from fedlora_sim.conformance.law import Check, by_property, require_close, universal
from fedlora_sim.conformance.result import NotApplicable, Violation
from fedlora_sim.conformance.spectra import gap_at, lie_apart
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.tolerances import LARGEST_SLOPE, SMALL_STEP, narrow_error

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYERS, SHAPES = 3, ((3,), (1, 3), (3, 1))
"""How many layers a batch has, and how they are laid out."""
HALVINGS = 26
"""Of a way as long as the updates, until a step is about as small as `SMALL_STEP`."""
ONE_IN = 3
"""Cases of so many in which that is done: it takes ten times as long as another law."""


def _dtypes(rule: Aggregator, case: Case) -> None:
    for dtype in DTYPES:
        narrow = case.to(dtype)
        wide = narrow.to(torch.float64)
        wanted = wide.delta(rule)
        if wanted.dtype != torch.float64:
            raise Violation(f"updates in {torch.float64} come back in {wanted.dtype}")
        result, state = narrow.step(rule)
        for later in (result, narrow.step(rule, state)[0]):
            if later.adapter.dtype != dtype:
                raise Violation(f"updates in {dtype} come back in {later.adapter.dtype}")
        what = f"the results in float64 and in {dtype}"
        bound = _rounding(rule, wide, wanted, dtype)
        _require_within(result.delta().double(), wanted, what, bound)


def _rounding(rule: Aggregator, wide: Case, result: Tensor, dtype: torch.dtype) -> float:
    """Norm of what rounding to a dtype may do to the result of a case in float64."""
    eps, generator = torch.finfo(dtype).eps, wide.generator

    def moved(x: Tensor) -> Tensor:
        signs = torch.randint(0, 2, x.shape, generator=generator, dtype=x.dtype) * 2 - 1
        return x * (1 + eps * signs)

    def rounded(update: LoRAFactors) -> LoRAFactors:
        # clients who share one A share its rounding
        own = update.lora_A if rule.properties.common_a else moved(update.lora_A)
        return replace(update, lora_A=own, lora_B=moved(update.lora_B))

    change = float(torch.linalg.vector_norm(wide.map(rounded).delta(rule) - result))
    size = float(torch.linalg.vector_norm(result))  # which is more, where weights are no shares
    return narrow_error(dtype, max(wide.size, size), change)


def _require_within(found: Tensor, wanted: Tensor, what: str, bound: float) -> None:
    off = float(torch.linalg.vector_norm(found - wanted))
    if not off <= bound:
        raise Violation(f"{what} differ by {off:.3g} in norm, {bound:.1g} is rounding")


def _device(rule: Aggregator, case: Case) -> None:
    place = _accelerator()
    assert place is not None  # else the check is skipped
    narrow = case.to(torch.float32)
    wide = narrow.to(torch.float64)
    moved = narrow.map(lambda u: _changed(u, lambda x: x.to(place)))
    result = moved.step(rule)[0]
    if result.adapter.device.type != place:
        raise Violation(f"updates on {place} come back on {result.adapter.device}")
    wanted, what = wide.delta(rule), f"the results on {place} and in float64 on the CPU"
    bound = _rounding(rule, wide, wanted, torch.float32)
    _require_within(result.delta().cpu().double(), wanted, what, bound)


def _accelerator() -> str | None:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def _batched(rule: Aggregator, case: Case) -> None:
    """Three layers at once, of which in each other clients are large and all is turned.

    Engines hand in weights up to a common factor, so that only such are compared.
    """
    case = replace(case, weights=tuple(w / max(case.weights) for w in case.weights))
    shape = SHAPES[case.seed % len(SHAPES)]

    def turned(update: LoRAFactors, layer: int, times: float = 1) -> LoRAFactors:
        a, b = update.lora_A.roll(layer, 1), times * update.lora_B.roll(layer, 0)
        return replace(update, lora_A=a, lora_B=b)

    def turned_round(layer: int) -> Case:
        pairs = enumerate(case.updates)
        others = tuple(turned(update, layer, 1 + layer * k) for k, update in pairs)
        return replace(case, updates=others, previous=turned(case.previous, layer))

    layers = [case, *map(turned_round, range(1, LAYERS))]
    each = zip(*(one.updates for one in layers), strict=True)
    updates = tuple(_stacked(factors, shape) for factors in each)
    previous = _stacked([one.previous for one in layers], shape)
    checked = check_round(
        updates,
        case.weights,
        rank_levels=case.rank_levels,
        positions=case.positions,
        previous=previous,
        empty_partition=case.empty_partition,
        svd_only=None,
    )
    result = as_rule(rule).aggregate(checked.cohort, previous, case.empty_partition)
    whole = result.delta()
    if tuple(whole.shape[:-2]) != shape:
        raise Violation(f"a batch of {shape} layers comes back as {tuple(whole.shape[:-2])}")
    found = whole.flatten(0, -3)
    for layer, alone in enumerate(layers):
        what = f"layer {layer} of a batch, and the layer alone,"
        require_close(found[layer], alone.delta(rule), what, alone.size, "iteration")


def _continuous(rule: Aggregator, case: Case) -> None:
    """A small step of all B at once; at times also where on a long way the result moves fastest."""
    case, generator = replace(case, empty_partition="zero"), case.generator
    factors = (*case.updates, case.previous)
    drawn = [torch.randn(u.lora_B.shape, generator=generator, dtype=torch.float64) for u in factors]
    size = case.size + sum(abs(u.scaling) for u in case.updates)

    def at(place: float) -> Case:
        pairs = zip(factors, drawn, strict=True)
        *updates, previous = (replace(u, lora_B=u.lora_B + place * x) for u, x in pairs)
        return replace(case, updates=tuple(updates), previous=previous)

    places = [(0.0, SMALL_STEP)]
    if case.seed % ONE_IN == 0:
        places.append(_steepest(lambda place: at(place).delta(rule)))
    spoken_of = [(start, end) for start, end in places if _apart(rule, at(start))]
    for start, end in spoken_of:
        change = float(torch.linalg.vector_norm(at(end).delta(rule) - at(start).delta(rule)))
        step = (end - start) * size
        if not change <= LARGEST_SLOPE * step:
            raise Violation(f"updates moved by {step:.1g} move the result by {change:.3g} in norm")
    if not spoken_of:
        raise NotApplicable


def _steepest(result: Callable[[float], Tensor]) -> tuple[float, float]:
    """A small step between 0 and 1 with a jump of the result in it, if there is one on the way."""
    near, far = 0.0, 1.0
    first, last = result(near), result(far)
    for _ in range(HALVINGS):  # a jump stays as large as it is, while all else halves
        middle = (near + far) / 2
        between = result(middle)
        if torch.linalg.vector_norm(between - first) > torch.linalg.vector_norm(last - between):
            far, last = middle, between
        else:
            near, first = middle, between
    return near, far


def _apart(rule: Aggregator, case: Case) -> bool:
    """Whether what is cut away lies apart from what is kept, and directions that a rule tells."""
    if rule.properties.gap_needed and not all(map(lie_apart, case.updates)):
        return False
    r_max, limit = case.rank_levels[-1], min(case.previous.d_out, case.previous.d_in)
    if r_max == limit:
        return True
    padded = _padded(case.previous, limit)
    whole = replace(case, rank_levels=(*case.rank_levels, limit), previous=padded)
    return gap_at(whole.delta(rule), r_max)


def _padded(update: LoRAFactors, r: int) -> LoRAFactors:
    more = r - update.rank
    lora_a = torch.cat([update.lora_A, update.lora_A.new_zeros(more, update.d_in)])
    lora_b = torch.cat([update.lora_B, update.lora_B.new_zeros(update.d_out, more)], dim=1)
    return LoRAFactors(lora_a, lora_b, update.scaling)


def _stacked(layers: Sequence[LoRAFactors], shape: tuple[int, ...]) -> LoRAFactors:
    a, b = (torch.stack([getattr(u, name) for u in layers]) for name in ("lora_A", "lora_B"))
    return LoRAFactors(a.unflatten(0, shape), b.unflatten(0, shape), layers[0].scaling)


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
        missing=lambda rule: None if _accelerator() else "no GPU",
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
