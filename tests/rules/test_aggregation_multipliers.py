"""Effect of every rule on one direction: declared multipliers and weights, on real factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from simulator_cases import ALL_RULES, assert_close, orthogonal, random_factors

from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.rules import get_rule

every_rule = pytest.mark.parametrize("rule", ALL_RULES)


def fixed_basis_cohort(ranks, amplitudes, scaling):
    """Return clients that return the directions of one basis with common amplitudes."""
    rng = np.random.default_rng(2)
    q = len(amplitudes)
    u, v = orthogonal(rng, q + 2)[:, :q], orthogonal(rng, q + 1)[:, :q]
    root = torch.from_numpy(np.sqrt(amplitudes))
    whole = LoRAFactors((v * root).mT, u * root).rescale(scaling)
    return [whole.truncate(r) for r in ranks], u, v


@every_rule
@pytest.mark.parametrize("scaling", [1.0, 0.25])
def test_the_declared_multiplier_is_what_real_factors_show(rule, scaling):
    amplitudes = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    ranks, weights = (1, 3, 3, 4), np.array([4.0, 1.0, 2.0, 3.0])
    updates, u, v = fixed_basis_cohort(ranks, amplitudes, scaling)
    result = aggregate(updates, weights, rule, rank_levels=(1, 3, 4, 5), empty_partition="zero")
    chosen = get_rule(rule)
    if chosen.weights_from_norms:  # the coverage is the share of the norms
        norms = np.array([np.linalg.norm(amplitudes[:r]) for r in ranks])
        weights = norms * (weights if chosen.data_weighted else 1)
    coverage = (weights / weights.sum()) @ (np.array(ranks)[:, None] > np.arange(5))
    declared = chosen.multiplier(torch.from_numpy(coverage)).numpy()
    if rule == "fedex:residual_rank=1":  # which keeps only the largest entry of the residual
        in_adapter = coverage**2
        lost = (coverage - in_adapter) * amplitudes
        declared = np.where(np.arange(5) == lost.argmax(), declared, in_adapter)
    measured = torch.diag(u.mT @ result.delta() @ v)
    assert_close(measured, declared * amplitudes, "factorization")


def test_fedex_divides_a_direction_between_adapter_and_base():
    amplitudes, weights = np.array([3.0, 2.0, 1.0]), np.array([2.0, 1.0])
    updates, u, v = fixed_basis_cohort((1, 3), amplitudes, 1.0)
    result = aggregate(updates, weights, "fedex")
    coverage = np.array([1.0, 1 / 3, 1 / 3])
    in_adapter = torch.diag(u.mT @ result.adapter.delta() @ v)
    in_base = torch.diag(u.mT @ result.base.dense() @ v)
    assert_close(in_adapter, coverage**2 * amplitudes, "factorization")
    assert_close(in_base, (coverage - coverage**2) * amplitudes, "factorization", scale=3.0)


@every_rule
def test_direction_weights_are_shares(rule):
    weights = torch.tensor([[1.0, 2.0, 3.0], [0.0, 5.0, 1.0]], dtype=torch.float64)
    norms = torch.tensor([[2.0, 1.0, 1.0], [1.0, 4.0, 0.0]], dtype=torch.float64)
    members = torch.tensor([[True, True], [True, False], [True, False]])
    shares = get_rule(rule).direction_weights(weights, members, norms)
    assert shares.shape == (2, 3, 2)
    own = {"hetlora": (weights > 0) * norms, "hetlora:data_weighted=true": weights * norms}
    own = own.get(rule, weights)
    assert_close(shares[..., 0], own / own.sum(-1, keepdim=True))
    low = own[..., 0] / own.sum(-1)
    high = [1.0, 0.0] if rule.startswith(("raflora", "rbla")) else low
    assert_close(shares[..., 1].sum(-1), high)
    np.testing.assert_array_equal(shares[:, 1:, 1], 0)


def test_hetlora_has_equal_weights_for_zero_updates():
    updates = [random_factors(np.random.default_rng(3), 5, 4, r, scaling=0.0) for r in (1, 2)]
    result = aggregate(updates, [1, 7], "hetlora").adapter
    wanted = (updates[0].lora_A[0] + updates[1].lora_A[0]) / 2
    assert_close(result.lora_A[0], wanted)
