"""All claims of the project, in the order in which the report shows them."""

from collections.abc import Sequence

from analysis.claim import Claim
from analysis.claims import cohorts, digits, floors, identities, rates
from fedlora_sim.errors import check_choice

CLAIMS: tuple[Claim, ...] = (
    *rates.CLAIMS,
    *cohorts.CLAIMS,
    *floors.CLAIMS,
    *identities.CLAIMS,
    *digits.CLAIMS,
)


def select(ids: Sequence[str] | None, quick: bool = False) -> tuple[Claim, ...]:
    """Claims of these ids, in report order; when none is named all, or all that quick runs hold.

    Raises:
        ValueError: if an id is unknown, with the closest one.
    """
    if not ids:
        return tuple(claim for claim in CLAIMS if claim.in_quick or not quick)
    wanted = {check_choice("claim", name, [c.id for c in CLAIMS]) for name in ids}
    return tuple(claim for claim in CLAIMS if claim.id in wanted)
