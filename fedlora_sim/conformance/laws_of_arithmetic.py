"""Laws on the form, the numerics and the exactness of an aggregated round."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedlora_sim.conformance.case import (
    Case,
    Check,
    NotApplicable,
    Violation,
    by_property,
    copied,
    gap_at,
    lie_apart,
    require_close,
    universal,
)
from fedlora_sim.federation import partition_slices
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.rules import NO_STATE, Aggregated, Aggregator, State, as_rule
from fedlora_sim.rules.cohort import check_round
from fedlora_sim.tolerances import LARGEST_SLOPE, SMALL_STEP, narrow_error, relative

LATER = 3
"""Rounds in which form and purity are checked: a first one, and two with state."""


def _rounds(rule: Aggregator, case: Case) -> Iterator[Aggregated]:
    """Yield the results of the first rounds, each with the state of the previous one."""
    state = NO_STATE
    for _ in range(LATER):
        result, state = case.step(rule, state)
        _check_state(state)
        yield result


def _shapes(rule: Aggregator, case: Case) -> None:
    for result in _rounds(rule, case):
        _check_shapes(result, case)


def _check_state(state: object) -> None:
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        raise Violation("a state that is no mapping of names to tensors")
    for name in state:
        if not isinstance(name, str) or "/" in name:
            raise Violation(f"a state named {name!r}: a name is text without a '/'")


def _check_shapes(result: Aggregated, case: Case) -> None:
    r_max = case.rank_levels[-1]
    d_out, d_in = case.previous.d_out, case.previous.d_in
    for name, found, wanted in (
        ("lora_A", result.adapter.lora_A, (r_max, d_in)),
        ("lora_B", result.adapter.lora_B, (d_out, r_max)),
        ("the whole update", result.delta(), (d_out, d_in)),
    ):
        if tuple(found.shape) != wanted:
            raise Violation(f"{name} of shape {tuple(found.shape)}, not {wanted}")


def _finite(rule: Aggregator, case: Case) -> None:
    for result in _rounds(rule, case):
        if not bool(torch.isfinite(result.delta()).all()):
            raise Violation("finite updates, and a result that is not")


def _nonfinite(rule: Aggregator, case: Case) -> None:
    """Check that values that are not finite are refused or visible in the result."""
    k, name = case.seed % len(case.updates), "lora_A" if case.seed % 4 > 1 else "lora_B"
    for value in (float("nan"), float("inf")):
        spoilt = getattr(case.updates[k], name).clone()
        spoilt.flatten()[case.seed % spoilt.numel()] = value
        updates, weights = list(case.updates), list(case.weights)
        updates[k], weights[k] = replace(case.updates[k], **{name: spoilt}), max(case.weights)
        try:
            given = replace(case, updates=tuple(updates), weights=tuple(weights))
            found: Tensor = given.delta(rule)
        except (ValueError, ArithmeticError, torch.linalg.LinAlgError):
            continue
        if bool(torch.isfinite(found).all()):
            raise Violation(f"{value} in updates[{k}].{name} vanished in the result")


def _inputs_untouched(rule: Aggregator, case: Case) -> None:
    """Check that updates, last adapter and state are not modified, round by round."""
    own, state = case.map(copied), NO_STATE
    for _ in range(LATER):
        before = {name: x.clone() for name, x in state.items()}
        with torch.no_grad():
            handed, state = state, rule.step(own.updates, own.weights, own.context, state)[1]
        if not _same_state(handed, before):
            raise Violation("the state was changed in place")
    pairs = zip((*own.updates, own.previous), (*case.updates, case.previous), strict=True)
    for k, (after, intact) in enumerate(pairs):
        for name in ("lora_A", "lora_B"):
            if not torch.equal(getattr(after, name), getattr(intact, name)):
                who = "previous" if k == len(case.updates) else f"updates[{k}]"
                raise Violation(f"{who}.{name} was changed in place")


def _determinism(rule: Aggregator, case: Case) -> None:
    """Check that the result does not depend on global generators, nor change them."""
    _, state = case.step(rule)
    for kept in ({}, state):
        first, second = (_seeded(rule, case, kept, seed) for seed in (0, 1))
        for own, other in zip(_tensors(*first), _tensors(*second), strict=True):
            if not torch.equal(own, other):
                raise Violation("the same call gave other bits")


def _layout(rule: Aggregator, case: Case) -> None:
    """Check non-contiguous tensors and tensors that require gradients.

    The tensors are every other row of longer transposed tensors.
    """

    def spread(x: Tensor) -> Tensor:
        rows, columns = x.shape
        longer = x.new_full((columns, 2 * rows), float("nan"))
        longer[:, ::2] = x.mT
        return longer[:, ::2].mT.requires_grad_()

    def strided(update: LoRAFactors) -> LoRAFactors:
        return LoRAFactors(spread(update.lora_A), spread(update.lora_B), update.scaling)

    other = case.map(strided)
    with torch.no_grad():
        found = rule.step(other.updates, other.weights, other.context, NO_STATE)[0].delta()
    what = "the result of strided tensors, and of contiguous ones,"
    require_close(found, case.step(rule)[0].delta(), what, case.size)


def _seeded(rule: Aggregator, case: Case, state: State, seed: int) -> tuple[Aggregated, State]:
    with _global_generators(seed):
        places = _places()
        found = case.step(rule, state)
        if _places() != places:
            raise Violation("a global generator was used")
    return found


@contextmanager
def _global_generators(seed: int) -> Iterator[None]:
    """Set the global generators of torch, NumPy and Python to a seed for a block."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generator is what is looked for
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


def _places() -> tuple[object, ...]:
    """Return the states of the global generators."""
    numpy = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    torch_bytes = torch.get_rng_state().numpy().tobytes()
    return torch_bytes, numpy["key"].tobytes(), numpy["pos"], random.getstate()


def _tensors(result: Aggregated, state: State) -> list[Tensor]:
    adapter = result.adapter
    return [adapter.lora_A, adapter.lora_B, result.delta(), *(state[n] for n in sorted(state))]


def _same_state(one: State, other: State) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


FORM_LAWS = (
    Check(
        "shapes",
        "The adapter has the highest rank and the layer's shape.",
        _shapes,
        universal,
        {"full_rank": False},
    ),
    Check("finite", "Finite updates give a finite result.", _finite, universal),
    Check("nonfinite", "NaN and infinity do not vanish.", _nonfinite, by_property("nonfinite")),
    Check(
        "inputs_untouched",
        "What is given stays as it is.",
        _inputs_untouched,
        universal,
        {"full_rank": False},
    ),
    Check(
        "determinism",
        "The same call gives the same bits, and no global generator is used.",
        _determinism,
        universal,
        {"full_rank": False},
    ),
    Check(
        "layout",
        "How tensors lie in memory, and whether they are trained, does not matter.",
        _layout,
        universal,
    ),
)


# Laws on the computation of a round: dtypes, devices, batches, and small changes

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYERS, SHAPES = 3, ((3,), (1, 3), (3, 1))
"""Number of layers in a batch, and batch shapes."""
HALVINGS = 26
"""Halvings of a path as long as the updates until a step is about as small as `SMALL_STEP`."""
ONE_IN = 3
"""One in this number of cases does that, because it takes ten times as long as another law."""


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
    """Return the norm of the change that rounding the inputs to a dtype may cause."""
    eps, generator = torch.finfo(dtype).eps, wide.generator

    def moved(x: Tensor) -> Tensor:
        signs = torch.randint(0, 2, x.shape, generator=generator, dtype=x.dtype) * 2 - 1
        return x * (1 + eps * signs)

    def rounded(update: LoRAFactors) -> LoRAFactors:
        # clients that share one A share its rounding
        own = update.lora_A if rule.properties.common_a else moved(update.lora_A)
        return replace(update, lora_A=own, lora_B=moved(update.lora_B))

    change = float(torch.linalg.vector_norm(wide.map(rounded).delta(rule) - result))
    size = float(torch.linalg.vector_norm(result))  # this is larger if weights are not shares
    return narrow_error(dtype, max(wide.size, size), change)


def _require_within(found: Tensor, wanted: Tensor, what: str, bound: float) -> None:
    off = float(torch.linalg.vector_norm(found - wanted))
    if not off <= bound:
        raise Violation(f"{what} differ by {off:.3g} in norm, {bound:.1g} is rounding")


def _device(rule: Aggregator, case: Case) -> None:
    place = _accelerator()
    assert place is not None  # otherwise the check is skipped
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
    """Check three layers at once with different large clients and different rotations.

    Engines pass weights up to a common factor, so only such weights are compared.
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
    """Check a small step of all B, in some cases where a long path changes the result fastest."""
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
    """Return a small step between 0 and 1 that contains a jump of the result, if there is one."""
    near, far = 0.0, 1.0
    first, last = result(near), result(far)
    for _ in range(HALVINGS):  # a jump keeps its size while all other changes halve
        middle = (near + far) / 2
        between = result(middle)
        if torch.linalg.vector_norm(between - first) > torch.linalg.vector_norm(last - between):
            far, last = middle, between
        else:
            near, first = middle, between
    return near, far


def _apart(rule: Aggregator, case: Case) -> bool:
    """Return True if gaps separate directions that are cut off or that the rule distinguishes."""
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


NUMERICS_LAWS = (
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


# Laws on the average: exact, best of its rank, linear, bounded


def weighted_mean(case: Case) -> Tensor:
    """Return `sum_k w_k dW_k / sum_k w_k`, dense."""
    pairs = zip(case.weights, case.updates, strict=True)
    total = torch.stack([w * update.delta() for w, update in pairs]).sum(0)
    return total / sum(case.weights)


def _exact(rule: Aggregator, case: Case) -> None:
    what = "the result, and the weighted mean of the updates,"
    require_close(case.delta(rule), weighted_mean(case), what, case.size)


def _best_approximation(rule: Aggregator, case: Case) -> None:
    """Compare distances, not matrices: with tied singular values there are several best ones."""
    mean, r = weighted_mean(case), case.rank_levels[-1]
    least = float(torch.linalg.vector_norm(torch.linalg.svdvals(mean)[r:]))
    found = float(torch.linalg.matrix_norm(mean - case.delta(rule)))
    if abs(found - least) > relative("factorization") * case.size:
        raise Violation(f"{found:.3g} from the weighted mean; the best of rank {r} is {least:.3g}")


def _rank_bound(rule: Aggregator, case: Case) -> None:
    values, r = torch.linalg.svdvals(case.delta(rule)), case.rank_levels[-1]
    beyond = float(torch.linalg.vector_norm(values[r:]))
    if beyond > relative("factorization") * max(case.size, float(values[0])):
        raise Violation(f"norm {beyond:.3g} beyond rank {r}, the highest level")


def _linear(rule: Aggregator, case: Case) -> None:
    """Check linearity client by client, so that cross terms of A and B show; then in all B."""
    whole = replace(case, empty_partition="zero")
    found, parts = whole.delta(rule), []
    for k in range(len(case.updates)):
        alone = [u if other == k else _zero(rule, u) for other, u in enumerate(case.updates)]
        parts.append(replace(whole, updates=tuple(alone)).delta(rule))
    what = "the result, and the sum of its clients' parts,"
    require_close(found, torch.stack(parts).sum(0), what, case.size)
    turned = whole.map(lambda u: replace(u, lora_B=u.lora_B.flip(0)))
    both = whole.map(lambda u: replace(u, lora_B=u.lora_B + u.lora_B.flip(0)))
    what = "the result of a sum of two B, and the sum of their results,"
    require_close(both.delta(rule), found + turned.delta(rule), what, case.size)


def _zero(rule: Aggregator, update: LoRAFactors) -> LoRAFactors:
    kept = update.lora_A if rule.properties.common_a else torch.zeros_like(update.lora_A)
    return replace(update, lora_A=kept, lora_B=torch.zeros_like(update.lora_B))


def _energy_hull(rule: Aggregator, case: Case) -> None:
    _require_hull(rule, replace(case, empty_partition="zero"), "")


def _partition_hull(rule: Aggregator, case: Case) -> None:
    for h, part in enumerate(partition_slices(case.rank_levels), start=1):
        own = replace(case.in_partition(part), empty_partition="zero")
        _require_hull(rule, own, f" of partition {h}")


def _require_hull(rule: Aggregator, case: Case, what: str) -> None:
    """Check the bound with all updates scaled to the largest, where it is easiest to exceed."""
    most = max(float(u.norm()) for u in case.taking_part)

    def stretched(update: LoRAFactors) -> LoRAFactors:
        norm = float(update.norm())
        return update if norm == 0 else replace(update, lora_B=update.lora_B * (most / norm))

    level = replace(case, updates=tuple(map(stretched, case.updates)))
    found = float(torch.linalg.matrix_norm(level.delta(rule)))
    if found > most + relative("factorization") * case.size:
        raise Violation(f"norm{what} {found:.3g}, above the largest client's {most:.3g}")


EXACTNESS_LAWS = (
    Check(
        "exact",
        "The result is the weighted mean of the updates.",
        _exact,
        by_property("exact"),
    ),
    Check(
        "best_approximation",
        "The result is the best approximation of the weighted mean, of the highest rank.",
        _best_approximation,
        by_property("best_approximation"),
        {"full_rank": False},
    ),
    Check(
        "rank_bound",
        "The result has no more rank than the highest level.",
        _rank_bound,
        by_property("rank_bound"),
        {"full_rank": False},
    ),
    Check(
        "linear",
        "The result is a linear function of the updates.",
        _linear,
        by_property("linear"),
    ),
    Check(
        "energy_hull",
        "The energy of the result is at most that of the largest update.",
        _energy_hull,
        by_property("energy_hull", "whole"),
        {"tilted": True, "min_levels": 2, "min_clients": 2},
    ),
    Check(
        "partition_energy_hull",
        "The energy of a partition is at most that of the largest update's partition.",
        _partition_hull,
        by_property("energy_hull", "whole", "partition"),
        {"tilted": True, "min_levels": 2, "min_clients": 2, "positions": False},
    ),
)
