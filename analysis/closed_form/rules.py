"""What each aggregation rule does to one direction: weights, space, policy and multiplier.

    fedavg, ffa     x' = sum w (a x + b), weights over the cohort (`flexlora` is fedavg)
    raflora         the same, weights over the cohort's contributors
    zero_pad        factors averaged, weights over the cohort: both are diluted (`fedit`)
    rbla            factors averaged, weights over the contributors
    hetlora         factors averaged, weights by the norm of the update: they depend on the state
    flora           the base gains sum w (a x + b - x) and keeps what it has
    fedex           factors averaged, and what that misses of the exact average goes into the base

An amplitude sits half in A and half in B, so averaging factors dilutes it by W twice.

Reference: Wu et al., arXiv 2602.13486, Sec. 3 and 5 (fedavg, raflora); zero_pad arXiv 2305.05644,
hetlora 2401.06432, rbla 2408.08699, flora 2409.05976, fedex 2410.09432, ffa 2403.12313.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlora_sim.errors import check_choice, check_numbers, expected
from fedlora_sim.tolerances import relative

Space = Literal["product", "factor", "base", "residual"]


@dataclass(frozen=True)
class RuleForm:
    """A rule as the closed forms see it.

    Args:
        name: the rule.
        normaliser: over whom weights are normalised, `cohort` or `contributors`.
        space: what is averaged: `product`, `factor`, `base` (the increment, into the base) or
            `residual` (factors, with the rest in the base).
        has_policy: whether `empty_partition` says what happens without a contributor.
        norm_weighted: whether weights are norms of updates.
    """

    name: str
    normaliser: str = "cohort"
    space: Space = "product"
    has_policy: bool = False
    norm_weighted: bool = False

    @property
    def policies(self) -> tuple[str, ...] | tuple[None]:
        """Values of `empty_partition` that make a difference; None alone where none does."""
        return ("zero", "carry") if self.has_policy else (None,)

    @property
    def power(self) -> int:
        """How often a round multiplies an amplitude by the share W."""
        return 2 if self.space == "factor" else 1

    @property
    def takes_spread(self) -> bool:
        """Whether clients that differ leave the round a linear map: not in factor space."""
        return self.space in ("product", "base")


_FORMS = {
    form.name: form
    for form in (
        RuleForm("fedavg"),
        RuleForm("fedex", space="residual"),
        RuleForm("ffa"),
        RuleForm("flora", space="base"),
        RuleForm("hetlora", space="factor", norm_weighted=True),
        RuleForm("raflora", "contributors", has_policy=True),
        RuleForm("rbla", "contributors", "factor", has_policy=True),
        RuleForm("zero_pad", space="factor"),
    )
}

RULES = tuple(_FORMS)
"""Names of all rules that have closed forms."""

ALIASES = {"flexlora": "fedavg", "fedit": "zero_pad"}


def check_rule(rule: object) -> str:
    """The rule's name, lower-cased and with aliases resolved.

    Raises:
        ValueError: on an unknown rule, with the closest name.
    """
    name = check_choice("rule", rule, (*RULES, *ALIASES))
    return ALIASES.get(name, name)


def rule_form(rule: object) -> RuleForm:
    """What the closed forms need to know of a rule.

    Raises:
        ValueError: on an unknown rule, with the closest name.
    """
    return _FORMS[check_rule(rule)]


def multiplier(rule: str, coverage: ArrayLike) -> NDArray[np.float64]:
    """What a round leaves of an amplitude that all contributors return alike.

    `W` for fedavg, ffa and fedex, `W**2` for zero_pad and hetlora (of the norm shares), 1 for
    raflora and rbla wherever somebody contributes; for flora `W`, of the round's increment alone.

    Args:
        rule: any of `RULES`, or an alias.
        coverage: share W of the contributors in the weights, in [0, 1] up to rounding, any shape.

    Returns:
        Multipliers, shape of `coverage`.

    Raises:
        ValueError: on an unknown rule, or a share outside [0, 1].

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 4 and 5 (fedavg, raflora). Others: our derivation.
    """
    form, share = rule_form(rule), _shares(coverage)
    if form.normaliser == "contributors":
        return (share > 0).astype(np.float64)
    return np.asarray(share**form.power, dtype=np.float64)


def base_share(rule: str, coverage: ArrayLike) -> NDArray[np.float64]:
    """The part of `multiplier` that goes into the frozen base, where no later round dilutes it.

    All of it for flora, `W - W**2` for fedex, nothing for the others.

    Args:
        rule: any of `RULES`, or an alias.
        coverage: share W of the contributors in the weights, in [0, 1] up to rounding, any shape.

    Returns:
        Shares, shape of `coverage`.

    Raises:
        ValueError: on an unknown rule, or a share outside [0, 1].

    Reference:
        Our derivation.
    """
    form, share = rule_form(rule), _shares(coverage)
    if form.space == "base":
        return share.copy()
    return share * (1 - share) if form.space == "residual" else np.zeros_like(share)


def _shares(coverage: ArrayLike) -> NDArray[np.float64]:
    """Return checked shares; a sum of the caller's own may pass 0 or 1 by its rounding."""
    share: NDArray[np.float64] = check_numbers("coverage", coverage, "numbers in [0, 1]")
    rounding = relative("reduction")
    if not ((share >= -rounding) & (share <= 1 + rounding)).all():
        raise expected("coverage", coverage, "numbers in [0, 1]")
    return np.clip(share, 0.0, 1.0)
