"""A rule in a scenario: its form, the distributions of its weights, and the targets of clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.closed_form.scope import check_scope
from analysis.cohorts.law import Array, ShareLaw, allocation_of
from analysis.cohorts.shares import (
    WeightMoments,
    empty_probability,
    expect,
    per_direction,
    share_laws,
    weight_moments,
)
from fedlora_sim.errors import check_choice, check_numbers, expected
from fedlora_sim.federation import Federation
from fedlora_sim.rules.registry import rule_aliases
from fedlora_sim.scenario import Scenario
from fedlora_sim.tolerances import relative


def each_direction(
    argument: str, value: ArrayLike, r_max: int, minimum: float | None = None
) -> Array:
    """Return `value` as finite floats of at least `minimum`, broadcast to shape (r_max,).

    Raises:
        InputError: names the argument.
    """
    bound = "" if minimum is None else f" of at least {minimum:g}"
    expectation = f"finite numbers{bound}, a scalar or one per direction ({r_max})"
    try:
        array = np.broadcast_to(check_numbers(argument, value, expectation), (r_max,))
    except ValueError:
        raise expected(argument, value, expectation) from None
    if not np.isfinite(array).all() or (minimum is not None and array.min() < minimum):
        raise expected(argument, value, expectation)
    return array


# Forms of the aggregation rules: weights, space, policy and multiplier.
#
#     fedavg, ffa  x' = sum w (a x + b), weights over the cohort (`flexlora` is fedavg)
#     raflora      the same, weights over the cohort's contributors
#     zero_pad     factors averaged, weights over the cohort: both are diluted (`fedit`)
#     rbla         factors averaged, weights over the contributors
#     hetlora      factors averaged, weights by the norm of the update, which depend on the state
#     flora        the base gains sum w (a x + b - x) and keeps its value
#     fedex        factors averaged, and the residual of the exact average goes into the base
#
# An amplitude is split evenly between A and B, so averaging factors dilutes it by W twice.
#
# Reference: Wu et al., arXiv 2602.13486, Sec. 3 and 5 (fedavg, raflora); zero_pad arXiv 2305.05644,
# hetlora 2401.06432, rbla 2408.08699, flora 2409.05976, fedex 2410.09432, ffa 2403.12313.

Space = Literal["product", "factor", "base", "residual"]


@dataclass(frozen=True)
class RuleForm:
    """A rule in the closed forms.

    Args:
        name: the rule.
        normalizer: clients over which weights are normalized, `cohort` or `contributors`.
        space: what is averaged: `product`, `factor`, `base` (the increment, into the base) or
            `residual` (factors, with the rest in the base).
        has_policy: whether `empty_partition` applies in rounds without a contributor.
        norm_weighted: whether weights are norms of updates.
    """

    name: str
    normalizer: str = "cohort"
    space: Space = "product"
    has_policy: bool = False
    norm_weighted: bool = False

    @property
    def policies(self) -> tuple[str, ...] | tuple[None]:
        """Values of `empty_partition` that make a difference; only None if there are none."""
        return ("zero", "carry") if self.has_policy else (None,)

    @property
    def power(self) -> int:
        """Exponent of the share W in a round's factor on an amplitude."""
        return 2 if self.space == "factor" else 1

    @property
    def takes_spread(self) -> bool:
        """True if the round is a linear map also for clients that differ: not in factor space."""
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


def known_names() -> dict[str, str]:
    """Return the rule of every name that has closed forms, aliases included."""
    aliases = {other: own for other, own in rule_aliases().items() if own in RULES}
    return {**dict(zip(RULES, RULES, strict=True)), **aliases}


def check_rule(rule: object) -> str:
    """Return the rule's name, lower-cased and with aliases resolved.

    Raises:
        InputError: for an unknown rule; names the closest one.
    """
    known = known_names()
    return known[check_choice("rule", rule, known)]


def rule_form(rule: object) -> RuleForm:
    """Return the form of a rule.

    Raises:
        InputError: for an unknown rule; names the closest one.
    """
    return _FORMS[check_rule(rule)]


def multiplier(rule: str, coverage: ArrayLike) -> NDArray[np.float64]:
    """Return the factor of a round on an amplitude that all contributors return alike.

    `W` for fedavg, ffa and fedex, `W**2` for zero_pad and hetlora (of the norm shares), 1 for
    raflora and rbla with a contributor; for flora `W`, on the round's increment only.

    Args:
        rule: any of `RULES`, or an alias.
        coverage: share W of the contributors in the weights, in [0, 1] up to rounding, any shape.

    Returns:
        Multipliers, shape of `coverage`.

    Raises:
        InputError: for an unknown rule, or a share outside [0, 1].

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 4 and 5 (fedavg, raflora). Others: our derivation.
    """
    form, share = rule_form(rule), _shares(coverage)
    if form.normalizer == "contributors":
        return (share > 0).astype(np.float64)
    return np.asarray(share**form.power, dtype=np.float64)


def base_share(rule: str, coverage: ArrayLike) -> NDArray[np.float64]:
    """Return the part of `multiplier` that goes into the base, where it is never diluted again.

    All of it for flora, `W - W**2` for fedex, nothing for the others.

    Args:
        rule: any of `RULES`, or an alias.
        coverage: share W of the contributors in the weights, in [0, 1] up to rounding, any shape.

    Returns:
        Shares, shape of `coverage`.

    Raises:
        InputError: for an unknown rule, or a share outside [0, 1].

    Reference:
        Our derivation.
    """
    form, share = rule_form(rule), _shares(coverage)
    if form.space == "base":
        return share.copy()
    return share * (1 - share) if form.space == "residual" else np.zeros_like(share)


def _shares(coverage: ArrayLike) -> NDArray[np.float64]:
    """Return checked shares; rounding of the caller's sums may exceed 0 or 1."""
    share: NDArray[np.float64] = check_numbers("coverage", coverage, "numbers in [0, 1]")
    rounding = relative("reduction")
    if not ((share >= -rounding) & (share <= 1 + rounding)).all():
        raise expected("coverage", coverage, "numbers in [0, 1]")
    return np.clip(share, 0.0, 1.0)


# The setting of a closed form


@dataclass(frozen=True, eq=False)
class Setting:
    """A rule in a scenario, with the distributions of its weights; checked by `setting_of`.

    Args:
        scenario: the scenario to predict.
        form: the form of the rule.
        values: values per direction instead of a field of the scenario, by name.
    """

    scenario: Scenario
    form: RuleForm
    values: Mapping[str, ArrayLike] = field(default_factory=dict)

    @cached_property
    def federation(self) -> Federation:
        """The clients with the rule's weights; in hetlora's limit all weights are equal."""
        own = self.scenario.federation
        if self.form.norm_weighted:
            return Federation(own.ranks, None, own.cohort_size, own.sampling)
        return own

    @property
    def r_max(self) -> int:
        """Number of directions."""
        return self.federation.r_max

    @property
    def carries(self) -> bool:
        """True if a direction without a contributor is kept unchanged."""
        return self.form.has_policy and self.scenario.empty_partition == "carry"

    @property
    def is_full(self) -> bool:
        """True if all rounds are equal."""
        return is_full(self.scenario)

    def direction(self, name: str, minimum: float | None = None) -> Array:
        """Return a field of the scenario per direction, (r_max,), or the value given instead.

        Args:
            name: one of `analysis.closed_form.scope.VALUES` except `target`.
            minimum: minimum value.

        Raises:
            InputError: names the field.
        """
        usual: ArrayLike
        if name == "initial_amplitude":
            usual = self.scenario.initial_amplitudes
        elif name == "drift_mean":
            usual = self.scenario.drift_means
        else:
            usual = getattr(self.scenario, name)
        return each_direction(name, self.values.get(name, usual), self.r_max, minimum)

    @cached_property
    def moments(self) -> WeightMoments:
        """Moments of the rule's weights."""
        return weight_moments(self.form.normalizer, self.federation, self.scenario.allocation)

    @cached_property
    def third_moment(self) -> Array:
        """`E[W^3]`, (r_max,)."""
        return self.expect(lambda share: share**3)

    @cached_property
    def empty(self) -> Array:
        """Probability P0 per round that no client carries a direction, (r_max,), always exact."""
        return empty_probability(self.federation, self.scenario.allocation)

    def expect(self, function: Callable[[Array], Array]) -> Array:
        """Return the mean of a function of the share W, including empty rounds, (r_max,)."""
        if self.form.normalizer == "contributors":
            at_zero, at_one = function(np.zeros(1)), function(np.ones(1))
            # the value without a contributor may be infinite if that never happens
            return np.where(self.empty > 0, self.empty * at_zero, 0.0) + (1 - self.empty) * at_one
        return expect(self.federation, self.form.normalizer, function, self.scenario.allocation)

    @cached_property
    def laws(self) -> tuple[ShareLaw, ...]:
        """Joint distributions of the share and the sum of squares, one per direction."""
        laws = share_laws(self.federation, self.form.normalizer, self.scenario.allocation)
        index = per_direction(self.federation, np.arange(float(len(laws))))
        return tuple(laws[int(i)] for i in index)


def is_full(scenario: Scenario) -> bool:
    """Return True if all rounds are equal: full participation with constant directions."""
    federation = scenario.federation
    everybody = federation.cohort_size == federation.num_clients
    repeated = federation.sampling in ("with_replacement", "size_weighted")
    return everybody and not repeated and scenario.allocation == "svd"


def setting_of(
    form: str, scenario: Scenario, rule: object, values: Mapping[str, ArrayLike]
) -> Setting:
    """Return the checked setting of a closed form.

    Args:
        form: name of the closed form, see `analysis.closed_form.scope`.
        scenario: the scenario to predict.
        rule: name of the rule.
        values: values per direction, by name.

    Raises:
        InputError: for a scenario that the form does not cover, naming the field; for an unknown
            rule; for `error` where a direction can have no contributor; for `importance`, which
            depends on the state; for HetLoRA if clients are drawn with replacement, or carry random
            directions.
    """
    asked = rule_form(rule)
    checked = check_scope(form, scenario, values)
    choice = allocation_of(checked.allocation)
    setting = Setting(checked, asked, values)
    if asked.norm_weighted:
        _check_uniform(checked.federation)
        if choice == "random":
            reason = "hetlora's weights then have no uniform limit: no closed form"
            raise expected("allocation", choice, f"'svd' for rule='hetlora' ({reason})")
    if asked.has_policy and checked.empty_partition == "error" and setting.empty.max() > 0:
        chance = f"a partition is empty with probability up to {setting.empty.max():.3g}"
        raise expected("empty_partition", "error", f"'zero' or 'carry' ({chance})")
    return setting


def federation_of(form: str, scenario: Scenario) -> Federation:
    """Return the federation of a scenario, for a closed form without a rule."""
    checked = check_scope(form, scenario, {})
    allocation_of(checked.allocation)
    return checked.federation


def _check_uniform(federation: Federation) -> None:
    """Refuse cohorts for which the norms do not have a limit of equal weights."""
    if federation.sampling in ("with_replacement", "size_weighted"):
        reason = "a client drawn twice counts once under hetlora: no closed form"
        raise expected(
            "sampling",
            federation.sampling,
            f"full, without_replacement or bernoulli for rule='hetlora' ({reason})",
        )


# Targets of the flow: the amplitude that each client would learn alone, and its local map


def flow_map(amplitude: ArrayLike, target: ArrayLike, local_time: ArrayLike) -> Array:
    """Return the amplitude after gradient flow: `f(x) = M G x / (M + x (G - 1))`, `G = exp(2 M T)`.

    The flow of `0.5 ||B A - M||_F**2` for time T from balanced factors, M sharing their basis with
    amplitude M. `x / (1 + 2 T x)` at M = 0; 0 stays 0; all arguments broadcast.

    Args:
        amplitude: x, finite and non-negative.
        target: M, finite, of any sign.
        local_time: T, finite and non-negative.

    Returns:
        Amplitudes, in the unit of x.

    Raises:
        InputError: for a negative or undefined amplitude or time.

    Reference:
        Our derivation (theory of LoRA's own training; the paper assumes a common gain).
    """
    x = _checked("amplitude", amplitude, minimum=0.0)
    M, T = _checked("target", target), _checked("local_time", local_time, minimum=0.0)
    try:
        x, M, T = np.broadcast_arrays(x, M, T)
    except ValueError:
        shapes = f"{x.shape}, {M.shape} and {T.shape}"
        raise expected("amplitude", amplitude, f"shapes that broadcast, not {shapes}") from None
    return local_map(x, M, T)


def local_map(x: Array, target: Array, local_time: Array | float) -> Array:
    """Return `flow_map` of checked arguments."""
    decay, pull = reciprocal_map(target, local_time)
    some = x > 0
    safe = np.where(some, x, 1.0)
    # x / (e + k x), with e = 1/G and k = (1 - 1/G) / M: neither can overflow for M >= 0
    with np.errstate(over="ignore"):
        divisor = decay + pull * safe
        grown = divisor == 0  # e and k x both underflow: the amplitude has reached M
        mapped = np.where(grown, target, safe / np.where(grown, 1.0, divisor))
        return np.where(some, mapped, 0.0)


def reciprocal_map(target: Array, local_time: Array | float) -> tuple[Array, Array]:
    """Return e and k of the map `1/x -> e/x + k`: `e = exp(-2 M T)` and `k = (1 - e) / M`.

    At M = 0, k is 2 T.
    """
    with np.errstate(over="ignore"):
        exponent = -2 * np.asarray(target, dtype=np.float64) * local_time
        decay, drop = np.exp(exponent), -np.expm1(exponent)
    flat = np.broadcast_to(np.asarray(2.0 * np.asarray(local_time)), exponent.shape).copy()
    # a subnormal exponent has lost digits, while the limit at M = 0 is exact
    curved = np.abs(exponent) >= np.finfo(np.float64).tiny
    pull = np.divide(drop, target, out=flat, where=curved)
    return decay, pull


def client_targets(setting: Setting) -> Array:
    """Return the targets M_k of all clients, 0 where not carried, shape (K, r_max).

    Given targets are a scalar, (r_max,) for targets per direction, or (K,), (K, 1) or (K, r_max)
    for targets per client. If K = r_max, a plain list of unequal values is refused as ambiguous.

    Args:
        setting: the rule in its scenario.

    Raises:
        InputError: names the argument.
    """
    K, r_max = setting.federation.num_clients, setting.r_max
    target = setting.values.get("target", setting.scenario.target_amplitudes[None])
    shapes = f"a scalar, ({r_max},) per direction, or ({K},) or ({K}, {r_max}) per client"
    values: Array = check_numbers("target", target, f"finite numbers: {shapes}")
    if not np.isfinite(values).all():
        raise expected("target", target, f"finite numbers: {shapes}")
    if r_max == K and values.shape == (K,) and np.ptp(values) > 0:
        raise expected("target", target, f"shape ({K}, 1) per client or (1, {K}) per direction")
    if values.shape == (K,) and r_max != K:
        values = values[:, None]
    try:
        own = np.broadcast_to(values, (K, r_max))
    except ValueError:
        raise expected("target", target, f"finite numbers: {shapes}") from None
    # exp(2 M T) of a client that does not carry the direction may overflow: its weight is 0
    return np.where(carriers(setting), own, 0.0)


def shared_targets(setting: Setting, targets: Array) -> Array | None:
    """Return the common targets (r_max,) of the carriers of each direction; None if they differ."""
    first = np.empty(setting.r_max)
    for i in range(setting.r_max):
        own = targets[carriers(setting)[:, i], i]
        if np.ptp(own) > 0:
            return None
        first[i] = own[0]
    return first


def carriers(setting: Setting) -> Array:
    """Return which clients may carry a direction, boolean (K, r_max)."""
    members = setting.federation.members
    return np.ones_like(members) if setting.scenario.allocation == "random" else members


def full_weights(setting: Setting) -> Array:
    """Return the rule's weights under full participation, (K, r_max), zero where not carried."""
    own = setting.federation.weights[:, None] * setting.federation.members
    if setting.form.normalizer == "contributors":
        return np.asarray(own / own.sum(axis=0), dtype=np.float64)
    return np.asarray(own, dtype=np.float64)


def missing_share(setting: Setting) -> Array:
    """Return the weight share of clients that do not carry a direction, (r_max,).

    0 if the rule's weights are over the carriers only.
    """
    if setting.form.normalizer == "contributors":
        return np.zeros(setting.r_max)
    return np.asarray(
        1 - setting.federation.coverage(setting.scenario.allocation), dtype=np.float64
    )


def need_full(setting: Setting, reason: str) -> None:
    """Refuse random cohorts in forms that require equal rounds."""
    if not setting.is_full:
        raise expected(
            "cohort_size",
            setting.federation.cohort_size,
            f"full participation and allocation='svd' ({reason}: no closed form)",
        )


def need_equal(setting: Setting) -> None:
    """Refuse unequal targets under hetlora, whose weights then have no uniform limit."""
    if setting.form.norm_weighted:
        reason = "norms that differ for good keep the weights from uniform: no closed form"
        given = setting.values.get("target")
        raise expected("target", given, f"targets that clients share for rule='hetlora' ({reason})")


def _checked(argument: str, value: ArrayLike, minimum: float | None = None) -> Array:
    bound = "" if minimum is None else f" of at least {minimum:g}"
    array: Array = check_numbers(argument, value, f"finite numbers{bound}")
    if not np.isfinite(array).all() or (minimum is not None and (array < minimum).any()):
        raise expected(argument, value, f"finite numbers{bound}")
    return array
