"""Datasets that figures are drawn from: measurements beside their predictions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import xarray as xr

from analysis.claim import Claim, Context
from analysis.claims import breakdown, flow, settling, thresholds, typical
from analysis.claims import participation as participation_claims
from analysis.exhibits import energies, participation, phase


@dataclass(frozen=True)
class Exhibit:
    """A dataset of a verification: how it is made, and the claims that it illustrates.

    Args:
        name: of its file and its figure.
        make: from a verification's context to the dataset.
        claims: it is made where one of these is run; always if there are none.
    """

    name: str
    make: Callable[[Context], xr.Dataset]
    claims: tuple[Claim, ...] = ()

    def belongs_to(self, claims: Collection[Claim]) -> bool:
        """Whether a verification of these claims shows it."""
        return not self.claims or any(claim in claims for claim in self.claims)


EXHIBITS = (
    Exhibit("energies", energies.gather),
    Exhibit("participation", participation.gather, (*typical.CLAIMS, *participation_claims.CLAIMS)),
    Exhibit("phase", phase.gather, (*flow.CLAIMS, *thresholds.CLAIMS)),
    Exhibit("breakdown", breakdown.gather, breakdown.CLAIMS),
    Exhibit("settling", settling.gather, settling.CLAIMS),
)
