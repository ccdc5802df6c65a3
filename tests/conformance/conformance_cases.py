"""Runs of the suite on many rules, with numbers of examples by profile.

A search for a counterexample ends when one is found, so its maximum number of examples does not
depend on the profile.
"""

from __future__ import annotations

from random import SystemRandom

import torch
from hypothesis_profiles import is_random

from fedlora_sim import LoRAFactors
from fedlora_sim.conformance import CHECKS, Case, CheckResult, check_aggregator
from fedlora_sim.conformance.check import MOST_KEPT
from fedlora_sim.rules import Context, get_rule

NAMES = tuple(check.name for check in CHECKS)
# More than are cached for other searches; a search draws only what it needs.
WANTED = MOST_KEPT + 1


def search_seed() -> int:
    """Return the seed of a search: another one every time under a profile that draws at random."""
    return SystemRandom().randrange(2**16) if is_random() else 0


def outcomes(rule, count: int, broken=(), seed: int = 0):
    """Return results by check: of `count` examples, or `WANTED` if a counterexample must exist."""
    properties = get_rule(rule).properties
    absent = {check.name for check in CHECKS if check.declared(properties) is False}
    rare = [name for name in NAMES if name in absent | set(broken)]
    usual = [name for name in NAMES if name not in rare]
    found = []
    for chosen, number in ((usual, count), (rare, max(count, WANTED))):
        found += check_aggregator(rule, examples=number, seed=seed, checks=chosen, shrink=False)
    return {result.check: result for result in found}


def by_status(results: dict[str, CheckResult], status: str) -> set[str]:
    return {name for name, result in results.items() if result.status == status}


def reasons(results: dict[str, CheckResult], status: str) -> dict[str, str]:
    return {name: results[name].reason for name in by_status(results, status)}


def pasted(case: Case) -> Case:
    """Return the case that its own Python makes, in an empty namespace."""
    made: dict[str, object] = {}
    exec(case.code(), made)
    updates, weights, context, seed = (made[n] for n in ("updates", "weights", "context", "seed"))
    assert isinstance(context, Context)
    assert all(isinstance(update, LoRAFactors) for update in updates)
    levels, kept = context.rank_levels, context.empty_partition
    held, earlier = context.positions, made.get("earlier", 0)
    return Case(tuple(updates), tuple(weights), levels, context.previous, kept, seed, held, earlier)


def has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()
