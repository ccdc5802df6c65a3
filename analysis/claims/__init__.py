"""The registry of all claims, in the order of the report."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.claims import (
    allocation,
    breakdown,
    digits,
    drift,
    flow,
    heterogeneity,
    identities,
    ledger,
    noise,
    other_rules,
    participation,
    rates,
    settling,
)
from analysis.claims.base import Claim
from fedlora_sim.errors import check_choice, expected

THEMES: dict[str, tuple[Claim, ...]] = {
    "Suppression rates, full participation": rates.RATE_CLAIMS,
    "Sampled cohorts": rates.COHORT_CLAIMS,
    "The typical run, extinction and survival": participation.TYPICAL_CLAIMS,
    "Lower participation: the review's first conjecture": participation.PARTICIPATION_CLAIMS,
    "Random allocation: the review's second conjecture": allocation.CLAIMS,
    "Non-IID floors and trajectories": rates.FLOOR_CLAIMS,
    "Identities and multipliers": (*identities.IDENTITY_CLAIMS, *identities.MULTIPLIER_CLAIMS),
    "Other rules": (*other_rules.OTHER_RULE_CLAIMS, *other_rules.NORM_WEIGHT_CLAIMS),
    "Heterogeneity": heterogeneity.CLAIMS,
    "Noise and signal": (*noise.NOISE_CLAIMS, *noise.SIGNAL_CLAIMS),
    "Phase transition of LoRA's own training": (
        *flow.FLOW_CLAIMS,
        *flow.THRESHOLD_CLAIMS,
        *flow.FLOW_COHORT_CLAIMS,
    ),
    "Drift law": drift.CLAIMS,
    "Where the theory stops": breakdown.CLAIMS,
    "The settling experiment that the review asks for": settling.CLAIMS,
    "Real fine-tuning": (*digits.CLAIMS, *ledger.CLAIMS),
}
"""Claims by theme, both in the order of the report."""

CLAIMS: tuple[Claim, ...] = tuple(claim for claims in THEMES.values() for claim in claims)


def theme_of(claim: Claim) -> str:
    """Return the theme of a claim."""
    themes = (name for name, claims in THEMES.items() if claim.id in {c.id for c in claims})
    return next(themes, "")


def with_texts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report with the texts of today's claims, by id, so that a record keeps only numbers.

    Args:
        report: a verification's report; entries without such a claim are not changed.
    """
    known = {claim.id: claim for claim in CLAIMS}
    claims = []
    for entry in report["claims"]:
        texts: dict[str, Any] = {}
        if claim := known.get(entry["id"]):
            texts = {"theme": theme_of(claim), **claim.texts()}
            for name, control in claim.controls.items():
                if name in entry:
                    texts[name] = {**entry[name], "description": control.description}
        claims.append({**entry, **texts})
    return {**report, "claims": claims}


def select(ids: Sequence[str] | None, quick: bool = False) -> tuple[Claim, ...]:
    """Return the claims with the given ids in report order; without ids all claims.

    With `quick`, all claims of quick runs.

    Raises:
        InputError: if an id is unknown (names the closest one) or not available in a quick run.
    """
    if not ids:
        return tuple(claim for claim in CLAIMS if claim.in_quick or not quick)
    wanted = {check_choice("claim", name, [c.id for c in CLAIMS]) for name in ids}
    chosen = tuple(claim for claim in CLAIMS if claim.id in wanted)
    for claim in chosen:
        if quick and not claim.in_quick:
            raise expected("claim", claim.id, "a claim that quick runs hold, or a full run")
    return chosen
