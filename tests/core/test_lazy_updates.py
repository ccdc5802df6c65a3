"""Thousands of clients with one in memory: which are held, how often each is loaded, the sum."""

from __future__ import annotations

import gc
from collections import Counter
from weakref import WeakSet

import numpy as np
import pytest
import torch
from simulator_cases import ALL_RULES, FACTOR_RULES, assert_close

from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.lowrank import LazySequence
from fedlora_sim.reference.aggregation import aggregate_reference

D_OUT, D_IN, RANK = 24, 16, 4


class Server:
    """Simulates loading clients from disk, and counts those that are still referenced."""

    def __init__(self, clients, common_a=False, dtype=torch.float64, sizes=(D_OUT, D_IN)):
        self.clients, self.common_a, self.dtype, self.sizes = clients, common_a, dtype, sizes
        self.alive, self.held, self.loads = WeakSet(), 0, Counter()

    @property
    def updates(self):
        return LazySequence(self.clients, self.load)

    def factors(self, k):
        d_out, d_in = self.sizes
        rng = np.random.default_rng(k)
        rank = RANK if k % 2 else RANK // 2
        own = np.random.default_rng(0) if self.common_a else rng
        lora_a = own.standard_normal((rank, d_in))
        return lora_a, rng.standard_normal((d_out, rank))

    def load(self, k):
        lora_a, lora_b = (torch.from_numpy(x).to(self.dtype) for x in self.factors(k))
        self.held = max(self.held, len(self.alive))
        self.loads[k] += 1
        self.alive |= {lora_a, lora_b}
        return LoRAFactors(lora_a, lora_b, 0.5)


@pytest.fixture
def no_collector():
    """Disable the garbage collector, so that objects are freed only by reference counts."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rule", ALL_RULES)
def test_no_client_is_held_while_the_next_is_loaded(no_collector, rule, dtype):
    server = Server(20, rule == "ffa", dtype)
    result = aggregate(server.updates, range(20), rule, rank_levels=(2, 4))
    result.delta()
    result.singular_values()
    assert server.held == 0
    assert not server.alive


@pytest.mark.parametrize("rule", [*FACTOR_RULES, "ffa"])
def test_averages_of_factors_never_hold_two(no_collector, rule):
    server = Server(3, rule == "ffa")  # ranks that sum to less than min(d_out, d_in)
    aggregate(server.updates, None, rule)
    assert server.held == 0


@pytest.mark.parametrize("rule", ALL_RULES)
def test_clients_are_loaded_a_few_times_whatever_their_number(rule):
    few, many = Server(20, rule == "ffa"), Server(60, rule == "ffa")
    for server in (few, many):
        aggregate(server.updates, None, rule).delta()
    assert max(many.loads.values()) == max(few.loads.values())
    # Once for the check, once for the shape, and once per sum of factors, products or norms.
    assert max(n for k, n in many.loads.items() if k > 0) <= 4
    assert set(many.loads) == set(range(60))


def test_clients_without_weight_are_only_checked():
    server = Server(10)
    aggregate(server.updates, [1] * 5 + [0] * 5, "fedavg")
    assert {server.loads[k] for k in range(5, 10)} == {1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    ["raflora", *(pytest.param(r, marks=pytest.mark.slow) for r in ("hetlora", "fedex", "ffa"))],
)
def test_thousands_of_clients_are_the_formula(rule):
    server = Server(3000, rule == "ffa", torch.float32, (64, 64))
    samples = np.random.default_rng(1).integers(1, 100, 3000).tolist()
    updates = [(*server.factors(k), 0.5) for k in range(3000)]
    result = aggregate(server.updates, samples, rule)
    lora_a, lora_b, base = aggregate_reference(updates, samples, rule, (2, 4))
    # Independent clients cancel; the size of one over the root of their number remains.
    scale = np.mean([np.linalg.norm(b @ a) for a, b, _ in updates])
    assert_close(result.adapter.delta(), lora_b @ lora_a, "iteration", torch.float32)
    assert_close(result.delta(), lora_b @ lora_a + base, "reduction", torch.float32, scale)


def test_a_lazy_sequence_is_a_sequence():
    made = []
    items = LazySequence(4, lambda k: made.append(k) or 10 * k)
    assert (len(items), items[1], items[-1], made) == (4, 10, 30, [1, 3])
    assert list(items[1:3]) == [10, 20]
    assert list(items[::-1]) == [30, 20, 10, 0]
    assert list(items) == [0, 10, 20, 30]
    for k in (4, -5):
        with pytest.raises(IndexError):
            items[k]
    assert list(items[4:]) == []
    assert [len(items[::2]), items[::2][1]] == [2, 20]
