"""Laws on what one round leaves for the next, and one run for another."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedlora_sim.aggregation import NO_STATE, Aggregator, State
from fedlora_sim.conformance.case import Case
from fedlora_sim.conformance.law import Check, by_property, require_close, universal
from fedlora_sim.conformance.result import Violation

ROUNDS = (1, 2, 3, 12)
"""Rounds that go before: the last number is beyond the warm-up of most schedules."""


def _stateless(rule: Aggregator, case: Case) -> None:
    rounds = ROUNDS[case.seed % len(ROUNDS)]
    what = f"a round after {rounds} others, and without them,"
    state = _state_after(rule, case, rounds)
    require_close(case.step(rule, state)[0].delta(), case.step(rule)[0].delta(), what, case.size)


def _independent_runs(rule: Aggregator, case: Case) -> None:
    """Nothing is kept in the rule itself, by which a second run would depend on the first."""
    before = case.step(rule)[0]
    _state_after(rule, case, 2)
    after = case.step(rule)[0]
    for name in ("lora_A", "lora_B"):
        if not torch.equal(getattr(before.adapter, name), getattr(after.adapter, name)):
            raise Violation(f"another run in between changes the bits of {name}")
    if not torch.equal(before.delta(), after.delta()):
        raise Violation("another run in between changes the bits of the whole update")


def _state_after(rule: Aggregator, case: Case, rounds: int) -> State:
    """What rounds of other updates and weights leave."""
    state = NO_STATE
    other = replace(case, weights=case.weights[::-1])
    for number in range(rounds):
        other = other.map(lambda u: replace(u, lora_B=-u.lora_B.roll(1, 0)))
        state = other.louder(1.0 + number).step(rule, state)[1]
    return state


CHECKS = (
    Check(
        "stateless",
        "Earlier rounds change nothing, except through the last adapter.",
        _stateless,
        by_property("stateless"),
    ),
    Check(
        "independent_runs",
        "A run changes nothing in the next run.",
        _independent_runs,
        universal,
    ),
)
