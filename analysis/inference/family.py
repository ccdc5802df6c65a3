"""Families of claims: the error of all their verdicts together, and p-values over them.

A claim that its quantities lie within a region is tested for equivalence: supported if every
confidence interval lies inside. That is the pair of one-sided tests (TOST) of "below the region"
and "above it" for every quantity, each at half the quantity's share of the error: the interval
[low, high] at error e lies inside exactly if both tests reject at e / 2. The usual TOST, which
tests each side at e, would support sooner; ours keeps the same interval for refuting as well, so
that one error bounds both wrong supports and wrong refutations.

The theorems of a report form one family, its conjectures another. Every claim gets an equal part
of the family's error (Bonferroni), its quantities and its looks at growing data equal parts of
that, so that all intervals of a family hold together with probability 1 - FAMILY_ERROR. The part
depends on the number of claims in the registry, never on how many are run: repeating one claim
alone gives the same verdict. Negative controls that are simulated anew have intervals at the same
error each, in addition.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.inference.measurement import Array
from fedlora_sim.errors import expected

# Probability that any interval of a family misses its quantity, over all claims and all looks.
FAMILY_ERROR = 0.05


def claim_error(claims: int) -> float:
    """Each claim's part of its family's error.

    Args:
        claims: how many claims the family has.

    Returns:
        `FAMILY_ERROR / claims`.
    """
    if claims < 1:
        raise expected("claims", claims, "at least one claim")
    return FAMILY_ERROR / claims


def holm(p_values: ArrayLike, size: int | None = None) -> Array:
    """Holm's adjusted p-values: at most e where the family's error e would still decide the claim.

    The i-th smallest of `size` p-values is multiplied by size + 1 - i, and none is left below a
    smaller one's.

    Args:
        p_values: (k,), one per claim that was run.
        size: claims in the family, k at least; those that were not run count as undecided.

    Returns:
        Adjusted p-values in the order given, at most 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    total = len(p) if size is None else size
    if total < len(p):
        raise expected("size", total, f"at least the {len(p)} p-values given")
    order = np.argsort(p, kind="stable")
    steps = np.minimum((total - np.arange(len(p))) * p[order], 1.0)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted
