"""Datasets that figures are drawn from: measurements beside their predictions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import xarray as xr

from analysis.claims import breakdown, flow, settling
from analysis.claims.base import Claim, Context
from analysis.claims.participation import PARTICIPATION_CLAIMS, TYPICAL_CLAIMS
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
    Exhibit("participation", participation.gather, (*TYPICAL_CLAIMS, *PARTICIPATION_CLAIMS)),
    Exhibit("phase", phase.gather, (*flow.FLOW_CLAIMS, *flow.THRESHOLD_CLAIMS)),
    Exhibit("breakdown", breakdown.gather, breakdown.CLAIMS),
    Exhibit("settling", settling.gather, settling.CLAIMS),
)
