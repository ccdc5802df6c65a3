"""All derivations as a LaTeX fragment for a paper's appendix.

    python -m analysis.derivations.appendix [--out FILE]

One section per module. Each derivation has its first docstring sentence and its result as
equations. Everything is generated: a derivation that is added to a module appears in the appendix.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import sympy as sp

from analysis.derivations import symbols
from analysis.derivations.statement import MARK
from fedlora_sim.storage import write_text

SECTIONS = (
    "rates",
    "cohorts",
    "unequal",
    "contributors",
    "allocation",
    "multipliers",
    "base_rules",
    "typical",
    "floors",
    "trajectories",
    "persistent",
    "persistent_cohorts",
    "flow",
    "flow_cohorts",
    "drift",
    "noise",
    "communication",
    "sensitivities",
    "alignment",
)
"""Modules of `analysis.derivations` in the order of the appendix."""

_LONG = 120  # operations above which an equation is set in fractions and products only
_SPECIAL = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
_SPECIAL |= {"^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "\\": r"\textbackslash{}"}
_SPECIAL |= {"<": r"\textless{}", ">": r"\textgreater{}"}


def sections() -> list[ModuleType]:
    """Return the modules that hold derivations, in the order of the appendix."""
    return [importlib.import_module(f"{__package__}.{name}") for name in SECTIONS]


def derivations_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return the derivations that a module defines, by name, in the order of the file."""
    return {
        name: value
        for name, value in vars(module).items()
        if hasattr(value, MARK) and value.__module__ == module.__name__
    }


def appendix() -> str:
    """Return the whole appendix: sections, sentences and equations.

    Returns:
        A LaTeX fragment that needs amsmath, without preamble.

    Reference:
        Our derivation.
    """
    parts = [
        "% Written by python -m analysis.derivations.appendix; needs amsmath.",
        *notation(symbols),
    ]
    for module in sections():
        parts += [f"\\section{{{module.TITLE}}}", *notation(module)]
        for name, function in derivations_of(module).items():
            label = f"{module.__name__.rpartition('.')[2]}.{name}"
            parts.append(_statement(label, function))
    return "\n\n".join(parts) + "\n"


def notation(module: ModuleType) -> list[str]:
    """Return the meaning of a module's symbols, one paragraph each.

    Reads the docstrings that follow assignments of symbols.
    """
    body = ast.parse(inspect.getsource(module)).body
    paragraphs = []
    for assignment, text in pairwise(body):
        if not (isinstance(assignment, ast.Assign) and isinstance(text, ast.Expr)):
            continue
        names = [n.id for n in ast.walk(assignment.targets[0]) if isinstance(n, ast.Name)]
        values = [getattr(module, name) for name in names]
        if all(isinstance(value, sp.Symbol) for value in values):
            listed = ", ".join(f"${sp.latex(value)}$" for value in values)
            paragraphs.append(f"{listed}: {prose(ast.literal_eval(text.value))}")
    return paragraphs


def _statement(label: str, function: Callable[..., Any]) -> str:
    """Return one derivation: its sentence, its name and its equations."""
    sentence = prose(statement_of(function))
    rows = [equation(left, value) for left, value in equations_of(function)]
    return f"{sentence} (\\texttt{{{escape(label)}}})\n" + "\n".join(rows)


def equations_of(function: Callable[..., Any]) -> list[tuple[str, sp.Expr]]:
    """Return the equations of a derivation: left sides in LaTeX, each with the derived value."""
    result = function()
    values = [result]
    if dataclasses.is_dataclass(result):
        values = [getattr(result, field.name) for field in dataclasses.fields(result)]
    return list(zip(getattr(function, MARK), values, strict=True))


def statement_of(function: Callable[..., Any]) -> str:
    """Return the first paragraph of a derivation's docstring as a noun phrase, in one line."""
    text = " ".join((function.__doc__ or "").partition("\n\n")[0].split())
    phrase = text.removeprefix("Return ")
    return phrase if phrase.startswith("`") else phrase[:1].upper() + phrase[1:]


def equation(left: str, value: sp.Expr, longest: int = _LONG) -> str:
    """Return one displayed equation; longer sums are broken after every few terms."""
    right = sp.latex(value)
    if sp.count_ops(value) > longest:
        right = _broken(value)
    return f"\\begin{{equation*}}\n{left} = {right}\n\\end{{equation*}}"


def _broken(value: sp.Expr, terms_per_line: int = 6) -> str:
    """Return a long fraction with its numerator in lines of a few terms each."""
    if not isinstance(value, sp.Expr):
        return sp.latex(value)
    numerator, denominator = sp.fraction(value)
    terms = sp.Add.make_args(sp.expand(numerator))
    lines = [
        sp.latex(sp.Add(*terms[start : start + terms_per_line]))
        for start in range(0, len(terms), terms_per_line)
    ]
    joined = lines[0] + "".join(
        rf" \\ {'' if line.startswith('-') else '+ '}{line}" for line in lines[1:]
    )
    whole = rf"\left(\begin{{aligned}}{joined}\end{{aligned}}\right)"
    return whole if denominator == 1 else rf"\frac{{1}}{{{sp.latex(denominator)}}} {whole}"


def prose(text: str) -> str:
    """Return a docstring sentence as LaTeX: code in typewriter, special characters escaped."""
    pieces = re.split(r"(`[^`]*`|\*[^*]+\*)", " ".join(text.split()))
    return "".join(_piece(piece) for piece in pieces)


def _piece(piece: str) -> str:
    if len(piece) > 2 and piece[0] == piece[-1] and piece[0] in "`*":
        command = "texttt" if piece[0] == "`" else "emph"
        return f"\\{command}{{{escape(piece[1:-1])}}}"
    return escape(piece)


def escape(text: str) -> str:
    """Return the plain text with LaTeX' special characters escaped."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def main(arguments: list[str] | None = None) -> None:
    """Print the appendix, or write it to a file."""
    parser = argparse.ArgumentParser(description="All derivations as LaTeX.")
    parser.add_argument("--out", type=Path, help="file to write; standard output when not given")
    out = parser.parse_args(arguments).out
    if out is not None and out.exists():
        parser.error(f"--out={out}: expected a new file")
    text = appendix()
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)


if __name__ == "__main__":
    main()
