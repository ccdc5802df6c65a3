"""Derivation of the number of values that a round sends, per rule and layer.

A client of rank r holds `B: (d_out, r)` and `A: (r, d_in)`. Cohorts are uniform, m of K clients
without replacement. All counts: our derivation, for the rules of Wu et al., arXiv 2602.13486, and
the papers named below.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from analysis.derivations.statement import derivation
from analysis.derivations.symbols import K, m

TITLE = "Communication per round"

d_in, d_out = sp.symbols("d_in d_out", positive=True)
"""Width of the layer's input and output."""

r = sp.Symbol("r", positive=True)
"""Rank of one client."""

mean_rank = sp.Symbol("r_bar", positive=True)
"""Mean over clients of `r_k`."""


@dataclass(frozen=True)
class Traffic:
    """Expected number of values that a round's cohort sends and receives.

    Summed over its clients.
    """

    upload: sp.Expr
    download: sp.Expr


def _entries(*shapes: tuple[sp.Expr, sp.Expr]) -> sp.Expr:
    """Return the number of values in matrices of the given shapes."""
    return sp.factor(sp.Add(*[rows * columns for rows, columns in shapes]))


def _over_cohort(per_client: sp.Expr, num_clients: int = 3) -> sp.Expr:
    """Return the expected sum over the cohort of a number linear in the client's rank."""
    ranks = sp.symbols(f"r_1:{num_clients + 1}", positive=True)
    total = sp.Add(*[m / K * per_client.subs(r, rank) for rank in ranks])
    slope = sp.diff(total, ranks[0])
    assert sp.expand(total - slope * sp.Add(*ranks)) == 0, "linear and alike in all ranks"
    return slope * K * mean_rank


def stack_rank(num_clients: int = 3) -> sp.Expr:
    """Return the expected sum of the ranks of a cohort, `sum_k P(k in S) r_k`.

    Args:
        num_clients: number of explicit clients; the result does not depend on it.

    Returns:
        Expression in m and the mean rank.

    Reference:
        Our derivation.
    """
    return _over_cohort(r, num_clients)


@derivation(r"r (d_{\mathrm{in}} + d_{\mathrm{out}})")
def adapter_size() -> sp.Expr:
    """Return the number of values in both factors of one client.

    Returns:
        Expression in r, `d_in` and `d_out`.

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 3.
    """
    return _entries((d_out, r), (r, d_in))


@derivation(r"\mathrm{up}", r"\mathrm{down}")
def factors() -> Traffic:
    """Return the traffic of both factors in both directions.

    Applies to FedAvg of products, zero padding, HetLoRA, RBLA and raFLoRA.

    Returns:
        Expressions in m, the mean rank, `d_in` and `d_out`.

    Reference:
        Our derivation.
    """
    both = _over_cohort(adapter_size())
    return Traffic(both, both)


@derivation(r"\mathrm{up}_{\mathrm{FFA}}", r"\mathrm{down}_{\mathrm{FFA}}")
def frozen_factor() -> Traffic:
    """Return the traffic of FFA-LoRA, which sends B only, because A is frozen and known to all.

    Returns:
        Expressions in m, the mean rank and `d_out`.

    Reference:
        Sun et al. 2024, arXiv 2403.12313, Sec. 4; the count: our derivation.
    """
    one = _over_cohort(_entries((d_out, r)))
    return Traffic(one, one)


@derivation(r"\mathrm{up}_{\mathrm{FLoRA}}", r"\mathrm{down}_{\mathrm{FLoRA}}")
def stacked(num_clients: int = 3) -> Traffic:
    """Return traffic of FLoRA, where each client receives the stack of all adapters of the cohort.

    The stack has rank `sum_S r_k`, and m clients receive it.

    Args:
        num_clients: number of explicit clients; the result does not depend on it.

    Returns:
        Expressions in m, the mean rank, `d_in` and `d_out`: quadratic in m.

    Reference:
        Wang et al. 2024, arXiv 2409.05976, Sec. 3; the count: our derivation.
    """
    stack = adapter_size().subs(r, stack_rank(num_clients))
    return Traffic(factors().upload, sp.factor(m * stack))


@derivation(r"\mathrm{down}_{\mathrm{FLoRA, Bernoulli}}")
def stacked_bernoulli() -> sp.Expr:
    """Return FLoRA's download for Bernoulli cohorts that are redrawn while empty.

    `E[|S| sum_S r_k] = sum_k r_k sum_j P(j and k take part)`, over k itself and K - 1 others.

    Returns:
        Expression in K, m, the mean rank, `d_in` and `d_out`.

    Reference:
        Our derivation.
    """
    share = m / K
    met = share + (K - 1) * share**2
    stack = K * mean_rank * met / (1 - (1 - share) ** K)
    return sp.factor(adapter_size().subs(r, stack))


@derivation(r"\det(\mathrm{diag}(w) - w w^T)")
def residual_determinant(num_contributors: int = 3) -> sp.Expr:
    """Return the determinant that decides the rank of FedEx's residual in one direction.

    The residual of H contributors is `[B_k] (diag(w) - w w^T) [A_k]`. It is singular exactly if
    their weights sum to 1: then its rank is H - 1, otherwise H.

    Args:
        num_contributors: H.

    Returns:
        `prod_k w_k (1 - sum_k w_k)`.

    Reference:
        Singhal et al. 2024, arXiv 2410.09432, Sec. 3; our derivation.
    """
    weights = sp.Matrix(sp.symbols(f"w_1:{num_contributors + 1}", positive=True))
    return sp.factor((sp.diag(*weights) - weights * weights.T).det())


@derivation(r"\mathrm{down}_{\mathrm{FedEx, dense}} - \mathrm{down}_{\mathrm{factors}}")
def dense_residual() -> sp.Expr:
    """Return FedEx's additional download if the residual is sent as a dense matrix.

    Returns:
        Expression in m, `d_in` and `d_out`.

    Reference:
        Our derivation.
    """
    return m * _entries((d_out, d_in))


@derivation(r"\mathrm{down}_{\mathrm{FedEx, factors}} - \mathrm{down}_{\mathrm{factors}}")
def stacked_residual() -> sp.Expr:
    """Return FedEx's additional download if the residual is sent as a stack of factors.

    Returns:
        Expression in m, the mean rank, `d_in` and `d_out`: as much as FLoRA's stack.

    Reference:
        Our derivation.
    """
    return stacked().download


@derivation(r"\sum_S r_k")
def break_even_rank() -> sp.Expr:
    """Return the rank of a stack above which the dense matrix is shorter.

    Returns:
        Expression in `d_in` and `d_out`.

    Reference:
        Our derivation.
    """
    (rank,) = sp.solve(sp.Eq(adapter_size(), _entries((d_out, d_in))), r)
    return rank


@derivation(r"\mathrm{down}_{\mathrm{FLoRA}} / \mathrm{down}_{\mathrm{factors}}")
def stack_overhead() -> sp.Expr:
    """Return FLoRA's download relative to the rules that send adapters back.

    Returns:
        m.

    Reference:
        Our derivation.
    """
    return sp.simplify(stacked().download / factors().download)
