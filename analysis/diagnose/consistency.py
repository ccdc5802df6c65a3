"""Which known rules the global adapters of a run are consistent with.

Under the drift law a round of a partition is `X' = mu(W) (X + c) (1 + e)`. The distribution of the
coverage W of a cohort follows from ranks, sample counts and cohort size, and mu from the rule. For
each rule the drift c (at least 0) and the spread of the noise e are fitted to the run; then runs of
that law are drawn and fitted in the same way. A rule is consistent if the run's slope of X' in X,
and mean and spread of its residuals, lie within the central range of those of the drawn runs, for
all partitions. A rule under which random cohorts cause more spread than the run has is excluded.

Drawing takes the bias of slopes in short runs, and cohorts without contributors, into account. The
law is that of Adam without strong weight decay: under SGD it may be that no rule is consistent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from analysis.cohorts.law import ShareLaw
from analysis.cohorts.shares import share_laws
from analysis.diagnose.spectra import Array, Rounds, pairs_of
from fedlora_sim.federation import Federation
from fedlora_sim.randomness import stream
from fedlora_sim.rules import AggregationRule, get_rule, rule_names

ERROR = 0.02
"""Probability that a run of a rule is called inconsistent with it."""
DRAWS = 1_000
"""Drawn runs of each rule."""
LEAST_DRAWS = 50
"""With fewer drawn runs of the same kind, the probability of that kind decides."""
MOST_ROUNDS = 200
"""Only the last rounds of a longer run are compared."""
LEAST_PAIRS = 3
"""Fewer pairs of adjacent rounds leave every rule possible."""
LEAST = 1e-9
"""Smallest amplitude of a fit, relative to the largest of the series."""
SPLIT = 1e-6
"""Rounding of adapters in single precision, relative to the amplitudes."""


@dataclass(frozen=True)
class RuleFit:
    """A rule compared with the adapters of a run.

    Args:
        rule: its name; with its policy, if the policy matters for these cohorts.
        multiplier: its mean multiplier of each partition, (M,).
        dilutes: whether a multiplier is below 1.
        consistent: whether the run agrees with it; None: not known.
    """

    rule: str
    multiplier: tuple[float, ...]
    dilutes: bool
    consistent: bool | None


@dataclass(frozen=True, eq=False)
class _Law:
    """The distribution of the multiplier of a partition; `kept` marks unchanged partitions."""

    probability: Array
    factor: Array
    kept: NDArray[np.bool_]

    @property
    def mean(self) -> float:
        return float((self.probability * np.where(self.kept, 1.0, self.factor)).sum())

    @property
    def trained(self) -> tuple[float, float]:
        """Mean and variance of the multiplier in rounds that do not keep the partition."""
        p = self.probability * ~self.kept
        mean = float((p * self.factor).sum() / p.sum())
        return mean, float((p * (self.factor - mean) ** 2).sum() / p.sum())


def compare(
    federation: Federation, rounds: Rounds, amplitude: Array, error: float = ERROR
) -> list[RuleFit]:
    """Return the fit of every rule whose global adapter is the whole update.

    Rules with base corrections are left out, because adapters alone do not show the base, and rules
    that weight clients by the norms of their updates.

    Args:
        federation: ranks, sample counts and cohorts.
        rounds: numbers of the rounds, (T,).
        amplitude: amplitudes of the partitions, (T, M).
        error: probability that a run of a rule is called inconsistent with it.
    """
    shares = share_laws(federation)
    may_be_empty = any((law.share == 0).any() for law in shares)
    fits: list[RuleFit] = []
    known: dict[bytes, bool | None] = {}
    for name in rule_names():
        rule = get_rule(name)
        whole = rule.space != "none" and not rule.residual_in_base
        if not whole or not rule.declares_multiplier or rule.weights_from_norms:
            continue
        policies = ("carry", "zero") if rule.has_empty_partition_policy and may_be_empty else ("",)
        for policy in policies:
            laws = [_law(rule, policy, law) for law in shares]
            means = tuple(law.mean for law in laws)
            key = np.concatenate([np.r_[law.factor, law.kept] for law in laws]).tobytes()
            if key not in known:  # rules of equal multipliers are one law
                known[key] = _agrees(laws, rounds, amplitude, error)
            dilutes = any((law.factor[law.probability > 0] < 1).any() for law in laws[1:])
            label = f"{name}:{policy}" if policy else name
            fits.append(RuleFit(label, means, dilutes and policy != "carry", known[key]))
    return fits


def _law(rule: AggregationRule, policy: str, law: ShareLaw) -> _Law:
    share = np.array(law.share)
    factor = rule.multiplier(torch.from_numpy(share)).numpy().astype(np.float64)
    empty = share == 0
    if rule.has_empty_partition_policy:
        factor = np.where(empty, 0.0, factor)
    return _Law(np.array(law.probability), factor, empty & (policy == "carry"))


def _agrees(laws: Sequence[_Law], rounds: Rounds, amplitude: Array, error: float) -> bool | None:
    rng = stream(0, "consistency")
    part = error / (3 * max(len(laws) - 1, 1))
    answers: list[bool | None] = []
    for h, law in enumerate(laws):
        if h == 0:  # every client carries it
            continue
        x, y = pairs_of(rounds[-MOST_ROUNDS:], amplitude[-MOST_ROUNDS:, h])
        vanishes = ((law.factor == 0) & ~law.kept & (law.probability > 0)).any()
        if ((x > 0) & (y == 0)).any() and not vanishes:
            answers.append(False)
            continue
        if len(x) < LEAST_PAIRS:
            answers.append(None)
            continue
        answers.append(_partition_agrees(law, x, y, part, rng))
    if False in answers:
        return False
    return None if None in answers or not answers else True


def _partition_agrees(
    law: _Law, x: Array, y: Array, error: float, rng: np.random.Generator
) -> bool:
    mean, variance = law.trained
    own_c, own = _statistics(x[:, None], y[:, None], mean)
    rest = y / (mean * (x + own_c[0]) + LEAST * max(x.max(), y.max())) - 1
    noise = np.sqrt(max(float(rest.var(ddof=1)) - variance / mean**2, 0.0))
    drawn = np.empty((len(x) + 1, DRAWS))
    drawn[0] = x[0]
    for t in range(len(x)):
        i = rng.choice(len(law.factor), DRAWS, p=law.probability)
        moved = law.factor[i] * (drawn[t] + own_c[0])
        moved = np.maximum(moved * (1 + noise * rng.standard_normal(DRAWS)), 0.0)
        drawn[t + 1] = np.where(law.kept[i], drawn[t], moved)
    _, others = _statistics(drawn[:-1], drawn[1:], mean)
    # compared with runs that lost the partition as well, or did not
    alike = (drawn == 0).any(0) == bool((x == 0).any() or (y == 0).any())
    if alike.sum() < LEAST_DRAWS:
        return bool(alike.mean() > error)
    for value, values in zip(own[:, 0], others[:, alike], strict=True):
        low, high = np.quantile(values, [error / 2, 1 - error / 2])
        if not low - SPLIT <= value <= high + SPLIT:
            return False
    return True


def _statistics(x: Array, y: Array, mean: float) -> tuple[Array, Array]:
    """Return the fitted drift, (S,), and slope, mean and spread of the residuals, (3, S).

    Args:
        x: amplitudes before rounds, (n, S).
        y: amplitudes after them, (n, S).
        mean: mean multiplier.
    """
    some = (x > 0) | (y > 0)
    size = _positive(np.maximum(x, y).max(0))
    c = 1e-3 * size
    for _ in range(3):
        w = some * (x + c + LEAST * size) ** -2.0
        c = np.maximum((w * (y / mean - x)).sum(0) / _positive(w.sum(0)), 0.0)
    guess = mean * (x + c) + LEAST * size
    count = np.maximum(some.sum(0), 1)
    rest = some * (y / guess - 1)
    residual = rest.sum(0) / count
    width = np.sqrt((some * (rest - residual) ** 2).sum(0) / count)
    w = some * guess**-2.0
    mean_x = (w * x).sum(0) / _positive(w.sum(0))
    dx = x - mean_x
    spread = (w * dx * dx).sum(0)
    slope = (w * dx * y).sum(0) / _positive(spread)
    return c, np.stack([slope, residual, width])


def _positive(values: Array) -> Array:
    """Return divisors: 1 where a drawn run has nothing left."""
    return np.where(values > 0, values, 1.0)
