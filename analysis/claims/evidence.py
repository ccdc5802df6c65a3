"""What stands behind each claim: its measurement, its derivation and its proof.

Evidence follows from the id of a claim, so that recorded reports stay valid.
"""

from __future__ import annotations

from analysis.proofs.theorems import Theorem, theorems_of

# The derivations of each claim.
#
# `module.function` of `analysis.derivations`; with `:1,3`, only these of its equations. Claims
# without a derivation (an identity of factors, a comparison on real data) are not listed.

_SHARES = "cohorts.without_replacement"
_RANDOM_RATE = "allocation.share_moments:1"
_TYPICAL = ("typical.typical_rate", "typical.opposite_corrections:1")
_FLOOR = "floors.floor"

DERIVED: dict[str, tuple[str, ...]] = {
    "staircase": ("rates.staircase_rate",),
    "zero-pad-fourth-power": ("multipliers.zero_pad",),
    "raflora-flat": ("multipliers.raflora",),
    "collapse-bound": ("rates.collapse_bound:0,1", "rates.collapse_bound_gap"),
    "cohort-rate": (f"{_SHARES}:1",),
    "zero-pad-cohort-rate": (f"{_SHARES}:3",),
    "raflora-zero-cohort": ("floors.raflora_rate", "contributors.extinction:0"),
    "raflora-carry-flat": ("floors.carry_excess",),
    "typical-rate-fedavg": ("typical.typical_rate",),
    "typical-rate-zero-pad": ("typical.typical_rate", "multipliers.zero_pad"),
    "log-energy-spread": ("typical.log_energy:1",),
    "log-normal": ("typical.log_energy", "typical.log_normal:1"),
    "extinction-law": ("typical.survival", "contributors.extinction:0"),
    "participation-mean-milder": ("sensitivities.participation_effect",),
    "review-participation-mean": ("sensitivities.participation_effect",),
    "review-participation-typical-moderate": _TYPICAL,
    "review-participation-typical-tiny": _TYPICAL,
    "participation-median": ("typical.log_normal",),
    "random-allocation-rate": (_RANDOM_RATE,),
    "random-allocation-variance": (_RANDOM_RATE, "allocation.excess_over_svd"),
    "review-random-concentration": ("allocation.concentration",),
    "review-random-removes-loss": (_RANDOM_RATE,),
    "review-random-slows-loss": (_RANDOM_RATE,),
    "review-random-highest": (_RANDOM_RATE,),
    "floor-fedavg": (_FLOOR,),
    "floor-raflora": (_FLOOR,),
    "trajectory-fedavg": ("floors.energy_after",),
    "trajectory-raflora": ("floors.energy_after",),
    "drift-floor-fedavg": ("floors.mean_floor", "drift.full_floor"),
    "drift-floor-zero-pad": ("drift.zero_pad_floor",),
    "drift-saturation": ("drift.raflora_saturation",),
    "drift-raflora-linear": ("drift.raflora_growth:0",),
    "drift-trajectory": ("floors.mean_recursion",),
    "drift-interval": ("drift.variance_recursion",),
    "drift-known-cohorts": ("floors.mean_recursion",),
    "equal-ranks-identity": ("multipliers.raflora_identity",),
    "partition-identity": ("multipliers.raflora_identity",),
    "declared-multipliers": tuple(
        f"multipliers.{rule}"
        for rule in ("fedavg", "zero_pad", "hetlora_weight", "flora", "ffa", "raflora", "rbla")
    ),
    "flora-no-compounding": ("multipliers.flora",),
    "flora-dilutes-loss": ("multipliers.flora",),
    "flora-linear-growth": ("multipliers.flora",),
    "flora-cohort-growth": ("base_rules.flora_moments:1",),
    "fedex-settles": ("base_rules.fedex_total_limit",),
    "fedex-approach": ("base_rules.fedex_total_after",),
    "ffa-is-fedavg": ("multipliers.ffa", "multipliers.fedavg"),
    "rbla-is-raflora": ("multipliers.rbla", "multipliers.raflora"),
    "hetlora-recursion": ("multipliers.hetlora_weight",),
    "hetlora-first-round": ("multipliers.hetlora_weight",),
    "hetlora-uniform": ("multipliers.hetlora_limit",),
    "hetlora-uniform-cohorts": ("multipliers.hetlora_limit",),
    "heterogeneity-slows": ("floors.rate",),
    "heterogeneity-critical": ("floors.critical_gain_std",),
    "persistent-full": ("persistent.aggregate_law", "persistent.energy_after"),
    "persistent-cohorts": ("persistent_cohorts.energy_after",),
    "persistent-outgrows-fresh": ("persistent.gain_power",),
    "noise-gain": ("noise.one_round:1", "contributors.inverse_contributors"),
    "raflora-noise-amplification": ("noise.amplification",),
    "raflora-floor-ratio": (_FLOOR,),
    "long-run-fedavg": (_FLOOR,),
    "long-run-raflora": (_FLOOR,),
    "floor-drift-mean": ("floors.floor_with_drift",),
    "equal-signal-to-noise": ("noise.ratio_difference",),
    "signal-to-noise-cohorts": ("noise.fedavg_round", "noise.raflora_round"),
    "flow-floor-fedavg": ("flow.floor",),
    "flow-floor-zero-pad": ("flow.floor",),
    "flow-floor-raflora": ("flow.floor",),
    "flow-rate-below-fedavg": ("flow.approach:0",),
    "flow-rate-below-zero-pad": ("flow.approach:0",),
    "flow-rate-above-fedavg": ("flow.approach:1",),
    "flow-rate-above-zero-pad": ("flow.approach:1",),
    "flow-rate-above-raflora": ("flow.approach:1",),
    "flow-critical-fedavg": ("flow.critical_amplitude",),
    "flow-critical-zero-pad": ("flow.critical_amplitude",),
    "flow-threshold-fedavg": ("flow.critical_time",),
    "flow-threshold-zero-pad": ("flow.critical_time",),
    "flow-raflora-no-threshold": ("flow.local_gain",),
    "flow-threshold-targets": ("flow_cohorts.threshold_product",),
    "flow-cohorts-fedavg": ("flow_cohorts.harmonic_amplitude_after",),
    "flow-cohorts-zero-pad": ("flow_cohorts.harmonic_amplitude_after",),
    "flow-targets-fedavg": ("flow.local_map", "flow_cohorts.threshold_product"),
    "flow-targets-raflora": ("flow.local_map", "flow_cohorts.threshold_product"),
    "breakdown-drift": ("rates.staircase_energy", "alignment.small_angle_loss"),
    "breakdown-steps": ("flow.amplitude_after",),
    "breakdown-adam": ("flow.amplitude_after",),
    "review-settling-fractions": ("floors.rate", f"{_SHARES}:1"),
    "review-settling-speed": ("floors.rate", f"{_SHARES}:1"),
    "digits-collapse-fedavg": ("rates.collapse_bound:0,1",),
    "digits-collapse-zero-pad": ("multipliers.zero_pad",),
    "digits-raflora-no-collapse": ("multipliers.raflora",),
}


def derivations_of_claim(claim: str) -> list[str]:
    """Return the derivations of a claim, as `module.function` of `analysis.derivations`."""
    return [entry.partition(":")[0] for entry in DERIVED.get(claim, ())]


def evidence(claim: str) -> tuple[str, ...]:
    """Return what stands behind a claim of a report, in this order: measured, derived, proved.

    Every claim of a report is measured.
    """
    kinds = {"derived": claim in DERIVED, "proved": bool(theorems_of(claim))}
    return ("measured", *(kind for kind, present in kinds.items() if present))


def evidence_text(claim: str, proofs: str | None = None) -> str:
    """Return what stands behind a claim in Markdown, with the names of its theorems.

    Args:
        claim: id of the claim.
        proofs: address of the page of theorems, to which the names link; None names them only.
    """
    kinds = evidence(claim)
    if "proved" not in kinds:
        return ", ".join(kinds)
    names = ", ".join(_name(theorem, proofs) for theorem in theorems_of(claim))
    return f"{', '.join(kinds)}: {names}"


def _name(theorem: Theorem, proofs: str | None) -> str:
    name = f"`{theorem.name}`"
    return name if proofs is None else f"[{name}]({proofs}#{anchor(theorem)})"


def anchor(theorem: Theorem) -> str:
    """Return the anchor of a theorem on the page of theorems."""
    return theorem.name.replace(".", "").lower()
