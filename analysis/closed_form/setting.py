"""A rule in a federation: the one place where closed forms ask for laws of cohorts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.closed_form.inputs import Ranks, Samples, federation_of, is_full
from analysis.closed_form.rules import RuleForm, rule_form
from analysis.cohorts.clients import allocation_of
from analysis.cohorts.law import Array, ShareLaw
from analysis.cohorts.moments import WeightMoments, empty_probability, weight_moments
from analysis.cohorts.shares import expect, per_direction, share_laws
from fedlora_sim.errors import check_choice, expected
from fedlora_sim.federation import EMPTY_PARTITION, Federation


@dataclass(frozen=True)
class Setting:
    """A rule in a federation; HetLoRA stands as in the limit, with clients that weigh alike.

    Args:
        form: the rule.
        federation: the clients and the cohort law.
        allocation: `svd` or `random`.
        policy: what `form.has_policy` rules do without a contributor.
    """

    form: RuleForm
    federation: Federation
    allocation: str
    policy: str

    @property
    def r_max(self) -> int:
        """Number of directions."""
        return self.federation.r_max

    @property
    def carries(self) -> bool:
        """Whether a direction without a contributor stays as it was."""
        return self.form.has_policy and self.policy == "carry"

    @property
    def is_full(self) -> bool:
        """Whether every round is alike: everybody takes part, with the same directions."""
        return is_full(self.federation, self.allocation)

    @cached_property
    def moments(self) -> WeightMoments:
        """Moments of the rule's weights."""
        return weight_moments(self.form.normaliser, self.federation, self.allocation)

    @cached_property
    def empty(self) -> Array:
        """Probability P0 per round that nobody carries a direction, (r_max,), always exact."""
        return empty_probability(self.federation, self.allocation)

    def expect(self, function: Callable[[Array], Array]) -> Array:
        """Mean of a function of the share W, empty rounds included, (r_max,)."""
        if self.form.normaliser == "contributors":
            nobody, somebody = function(np.zeros(1)), function(np.ones(1))
            # nobody's value may be infinite where it never happens
            return np.where(self.empty > 0, self.empty * nobody, 0.0) + (1 - self.empty) * somebody
        return expect(self.federation, self.form.normaliser, function, self.allocation)

    @cached_property
    def laws(self) -> tuple[ShareLaw, ...]:
        """Joint law of the share and the sum of squares for every direction, r_max of them."""
        laws = share_laws(self.federation, self.form.normaliser, self.allocation)
        index = per_direction(self.federation, np.arange(float(len(laws))))
        return tuple(laws[int(i)] for i in index)


def setting_of(
    rule: str,
    ranks: Ranks,
    cohort_size: int | None,
    num_samples: Samples,
    sampling: str | None,
    allocation: str,
    empty_partition: str,
) -> Setting:
    """The setting that the arguments of a closed form describe.

    Raises:
        ValueError: on a bad argument; on `error` where a direction can be without contributor; on
            `importance`, whose choice depends on the state; on HetLoRA where clients are drawn
            with replacement, or carry random directions.
    """
    form = rule_form(rule)
    federation = federation_of(ranks, num_samples, cohort_size, sampling)
    policy = check_choice("empty_partition", empty_partition, EMPTY_PARTITION)
    choice = allocation_of(allocation)
    if form.norm_weighted:
        federation = _uniform(federation)
        if choice == "random":
            reason = "hetlora's weights then have no uniform limit: no closed form"
            raise expected("allocation", choice, f"'svd' for rule='hetlora' ({reason})")
    setting = Setting(form, federation, choice, policy)
    if form.has_policy and policy == "error" and setting.empty.max() > 0:
        chance = f"a partition is empty with probability up to {setting.empty.max():.3g}"
        raise expected("empty_partition", policy, f"'zero' or 'carry' ({chance})")
    return setting


def _uniform(federation: Federation) -> Federation:
    """The federation whose clients weigh alike: where norms are equal, samples do not count."""
    if federation.sampling in ("with_replacement", "size_weighted"):
        reason = "a client drawn twice counts once under hetlora: no closed form"
        raise expected(
            "sampling",
            federation.sampling,
            f"full, without_replacement or bernoulli for rule='hetlora' ({reason})",
        )
    return Federation(federation.ranks, None, federation.cohort_size, federation.sampling)
