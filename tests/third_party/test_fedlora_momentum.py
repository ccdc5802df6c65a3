"""Tests of an external package of rules: the laws, and properties of its rules."""

from __future__ import annotations

import torch
from fedlora_momentum import Momentum, Tempered

from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.conformance import parametrize_with_checks

RULES = [Tempered(), Tempered(beta=1.0), Momentum(), Momentum(beta=0.5, learning_rate=0.5)]


@parametrize_with_checks(RULES, examples=5)
def test_laws(rule, check):
    check(rule)


def cohort():
    generator = torch.Generator().manual_seed(0)
    return [
        LoRAFactors(*(torch.randn(*shape, generator=generator) for shape in ((r, 5), (4, r))))
        for r in (1, 2, 2)
    ]


def test_the_power_tempers_the_weights():
    found = aggregate(cohort(), [1, 4, 9], Tempered())
    wanted = aggregate(cohort(), [1, 2, 3], "fedavg")
    torch.testing.assert_close(found.delta(), wanted.delta())


def test_without_beta_and_at_rate_one_there_is_no_momentum():
    rule, found = Momentum(beta=0.0), None
    for _ in range(3):
        previous, state = (None, {}) if found is None else (found.adapter, found.state)
        found = aggregate(cohort(), None, rule, previous=previous, state=state)
    torch.testing.assert_close(found.delta(), aggregate(cohort(), None, "fedavg").delta())


def test_the_velocity_continues():
    """One client of full rank returns its input, so only the velocity moves it."""
    rule = Momentum(beta=0.5)
    generator = torch.Generator().manual_seed(1)
    start, end = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    first = LoRAFactors.from_delta(start, 3)
    result = aggregate([LoRAFactors.from_delta(end, 3)], None, rule, previous=first)
    torch.testing.assert_close(result.delta(), end)
    result = aggregate([result.adapter], None, rule, previous=result.adapter, state=result.state)
    torch.testing.assert_close(result.delta(), end + (end - start) / 2)
