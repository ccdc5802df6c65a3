"""The server in memory makes the rounds of `aggregate`, under every rule."""

from __future__ import annotations

import pytest
import torch
from state_dict_cases import ALPHA, KEY, client, product

from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.errors import InputError
from fedlora_sim.peft.server import CORRECTION, AdapterServer, split_state
from fedlora_sim.rules import rule_names

RANKS, SAMPLES = (2, 3, 5), (10, 20, 5)
FIRST = client(max(RANKS))
ATOL = 1e-12


def server(**arguments):
    return AdapterServer(**{"lora_alpha": ALPHA, "seed": 3, **arguments})


def trained(adapter, k, t, *, frozen_a):
    """Return an adapter after local training that does not depend on its gauge."""
    rank = adapter[KEY.format("A")].shape[0]
    update = LoRAFactors(adapter[KEY.format("A")], adapter[KEY.format("B")], ALPHA / rank)
    if frozen_a:
        return {**adapter, KEY.format("B"): adapter[KEY.format("B")] * (1 + 0.1 * k + 0.01 * t)}
    step = LoRAFactors(*client(rank, seed=10 * t + k).values(), 0.1).delta()
    own = LoRAFactors.from_delta(update.delta() + step, rank).rescale(ALPHA / rank)
    return {KEY.format("A"): own.lora_A, KEY.format("B"): own.lora_B}


def rounds(own, state, first, last):
    frozen_a = own.frozen_a
    for t in range(first, last + 1):
        received = [split_state(own.for_client(state, rank))[0] for rank in RANKS]
        replies = [trained(x, k, t, frozen_a=frozen_a) for k, x in enumerate(received)]
        for k, (reply, rank) in enumerate(zip(replies, RANKS, strict=True)):
            own.check_reply(f"client {k}", reply, state, rank)
        state = own.aggregate(state, replies, SAMPLES, t)
    return state


def update_of(adapter):
    a, b = adapter[KEY.format("A")], adapter[KEY.format("B")]
    return LoRAFactors(a, b, ALPHA / a.shape[0])


@pytest.mark.parametrize("rule", [*rule_names(), "raflora:canonicalize=true"])
def test_rounds_are_those_of_aggregate(rule):
    own = server(rule=rule)
    state, base = FIRST, torch.zeros(7, 9, dtype=torch.float64)
    for t in range(1, 4):
        # The server's own adapter, because components without energy are its random draws.
        received = [split_state(own.for_client(state, rank))[0] for rank in RANKS]
        replies = [trained(x, k, t, frozen_a=own.frozen_a) for k, x in enumerate(received)]
        previous = update_of(split_state(state)[0])
        result = aggregate(
            [update_of(reply) for reply in replies],
            SAMPLES,
            rule,
            rank_levels=RANKS,
            previous=previous,
        )
        state = own.aggregate(state, replies, SAMPLES, t)
        adapter, correction = split_state(state)
        torch.testing.assert_close(product(adapter), result.adapter.delta(), rtol=0, atol=ATOL)
        if result.base is not None:
            base = base + result.base.dense()
        assert bool(correction) == (result.base is not None)
        if correction:
            torch.testing.assert_close(product(correction), base, rtol=0, atol=ATOL)
            assert correction[KEY.format("A")].shape[0] <= 7  # no more than min(d_in, d_out)


@pytest.mark.parametrize("rule", ["fedavg", "flora", "fedex"])
def test_a_run_resumes_from_its_state(rule):
    own = server(rule=rule)
    whole = rounds(own, FIRST, 1, 4)
    resumed = rounds(own, rounds(own, FIRST, 1, 2), 3, 4)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_partition_without_clients_is_carried():
    own = server()
    replies = [trained(own.for_client(FIRST, 3), 1, 1, frozen_a=False)]
    state = own.aggregate(FIRST, replies, [1], 1)
    kept = product(FIRST) - product(own.for_client(FIRST, 3))
    torch.testing.assert_close(product(state) - product(replies[0]), kept, rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("change", "rank", "argument"),
    [
        (lambda x: x, 2, "client: rank=2"),
        (lambda x: x, 0, "client: rank=0"),
        (lambda x: x, None, "client: rank=None"),
        (lambda x: {**x, KEY.format("B"): x[KEY.format("B")] * torch.nan}, 3, "lora_B.weight=nan"),
        (lambda x: {key.replace("layer", "other"): v for key, v in x.items()}, 3, "client"),
        (lambda x: {KEY.format("A"): x[KEY.format("A")]}, 3, "client: key"),
        (lambda _: client(6), 6, "client: rank of layer=6"),
        (lambda _: client(3, d_in=8), 3, "client"),
        (lambda _: 7, 3, "client=.<int>"),
    ],
)
def test_a_bad_reply_is_refused_by_name(change, rank, argument):
    with pytest.raises(InputError, match=argument):
        server().check_reply("client", change(client(3)), FIRST, rank)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"rule": "fedavgg"}, "rule"),
        ({"modules": "all"}, "modules"),
        ({"rank_levels": [0]}, "rank_levels"),
        ({"empty_partition": "none"}, "empty_partition"),
        ({"seed": -1}, "seed"),
    ],
)
def test_arguments_are_checked_at_once(arguments, argument):
    with pytest.raises(InputError, match=argument):
        server(**arguments)


def test_a_state_without_an_adapter_is_refused():
    with pytest.raises(InputError, match="state"):
        split_state(7)
    with pytest.raises(InputError, match="state"):
        server().rank_of({CORRECTION + key: x for key, x in FIRST.items()})
