"""Derivation of the effect of each server rule on a direction that some clients carry.

Explicit clients share the basis: a contributor's factors hold `sqrt(x)` each in the direction, the
others hold 0 (zero padding). Weights follow the rule's definition, and the server's result is
divided by x. Rules: Wu et al., arXiv 2602.13486, Sec. 3 and 5, and the papers named below; the
multipliers: our derivation.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from analysis.derivations.statement import derivation
from analysis.derivations.symbols import H, W, m, x

TITLE = "What every rule does to one direction"


@dataclass(frozen=True)
class Explicit:
    """Weights of explicit clients, contributors first, and their factors in one direction."""

    weights: tuple[sp.Expr, ...]
    factors: tuple[sp.Expr, ...]

    def product_average(self) -> sp.Expr:
        """Return `sum_k w_k b_k a_k`."""
        return sp.Add(*[w * f * f for w, f in zip(self.weights, self.factors, strict=True)])

    def factor_average(self) -> sp.Expr:
        """Return `(sum_k w_k b_k) (sum_k w_k a_k)`."""
        average = sp.Add(*[w * f for w, f in zip(self.weights, self.factors, strict=True)])
        return average**2


def clients(num_contributors: int = 2, *, contributors_only: bool = False) -> Explicit:
    """Return two or more contributors of total weight W, and one other client.

    Args:
        num_contributors: number of contributors.
        contributors_only: weights over contributors (raFLoRA, RBLA) instead of the whole cohort.

    Returns:
        Weights that sum to 1 over the cohort, or over the contributors.
    """
    own = sp.symbols(f"w_1:{num_contributors}", positive=True)
    shares = (*own, W - sp.Add(*own))
    if contributors_only:
        shares = tuple(share / W for share in shares)
    return Explicit((*shares, 1 - W), (sp.sqrt(x),) * num_contributors + (sp.Integer(0),))


@derivation(r"x'_{\mathrm{FedAvg}} / x")
def fedavg() -> sp.Expr:
    """Return the multiplier of FedAvg of products (FlexLoRA), where other clients add nothing.

    Returns:
        W.

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 4.
    """
    return sp.simplify(clients().product_average() / x)


@derivation(r"x'_{\mathrm{zero\,pad}} / x")
def zero_pad() -> sp.Expr:
    """Return multiplier of FedAvg of zero-padded factors (FedIT), which dilutes A and B once each.

    Returns:
        `W^2`.

    Reference:
        Our derivation.
    """
    return sp.factor(sp.simplify(clients().factor_average() / x))


@derivation(r"w_{\mathrm{HetLoRA}}")
def hetlora_weight(num_contributors: int = 1, cohort_size: int = 3) -> sp.Expr:
    """Return the weight of a contributor under HetLoRA: its norm relative to the cohort's norms.

    All clients carry shared energy `E_1`; contributors also hold `x^2`: norms `sqrt(E_1 + x^2)` and
    `sqrt(E_1)`.

    Args:
        num_contributors: H.
        cohort_size: m.

    Returns:
        Expression in `E_1` and x.

    Reference:
        Cho et al. 2024, arXiv 2401.06432, Sec. 3.2; our derivation.
    """
    shared = sp.Symbol("E_1", positive=True)
    high, low = sp.sqrt(shared + x**2), sp.sqrt(shared)
    return high / (num_contributors * high + (cohort_size - num_contributors) * low)


@derivation(r"\lim_{x \to 0} x'_{\mathrm{HetLoRA}} / x")
def hetlora_limit() -> sp.Expr:
    """Return limit of HetLoRA's multiplier as the direction vanishes and weights become uniform.

    Factors are averaged.

    Returns:
        `(H / m)^2`.

    Reference:
        Our derivation.
    """
    shared = sp.Symbol("E_1", positive=True)
    high, low = sp.sqrt(shared + x**2), sp.sqrt(shared)
    weight = high / (H * high + (m - H) * low)
    return sp.factor(sp.limit((H * weight) ** 2, x, 0))


@derivation(r"x'_{\mathrm{FLoRA}}")
def flora() -> sp.Expr:
    """Return the multiplier of FLoRA, which merges the stack of updates into the base.

    A contributor trains from base x to `a x + b` and sends the increment.

    Returns:
        Expression in x, a, b and W: only the increment is diluted.

    Reference:
        Wang et al. 2024, arXiv 2409.05976, Sec. 3; our derivation.
    """
    a, b = sp.symbols("a b", real=True)
    increment = fedavg() * (a * x + b - x)
    return x + sp.factor(increment)


@derivation(r"x'_{\mathrm{FFA}} / x")
def ffa() -> sp.Expr:
    """Return the multiplier of FFA-LoRA: A is common and frozen at `sqrt(x)`, B is averaged.

    Returns:
        W.

    Reference:
        Sun et al. 2024, arXiv 2403.12313, Sec. 4; our derivation.
    """
    explicit = clients()
    trained = sp.Add(*[w * f for w, f in zip(explicit.weights, explicit.factors, strict=True)])
    return sp.simplify(trained * sp.sqrt(x) / x)


@derivation(r"x'_{\mathrm{raFLoRA}} / x")
def raflora() -> sp.Expr:
    """Return the multiplier of raFLoRA, which averages products over the contributors only.

    Returns:
        1.

    Reference:
        Wu et al., arXiv 2602.13486, Eq. 8.
    """
    return sp.simplify(clients(contributors_only=True).product_average() / x)


@derivation(r"x'_{\mathrm{RBLA}} / x")
def rbla() -> sp.Expr:
    """Return multiplier of RBLA, which averages each factor entry over the clients that hold it.

    Returns:
        1.

    Reference:
        Chen et al. 2024, arXiv 2408.08699; our derivation.
    """
    return sp.simplify(clients(contributors_only=True).factor_average() / x)


@derivation(r"\Delta_h^{\mathrm{raFLoRA}} / \Delta_h^{\mathrm{FedAvg}} \cdot W_h")
def raflora_identity(num_clients: int = 3, num_contributors: int = 2) -> sp.Expr:
    """Return partition h of raFLoRA times W_h, relative to product-space FedAvg, for any updates.

    Entries `X_k` of the contributors' updates in the partition are arbitrary: no common basis.

    Args:
        num_clients: clients of the cohort.
        num_contributors: carriers of the partition, the first clients.

    Returns:
        1 for all sample counts and updates.

    Reference:
        Wu et al., arXiv 2602.13486, Eq. 8; the identity: our derivation.
    """
    samples = sp.symbols(f"n_1:{num_clients + 1}", positive=True)
    entries = sp.symbols(f"X_1:{num_contributors + 1}", positive=True)
    carriers = samples[:num_contributors]
    summed = sp.Add(*[count * entry for count, entry in zip(carriers, entries, strict=True)])
    share = sp.Add(*carriers) / sp.Add(*samples)
    ratio = (summed / sp.Add(*carriers)) / (summed / sp.Add(*samples))
    return sp.simplify(ratio * share)
