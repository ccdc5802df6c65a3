"""Mathematics as MathML: formulas in texts, and the derivations of a claim.

Formulas in texts are LaTeX between dollar signs. Derivations are expressions of sympy whose left
sides are written in LaTeX; both sides become LaTeX, as in the appendix. latex2mathml makes the
MathML, which browsers and screen readers support.
"""

from __future__ import annotations

import functools
import importlib
import re
from dataclasses import dataclass

import sympy as sp
from latex2mathml.converter import convert
from markupsafe import Markup, escape

from analysis.claims import CLAIMS
from analysis.claims.report import SYMBOLS
from analysis.derivations.appendix import equation, equations_of, statement_of
from analysis.formats import FORMULA

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


# Typesetting

LONGEST = 60
"""Number of operations above which a formula is broken into lines."""

_FOR_MATHML = {
    r"\mapsto =": r"\mapsto",
    r"\begin{aligned}": r"\begin{array}{l}",  # which latex2mathml would put on one line
    r"\end{aligned}": r"\end{array}",
    r"\lim_": r"\lim\limits_",
}


def mathml(latex: str, display: bool = False) -> Markup:
    """Return a LaTeX formula as MathML, as a block or inline."""
    return Markup(convert(latex, display="block" if display else "inline"))


@functools.cache
def typeset(text: str) -> Markup:
    """Return a text as HTML, with formulas as MathML and typographic apostrophes.

    Only formulas of the claims' texts become MathML, because LaTeX of a report from elsewhere could
    contain links and HTML.
    """
    parts = FORMULA.split(text)  # text and formula by turns
    return Markup("").join(
        _prose(part) if i % 2 == 0 else mathml(part) if part in _formulas() else f"${part}$"
        for i, part in enumerate(parts)
    )


@functools.cache
def _formulas() -> frozenset[str]:
    """Return all formulas in the texts of the claims."""
    texts = [SYMBOLS, *(text for claim in CLAIMS for text in claim.all_texts())]
    return frozenset(formula for text in texts for formula in FORMULA.findall(text))


def _prose(text: str) -> Markup:
    return escape(curly(text))


def curly(text: str) -> str:
    """Return the text with typographic apostrophes."""
    return re.sub(r"(?<=\w)'|'(?=s\b)", "’", text)


@dataclass(frozen=True)
class Derivation:
    """A derivation on the page.

    Args:
        name: `module.function` below `analysis.derivations`.
        sentence: the derived quantity.
        equations: all equations in MathML.
    """

    name: str
    sentence: Markup
    equations: tuple[Markup, ...]

    @property
    def module(self) -> str:
        """Its file, relative to the root of the repository."""
        return f"analysis/derivations/{self.name.partition('.')[0]}.py"


@functools.cache
def derivation(name: str) -> Derivation:
    """Return the derivation of this name, solved and typeset.

    Raises:
        AttributeError: if there is no such derivation.
    """
    module, function = name.split(".")
    derive = getattr(importlib.import_module(f"analysis.derivations.{module}"), function)
    rows = equations_of(derive)
    equations = tuple(mathml(_equation(left, value), display=True) for left, value in rows)
    return Derivation(name, _sentence(statement_of(derive)), equations)


def _equation(left: str, value: sp.Expr) -> str:
    """Return both sides of an equation, as in the appendix.

    A left side that is a map has no equals sign.
    """
    _, latex, *_ = equation(left, value, LONGEST).splitlines()
    for written, read in _FOR_MATHML.items():
        latex = latex.replace(written, read)
    return latex


def _sentence(doc: str) -> Markup:
    """Return a sentence with its code as code."""
    pieces = doc.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if i % 2 else _prose(piece)
        for i, piece in enumerate(pieces)
    )


def behind(claim_id: str) -> list[tuple[Derivation, tuple[Markup, ...]]]:
    """Return the derivations of a claim, each with the equations that the claim refers to."""
    found = []
    for entry in DERIVED.get(claim_id, ()):
        name, _, chosen = entry.partition(":")
        whole = derivation(name)
        rows = [int(i) for i in chosen.split(",")] if chosen else range(len(whole.equations))
        found.append((whole, tuple(whole.equations[i] for i in rows)))
    return found
