"""Laws on who is in the cohort, and with what weight."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedlora_sim.aggregation import Aggregator
from fedlora_sim.conformance.case import Case
from fedlora_sim.conformance.law import Check, by_property, require_close

TIMES = (3.0, 3e9, 1 / 3e9)
"""By what weights are multiplied: no power of two, which would change no digit; large enough to
overflow whole numbers and half precision, and small enough to be lost when they are rounded."""
REPEATED = (2, 10)
"""How often a client is repeated: ten times as well, for rules that know a least weight."""
ALONE = 3.0
"""Weight of a single client: 1 would look normalised."""


def _client_order(rule: Aggregator, case: Case) -> None:
    order = torch.randperm(len(case.updates), generator=case.generator).tolist()
    other, state = case.take(order), case.state_before(rule)  # earlier rounds had another order
    found, wanted = (one.step(rule, state)[0].delta() for one in (other, case))
    require_close(found, wanted, f"clients in the order {order}", case.size)


def _weight_scale(rule: Aggregator, case: Case) -> None:
    times = TIMES[case.seed % len(TIMES)]
    other = replace(case, weights=tuple(times * w for w in case.weights))
    require_close(other.delta(rule), case.delta(rule), f"weights times {times:g}", case.size)


def _weight_repetition(rule: Aggregator, case: Case) -> None:
    times = REPEATED[case.seed % len(REPEATED)]
    once = replace(case, weights=(times * case.weights[0], *case.weights[1:]))
    often = case.take([*range(len(case.updates)), *[0] * (times - 1)])
    what = f"client 0 of {times} times the weight, and client 0 {times} times,"
    require_close(often.delta(rule), once.delta(rule), what, case.size)


def _zero_weight(rule: Aggregator, case: Case) -> None:
    """One that is like the first client, or one of the highest rank, which perhaps no other has."""
    own, held = case.updates[0], case.held[0]
    if case.seed % 2:
        own, held = case.previous, tuple(range(case.previous.rank))
    loud = replace(own, lora_B=own.lora_B + 1)
    place = case.seed % (len(case.updates) + 1)
    what = f"with a client of weight 0 in place {place}, and without it,"
    more = case.inserted(place, loud, 0.0, None if case.positions is None else held)
    require_close(more.delta(rule), case.delta(rule), what, case.size)


def _single_client(rule: Aggregator, case: Case) -> None:
    alone = replace(case.take([0], [ALONE]), empty_partition="zero")
    own = case.updates[0].delta()
    require_close(alone.delta(rule), own, "one client alone, and its result,", case.size)


def _identical_clients(rule: Aggregator, case: Case) -> None:
    many = case.take([0] * len(case.updates), [w + 1 for w in case.weights])
    same = replace(many, empty_partition="zero")
    own = case.updates[0].delta()
    require_close(same.delta(rule), own, "identical clients, and their result,", case.size)


CHECKS = (
    Check(
        "client_order",
        "The order of the clients does not matter.",
        _client_order,
        by_property("client_order"),
        {"min_clients": 2, "earlier": True},
    ),
    Check(
        "weight_scale",
        "All weights times a positive number change nothing.",
        _weight_scale,
        by_property("weight_scale"),
        {"earlier": True},
    ),
    Check(
        "weight_repetition",
        "A client of weight 2 is the client of weight 1 twice.",
        _weight_repetition,
        by_property("weight_repetition"),
        {"earlier": True},
    ),
    Check(
        "zero_weight",
        "A client of weight 0 changes nothing.",
        _zero_weight,
        by_property("zero_weight"),
        {"earlier": True},
    ),
    Check(
        "single_client",
        "One client alone comes back as it is.",
        _single_client,
        by_property("single_client"),
        {"full_rank": False},
    ),
    Check(
        "identical_clients",
        "Clients that are all the same come back as they are.",
        _identical_clients,
        by_property("identical_clients"),
        {"full_rank": False},
    ),
)
