"""What every aggregator owes its caller: shapes, pure functions, no bad number swallowed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedlora_sim.aggregation import NO_STATE, Aggregated, Aggregator, State
from fedlora_sim.conformance.case import Case, copied
from fedlora_sim.conformance.law import Check, by_property, require_close, universal
from fedlora_sim.conformance.result import Violation
from fedlora_sim.lora import LoRAFactors

LATER = 3
"""Rounds in which form and purity are checked: a first one, and two that have a state."""


def _rounds(rule: Aggregator, case: Case) -> Iterator[Aggregated]:
    """Results of the first rounds, each with the state of the one before."""
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
    """Refused, or visible in the result: a number that is none must not vanish."""
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
    """The updates, the last adapter, and the state that the rule is handed, round by round."""
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
    """Whatever the global generators were at; and they are left as they were."""
    _, state = case.step(rule)
    for kept in ({}, state):
        first, second = (_seeded(rule, case, kept, seed) for seed in (0, 1))
        for own, other in zip(_tensors(*first), _tensors(*second), strict=True):
            if not torch.equal(own, other):
                raise Violation("the same call gave other bits")


def _layout(rule: Aggregator, case: Case) -> None:
    """Every other row of longer transposed tensors, and tensors that are trained."""

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
    """The global generators of torch, NumPy and Python at a seed, for a while."""
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
    """Where the global generators stand."""
    numpy = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    torch_bytes = torch.get_rng_state().numpy().tobytes()
    return torch_bytes, numpy["key"].tobytes(), numpy["pos"], random.getstate()


def _tensors(result: Aggregated, state: State) -> list[Tensor]:
    adapter = result.adapter
    return [adapter.lora_A, adapter.lora_B, result.delta(), *(state[n] for n in sorted(state))]


def _same_state(one: State, other: State) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


CHECKS = (
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
