"""Laws on who is in the cohort, and with what weight."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedlora_sim.aggregation import Aggregator
from fedlora_sim.conformance.case import Case
from fedlora_sim.conformance.law import Check, by_property, require_close

TIMES = 3.0
"""By what weights are multiplied: no power of two, which would change no digit. And the weight of
who is alone: 1 would look normalised."""


def _client_order(rule: Aggregator, case: Case) -> None:
    order = torch.randperm(len(case.updates), generator=case.generator).tolist()
    other = case.with_clients([case.updates[k] for k in order], [case.weights[k] for k in order])
    require_close(other.delta(rule), case.delta(rule), f"clients in the order {order}", case.size)


def _weight_scale(rule: Aggregator, case: Case) -> None:
    other = replace(case, weights=tuple(TIMES * w for w in case.weights))
    require_close(other.delta(rule), case.delta(rule), f"weights times {TIMES:g}", case.size)


def _weight_repetition(rule: Aggregator, case: Case) -> None:
    doubled = replace(case, weights=(2 * case.weights[0], *case.weights[1:]))
    twice = case.with_clients((*case.updates, case.updates[0]), (*case.weights, case.weights[0]))
    what = "client 0 of twice the weight, and client 0 twice,"
    require_close(twice.delta(rule), doubled.delta(rule), what, case.size)


def _zero_weight(rule: Aggregator, case: Case) -> None:
    loud = replace(case.updates[0], lora_B=case.updates[0].lora_B + 1)
    place = case.seed % (len(case.updates) + 1)
    updates, weights = list(case.updates), list(case.weights)
    updates.insert(place, loud)
    weights.insert(place, 0.0)
    what = f"with a client of weight 0 in place {place}, and without it,"
    more = case.with_clients(updates, weights)
    require_close(more.delta(rule), case.delta(rule), what, case.size)


def _single_client(rule: Aggregator, case: Case) -> None:
    alone = replace(case.with_clients(case.updates[:1], [TIMES]), empty_partition="zero")
    own = case.updates[0].delta()
    require_close(alone.delta(rule), own, "one client alone, and its result,", case.size)


def _identical_clients(rule: Aggregator, case: Case) -> None:
    many = [case.updates[0]] * len(case.updates)
    same = replace(case.with_clients(many, [w + 1 for w in case.weights]), empty_partition="zero")
    own = case.updates[0].delta()
    require_close(same.delta(rule), own, "identical clients, and their result,", case.size)


CHECKS = (
    Check(
        "client_order",
        "The order of the clients does not matter.",
        _client_order,
        by_property("client_order"),
        {"min_clients": 2},
    ),
    Check(
        "weight_scale",
        "All weights times a positive number change nothing.",
        _weight_scale,
        by_property("weight_scale"),
    ),
    Check(
        "weight_repetition",
        "A client of weight 2 is the client of weight 1 twice.",
        _weight_repetition,
        by_property("weight_repetition"),
    ),
    Check(
        "zero_weight",
        "A client of weight 0 changes nothing.",
        _zero_weight,
        by_property("zero_weight"),
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
