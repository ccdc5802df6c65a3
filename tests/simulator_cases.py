"""Shared by the simulator's tests: comparison, numbers of examples, random cohorts."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from hypothesis import settings
from hypothesis_profiles import examples

from fedlora_sim import LoRAFactors, aggregate, rule_names
from fedlora_sim.conformance.case import Case
from fedlora_sim.conformance.strategies import cases
from fedlora_sim.rules import get_rule
from fedlora_sim.tolerances import relative

RULES = ("fedavg", "raflora", "zero_pad")

CANONICAL = "raflora:canonicalize=true"
OPTIONS = (CANONICAL, "fedex:residual_rank=1", "hetlora:data_weighted=true")
"""Options of rules, each different from its default."""
OWN_RULES = tuple(
    name for name in rule_names() if type(get_rule(name)).__module__.startswith("fedlora_sim.")
)
"""The project's rules; other packages may register more."""
ALL_RULES = (*OWN_RULES, *OPTIONS)


def rules_that(holds):
    """Return the rules, with options, that satisfy a condition."""
    return tuple(name for name in ALL_RULES if holds(get_rule(name)))


PRODUCT_RULES = rules_that(lambda rule: rule.space == "product")
# The update is the weighted sum of the clients' products for all ranks.
EXACT_RULES = rules_that(lambda rule: rule.properties.exact)
# The product of averages, with cross terms of different clients.
FACTOR_RULES = rules_that(
    lambda rule: rule.space == "factor" and not rule.frozen_a and not rule.residual_in_base
)
LAWS = ("full", "without_replacement", "with_replacement", "bernoulli", "size_weighted")

# Maximum distance of two estimates in standard errors: exceeded once in two million comparisons.
SIGMAS = 5.0

# The profile's share of 40 examples, and of 20 for laws checked rule by rule.
quick = settings(max_examples=examples(40))
per_rule = settings(max_examples=examples(20))


def assert_close(actual, wanted, kind="reduction", dtype=torch.float64, scale=None):
    """Check equality within the project's tolerance relative to the norm of `wanted` or `scale`."""
    actual, wanted = (np.asarray(x, dtype=np.float64) for x in (actual, wanted))
    assert actual.shape == wanted.shape
    error = np.linalg.norm(actual - wanted)
    bound = relative(kind, dtype) * (np.linalg.norm(wanted) if scale is None else float(scale))
    assert error <= bound, f"off by {error:.3g}, {bound:.3g} allowed"


def differs(actual, wanted, kind="factorization", dtype=torch.float64):
    """Return whether two arrays differ by more than the tolerance of `assert_close`."""
    error = np.linalg.norm(np.asarray(actual) - np.asarray(wanted))
    return bool(error > relative(kind, dtype) * np.linalg.norm(np.asarray(wanted)))


def random_factors(rng, d_out, d_in, r, scaling=1.0, dtype=torch.float64, batch=()):
    """Return gaussian factors."""
    lora_a = torch.from_numpy(rng.standard_normal((*batch, r, d_in))).to(dtype)
    lora_b = torch.from_numpy(rng.standard_normal((*batch, d_out, r))).to(dtype)
    return LoRAFactors(lora_a, lora_b, scaling)


def orthogonal(rng, d):
    """Return a random orthogonal matrix."""
    return torch.from_numpy(np.linalg.qr(rng.standard_normal((d, d)))[0])


def map_factors(update, on_a=lambda a: a, on_b=lambda b: b, scaling=None):
    """Return the update with its factors changed."""
    kept = update.scaling if scaling is None else scaling
    return LoRAFactors(on_a(update.lora_A), on_b(update.lora_B), kept)


class Round(Case):
    """A case of the conformance suite, aggregated by name and with the options of `aggregate`."""

    def suit(self, rule):
        """Return the round as the rule can meet it: under `ffa` all clients share one A."""
        if rule != "ffa":
            return self
        common = self.previous.lora_A
        return self.map(lambda u: map_factors(u, on_a=lambda a: common[: a.shape[-2]]))

    def aggregate(self, rule, **options):
        given = {"previous": self.previous, "empty_partition": self.empty_partition, **options}
        return aggregate(self.updates, self.weights, rule, rank_levels=self.rank_levels, **given)

    def adapter(self, rule, **options):
        """Return what clients are allocated their factors from."""
        return self.aggregate(rule, **options).adapter

    def delta(self, rule, **options):
        """Return the whole update, with what the rule merges into the base."""
        return self.aggregate(rule, **options).delta()


def rounds(*, full_rank=False):
    """Return rounds as the conformance suite draws them, where singular vectors are well defined.

    Args:
        full_rank: the highest level is min(d_in, d_out), so that aggregation cuts nothing off.
    """
    drawn = cases(full_rank=full_rank, gap=True)
    return drawn.map(lambda case: Round(**{f.name: getattr(case, f.name) for f in fields(case)}))
