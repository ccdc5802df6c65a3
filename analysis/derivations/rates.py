"""Derivation of coverage, the staircase of suppression rates and the collapse bound.

Full participation and a common gain; for random cohorts see `cohorts`. Setting: Wu et al., arXiv
2602.13486, Sec. 4 and App. A. All quantities are dimensionless.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from analysis.derivations.statement import derivation
from analysis.derivations.symbols import pi, t

TITLE = "Coverage, staircase rates and the collapse bound"

level = sp.Symbol("l", positive=True)
"""A rank level `l_h`."""

gamma = sp.Symbol("gamma", positive=True)
"""Energy factor of the second-lowest level."""


@dataclass(frozen=True)
class CollapseBound:
    """`1 - rho(t) <= constant * factor^t`, and the limit of `(1 - rho(t)) / factor^t`."""

    constant: sp.Expr
    factor: sp.Expr
    tightness: sp.Expr


@derivation(r"\pi_h")
def coverage(num_clients: int = 3) -> sp.Expr:
    """Return the coverage of a rank level: the data weight of the clients with `r_k >= l`.

    `pi_h = sum_k p_k 1[r_k >= l]` with `p_k = n_k / sum_j n_j`.

    Args:
        num_clients: number of explicit clients.

    Returns:
        Expression in the ranks `r_1, ...`, the sample counts `n_1, ...` and the level `l`.

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 4.
    """
    ranks = sp.symbols(f"r_1:{num_clients + 1}", positive=True)
    samples = sp.symbols(f"n_1:{num_clients + 1}", positive=True)
    total = sp.Add(*samples)
    carried = [
        count / total * sp.Piecewise((1, sp.Ge(rank, level)), (0, True))
        for rank, count in zip(ranks, samples, strict=True)
    ]
    return sp.Add(*carried)


@derivation(r"\pi_h - \pi_{h+1}")
def coverage_step(num_clients: int = 3) -> sp.Expr:
    """Return the coverage lost from one level to the next: the weight of the clients of that level.

    Client 1 has rank `l`, all others more: between `l` and the next level only `p_1` is lost, so
    coverage never grows with the level, and `pi_1 = 1` because every rank reaches `l_1`.

    Args:
        num_clients: number of explicit clients, at least 2.

    Returns:
        Expression in the sample counts `n_1, ...`.

    Reference:
        Wu et al., arXiv 2602.13486, Sec. 4.
    """
    ranks = sp.symbols(f"r_1:{num_clients + 1}", positive=True)
    explicit = {ranks[0]: 1} | dict.fromkeys(ranks[1:], 2)
    total = coverage(num_clients).subs(explicit)
    return sp.factor(total.subs(level, 1) - total.subs(level, 2))


@derivation(r"x(t)^2 / x(0)^2")
def staircase_energy() -> sp.Expr:
    """Return the energy after t rounds of FedAvg, with full participation and common gain.

    Relative to t = 0. Contributors return `x`, all others 0, so
    `x(t + 1) = sum_k p_k x(t) = pi x(t)`; the recurrence is solved, then squared.

    Returns:
        Expression in pi and t.

    Reference:
        Wu et al., arXiv 2602.13486, App. A.
    """
    amplitude = sp.Function("x")
    solution = sp.rsolve(amplitude(t + 1) - pi * amplitude(t), amplitude(t), {amplitude(0): 1})
    return sp.powsimp(solution**2)


@derivation(r"x(t+1)^2 / x(t)^2")
def staircase_rate() -> sp.Expr:
    """Return the energy factor per round of one partition; different factors form a staircase.

    Returns:
        Expression in pi.

    Reference:
        Wu et al., arXiv 2602.13486, App. A.
    """
    energy = staircase_energy()
    return sp.simplify(energy.subs(t, t + 1) / energy)


@derivation(r"C", r"\gamma", r"\lim_{t \to \infty} (1 - \rho_{l_1}(t)) / \gamma^t")
def collapse_bound(num_levels: int = 3) -> CollapseBound:
    """Return the constants of the bound `1 - rho(t) <= C gamma^t`, and its tightness in the limit.

    `1 - rho` is high energy over all energy. Omitting the high energy from the denominator and
    replacing each higher coverage by that of level 2 increases it. In the limit only level 2
    remains: the bound exceeds it by a factor of at most `sum_{h >= 2} E_h / E_2`.

    Args:
        num_levels: number of rank levels, at least 2.

    Returns:
        Expressions in the initial energies `E_1, E_2, ...` and the coverages `pi_2, ...`.

    Reference:
        Wu et al., arXiv 2602.13486, App. A; the constants: our derivation.
    """
    shared, *higher = sp.symbols(f"E_1:{num_levels + 1}", positive=True)
    second = sp.Symbol("pi_2", positive=True)
    # coverages of higher levels as fractions below 1 of pi_2
    below = [1 / (1 + v) for v in sp.symbols(f"v_3:{num_levels + 1}", positive=True)]
    rates = [staircase_rate().subs(pi, second * f) for f in (sp.Integer(1), *below)]
    high = sum(e * (q / rates[0]) ** t for e, q in zip(higher, rates, strict=True))
    constant = high.subs(t, 0) / shared
    scaled = sp.Add(*[sp.limit(part, t, sp.oo) for part in sp.Add.make_args(sp.expand(high))])
    return CollapseBound(constant, rates[0], scaled / shared)


@derivation(r"C \gamma^t - (1 - \rho_{l_1}(t))")
def collapse_bound_gap(num_levels: int = 3) -> sp.Expr:
    """Return the gap of the bound for explicit levels, as a fraction without negative coefficients.

    With `G = gamma^t` in (0, 1], level 2 holds `E_2 G`; a higher level has less coverage, so it
    holds `E_h G / (1 + v_h)` with `v_h >= 0`. The bound holds for every t because no coefficient of
    the fraction's expanded numerator and denominator is negative.

    Args:
        num_levels: number of rank levels, at least 2.

    Returns:
        Expression in G, the initial energies `E_1, E_2, ...` and `v_3, ...`.

    Reference:
        Wu et al., arXiv 2602.13486, App. A; the proof: our derivation.
    """
    decay = sp.Symbol("G", positive=True)
    energies = sp.symbols(f"E_1:{num_levels + 1}", positive=True)
    slack = [sp.Integer(0), *sp.symbols(f"v_3:{num_levels + 1}", nonnegative=True)]
    shared, higher = energies[0], energies[1:]
    high = sum(e * decay / (1 + v) for e, v in zip(higher, slack, strict=True))
    bound = sum(higher) / shared * decay
    return sp.factor(sp.together(bound - high / (shared + high)))
