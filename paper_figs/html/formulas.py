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
from analysis.claims.evidence import DERIVED
from analysis.claims.report import SYMBOLS
from analysis.derivations.appendix import equation, equations_of, statement_of
from analysis.formats import FORMULA
from analysis.proofs.theorems import THEOREMS, Theorem, theorems_of

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
    texts += [theorem.assumptions for theorem in THEOREMS.values()]
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


@dataclass(frozen=True)
class ShownProof:
    """A theorem on the page.

    Args:
        name: `File.theorem`.
        sentence: its statement in words.
        equation: its formula in MathML.
        assumptions: its assumptions.
        file: its file, relative to the root of the repository.
    """

    name: str
    sentence: Markup
    equation: Markup
    assumptions: Markup
    file: str


@functools.cache
def shown_proof(theorem: Theorem) -> ShownProof:
    """Return a theorem, typeset."""
    return ShownProof(
        theorem.name,
        _prose(theorem.sentence),
        mathml(theorem.formula, display=True),
        typeset(theorem.assumptions),
        f"analysis/proofs/{theorem.file}",
    )


def proofs_of(claim_id: str) -> list[ShownProof]:
    """Return the theorems that prove a claim."""
    return [shown_proof(theorem) for theorem in theorems_of(claim_id)]
