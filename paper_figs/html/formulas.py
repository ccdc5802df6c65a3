"""Mathematics as MathML: formulas in plain sentences, and the derivations of a claim.

Derivations are expressions of sympy whose left sides are written in LaTeX. Both sides become LaTeX,
as in the appendix, and latex2mathml makes the MathML that browsers and screen readers support.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from dataclasses import dataclass

import sympy as sp
from latex2mathml.converter import convert
from markupsafe import Markup, escape

from analysis.derivations.appendix import equation, statement_of
from analysis.derivations.statement import MARK

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

FORMULAS = {
    "1 - rho_{l_1}(t) <= C gamma^t": r"1 - \rho_{l_1}(t) \le C \gamma^t",
    "1 - rho": r"1 - \rho",
    "q_h = E[W_h^2]": r"q_h = \mathrm{E}[W_h^2]",
    "E[W_h^4]": r"\mathrm{E}[W_h^4]",
    "E[W^2]": r"\mathrm{E}[W^2]",
    "1 - P0_h": r"1 - P_{0,h}",
    "(1 - P0)^t": r"(1 - P_0)^t",
    "exp(2 E[log W | W > 0])": r"\exp(2\,\mathrm{E}[\log W \mid W > 0])",
    "exp(4 E[log W | W > 0])": r"\exp(4\,\mathrm{E}[\log W \mid W > 0])",
    "2 sqrt(t Var[log W | W > 0])": r"2 \sqrt{t\,\mathrm{Var}[\log W \mid W > 0]}",
    "delta^2 / (1 - q')": r"\delta^2 / (1 - q')",
    "(1 - q')": r"(1 - q')",
    "1 - W (1 - g)": r"1 - W (1 - g)",
    "(g W)^2": r"(g W)^2",
    "(g, 0)": r"(g, 0)",
    "W c": r"W c",
    "pi c": r"\pi c",
    "W / (1 + W)": r"W / (1 + W)",
    "W^2": r"W^2",
    "E[(H/m)^4]": r"\mathrm{E}[(H/m)^4]",
    "q' = g^2 q + nu^2 pi / m": r"q' = g^2 q + \nu^2 \pi / m",
    "q' = 1": r"q' = 1",
    "nu = 0": r"\nu = 0",
    "pi/m": r"\pi / m",
    "E[1/H; H > 0] m / pi": r"\mathrm{E}[1/H;\, H > 0]\, m / \pi",
    "E[1/H; H > 0]": r"\mathrm{E}[1/H;\, H > 0]",
    "(g^2 x^2 H)^-1 (nu^2 x^2 + tau^2)": r"(g^2 x^2 H)^{-1} (\nu^2 x^2 + \tau^2)",
    "M (omega G - 1) / (G - 1)": r"M (\omega G - 1) / (G - 1)",
    "1/(omega G)": r"1 / (\omega G)",
    "omega G = 1": r"\omega G = 1",
    "omega G": r"\omega G",
    "(G - 1)/M": r"(G - 1) / M",
    "1/t": r"1/t",
    "1/x": r"1/x",
    "T* = ln(1/omega) / (2 M)": r"T^* = \ln(1/\omega) / (2 M)",
    "sum_(k in C) p_k exp(2 M_k T) = 1": r"\sum_{k \in C} p_k \exp(2 M_k T) = 1",
    "exp(2 M T)": r"\exp(2 M T)",
    "G = exp(2 M T)": r"G = \exp(2 M T)",
    "2 M T": r"2 M T",
    "T = 0.001": r"T = 0.001",
    "q'_h = E[W^2] + nu^2 E[sum w^2]": (
        r"q'_h = \mathrm{E}[W^2] + \nu^2\,\mathrm{E}[\textstyle\sum w^2]"
    ),
    "|measured / predicted - 1|": r"|\text{measured} / \text{predicted} - 1|",
    "delta^2": r"\delta^2",
}
"""Formulas of the claims in plain text, with their LaTeX."""

LONGEST = 60
"""Number of operations above which a formula is broken into lines."""

_FOR_MATHML = {
    r"\mapsto =": r"\mapsto",
    r"\begin{aligned}": r"\begin{array}{l}",  # which latex2mathml would put on one line
    r"\end{aligned}": r"\end{array}",
    r"\lim_": r"\lim\limits_",
}
_GREEK = "alpha|beta|gamma|delta|kappa|nu|omega|pi|rho|tau"
_SYMBOL = rf"(?<![\w'’.-])(?:{_GREEK}|P0|[b-zB-Z])(?:_\w+)?[*']?(?![\w’-])"
_ROOT = r"\bT-th\b"
_WHOLE = "|".join(re.escape(text) for text in sorted(FORMULAS, key=len, reverse=True))
_PATTERN = re.compile(
    rf"(?P<formula>{_WHOLE})|(?P<root>{_ROOT})|(?P<symbol>{_SYMBOL})|(?P<article>\bA\b)"
)
_FACTOR_A = ("With A frozen", "where A is")


def mathml(latex: str, display: bool = False) -> Markup:
    """Return a LaTeX formula as MathML, as a block or inline."""
    return Markup(convert(latex, display="block" if display else "inline"))


@functools.cache
def typeset(text: str) -> Markup:
    """Return a sentence with formulas and symbols as MathML, and typographic apostrophes."""
    parts, end = [], 0
    for match in _PATTERN.finditer(text):
        latex = _latex(text, match)
        if latex is None:
            continue
        parts += [_prose(text[end : match.start()]), mathml(latex)]
        end = match.end()
    return Markup("").join([*parts, _prose(text[end:])])


def _latex(text: str, match: re.Match[str]) -> str | None:
    """Return the LaTeX of a match, or None if it is an ordinary word."""
    if match["formula"]:
        return FORMULAS[match[0]]
    if match["root"]:
        return r"T\text{-th}"
    if match["article"]:  # the factor, never the article
        start = match.start()
        return "A" if any(text.startswith(f, start - f.index("A")) for f in _FACTOR_A) else None
    name, _, index = match[0].rstrip("*'").partition("_")
    name = "P_0" if name == "P0" else rf"\{name}" if len(name) > 1 else name
    tail = {"*": "^*", "'": "'"}.get(match[0][-1], "")
    return f"{name}{f'_{{{index}}}' if index else ''}{tail}"


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
    result = derive()
    values = [result]
    if dataclasses.is_dataclass(result):
        values = [getattr(result, field.name) for field in dataclasses.fields(result)]
    rows = zip(getattr(derive, MARK), values, strict=True)
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
