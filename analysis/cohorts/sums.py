"""What every exact route hands on: the joint law of two sums of weights over one cohort."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.cohorts.clients import Clients
from analysis.cohorts.empty import empty_cohort
from analysis.cohorts.law import Array, ShareLaw, share_law


@dataclass(frozen=True, eq=False)
class Sums:
    """Outcomes of one cohort; weights not normalised; every array has shape (n,).

    Args:
        probability: of each outcome, up to a common factor.
        contributing: sum of the weights of drawn clients that carry the direction.
        other: the same of those that do not; anything where the normaliser does not ask for it.
        squares: expected sum of squared weights of the former, given the outcome.
    """

    probability: Array
    contributing: Array
    other: Array
    squares: Array

    def law(self, clients: Clients) -> ShareLaw:
        """Normalise the weights."""
        keep = (self.contributing > 0) & (self.probability > 0)
        contributing = self.contributing[keep]
        norm = clients.norm(contributing, self.other[keep])
        return share_law(
            self.probability[keep],
            contributing / norm,
            self.squares[keep] / norm**2,
            empty_cohort(clients),
        )
