"""What the simulator's tests share: one comparison, numbers of examples, random cohorts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis_profiles import examples

from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.tolerances import relative

RULES = ("fedavg", "raflora", "zero_pad")

CANONICAL = "raflora:canonicalize=true"
PRODUCT_RULES = ("fedavg", "raflora", CANONICAL)
# The whole update is the weighted sum of the clients' products, whatever the ranks.
EXACT_RULES = ("fedavg", "fedex", "ffa", "flora")
# The product of averages: cross terms of different clients enter.
FACTOR_RULES = ("hetlora", "hetlora:data_weighted=true", "rbla", "zero_pad")
ALL_RULES = ("fedex:residual_rank=1", "raflora", CANONICAL, *EXACT_RULES, *FACTOR_RULES)
LAWS = ("full", "without_replacement", "with_replacement", "bernoulli", "size_weighted")

# Standard errors that two estimates of one number may lie apart: once in two million comparisons.
SIGMAS = 5.0

# What the profile leaves of 40 examples, and of 20 where a law is checked rule by rule.
quick = settings(max_examples=examples(40))
per_rule = settings(max_examples=examples(20))


def assert_close(actual, wanted, kind="reduction", dtype=torch.float64, scale=None):
    """Equal within the project's tolerance, relative to the norm of `wanted` (or to `scale`)."""
    actual, wanted = (np.asarray(x, dtype=np.float64) for x in (actual, wanted))
    assert actual.shape == wanted.shape
    error = np.linalg.norm(actual - wanted)
    bound = relative(kind, dtype) * (np.linalg.norm(wanted) if scale is None else float(scale))
    assert error <= bound, f"off by {error:.3g}, {bound:.3g} allowed"


def differs(actual, wanted, kind="factorization", dtype=torch.float64):
    """Whether two arrays are told apart by the tolerance that `assert_close` would apply."""
    error = np.linalg.norm(np.asarray(actual) - np.asarray(wanted))
    return bool(error > relative(kind, dtype) * np.linalg.norm(np.asarray(wanted)))


def random_factors(rng, d_out, d_in, r, scaling=1.0, dtype=torch.float64, batch=()):
    """Gaussian factors."""
    lora_a = torch.from_numpy(rng.standard_normal((*batch, r, d_in))).to(dtype)
    lora_b = torch.from_numpy(rng.standard_normal((*batch, d_out, r))).to(dtype)
    return LoRAFactors(lora_a, lora_b, scaling)


def orthogonal(rng, d):
    """A random orthogonal matrix."""
    return torch.from_numpy(np.linalg.qr(rng.standard_normal((d, d)))[0])


def map_factors(update, on_a=lambda a: a, on_b=lambda b: b, scaling=None):
    """The update with its factors changed."""
    kept = update.scaling if scaling is None else scaling
    return LoRAFactors(on_a(update.lora_A), on_b(update.lora_B), kept)


def only_partition(update, part):
    """The update with every rank component outside the slice `part` set to zero."""
    mask = torch.zeros(update.rank, dtype=update.dtype)
    mask[part] = 1
    return map_factors(update, on_b=lambda b: b * mask)


@dataclass(frozen=True)
class Round:
    """What a server meets in one round."""

    updates: tuple[LoRAFactors, ...]
    weights: tuple[float, ...]
    levels: tuple[int, ...]
    previous: LoRAFactors
    empty_partition: str

    def suit(self, rule):
        """The round as the rule can meet it: under `ffa` everybody has the rows of one A."""
        if rule != "ffa":
            return self
        common = self.previous.lora_A
        return self.map(lambda u: map_factors(u, on_a=lambda a: common[: a.shape[-2]]))

    def aggregate(self, rule, **options):
        given = {"previous": self.previous, "empty_partition": self.empty_partition, **options}
        return aggregate(self.updates, self.weights, rule, rank_levels=self.levels, **given)

    def adapter(self, rule, **options):
        """What clients are allocated their factors from."""
        return self.aggregate(rule, **options).adapter

    def delta(self, rule, **options):
        """The whole update, with what the rule merges into the base."""
        return self.aggregate(rule, **options).delta()

    def map(self, change):
        """The round after a change that every update and the previous one go through."""
        return replace(
            self, updates=tuple(map(change, self.updates)), previous=change(self.previous)
        )

    def with_client(self, update, weight):
        return replace(
            self, updates=(*self.updates, update), weights=(*self.weights, float(weight))
        )


@st.composite
def rounds(draw, *, full_rank=False, square=False, min_clients=1):
    """Random cohorts: unequal ranks, levels nobody has, weights down to zero, any scaling rule.

    Args:
        full_rank: the highest level is min(d_in, d_out), so that aggregation cuts nothing off.
        square: d_in = d_out, where A and B cannot be told apart by shape.
        min_clients: smallest cohort.
    """
    d_out = draw(st.integers(3, 9))
    d_in = d_out if square else draw(st.integers(3, 9))
    limit = min(d_in, d_out)
    levels = draw(st.sets(st.integers(1, limit), min_size=1, max_size=3))
    levels = tuple(sorted(levels | ({limit} if full_rank else set())))
    ranks = draw(st.lists(st.sampled_from(levels), min_size=min_clients, max_size=5))
    sizes = st.lists(st.integers(0, 20), min_size=len(ranks), max_size=len(ranks)).filter(any)
    alpha = draw(st.floats(0.5, 32))
    law = draw(st.sampled_from(["one", "alpha_over_r", "rslora"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def scaling(r):
        return {"one": 1.0, "alpha_over_r": alpha / r, "rslora": alpha / r**0.5}[law]

    return Round(
        updates=tuple(random_factors(rng, d_out, d_in, r, scaling(r)) for r in ranks),
        weights=tuple(float(n) for n in draw(sizes)),
        levels=levels,
        previous=random_factors(rng, d_out, d_in, levels[-1], draw(st.floats(0.5, 2))),
        empty_partition=draw(st.sampled_from(["carry", "zero"])),
    )
