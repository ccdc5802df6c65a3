"""Definitions of `Derived.v`, written from the sympy derivations.

    python -m analysis.proofs.derived

`closed_form` is tested against the same expressions. Theorems state their results by these
definitions, so that proofs, derivations and numbers cannot drift apart: a test writes the file
again and compares it.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import sympy as sp
from sympy.printing.str import StrPrinter

from analysis.derivations.symbols import t
from fedlora_sim.storage import write_text

FOLDER = Path(__file__).parent
"""Folder of the proofs."""

FILE = FOLDER / "Derived.v"

DEFINED = (
    "rates.staircase_energy",
    "rates.staircase_rate",
    "rates.collapse_bound",
    "cohorts.without_replacement",
    "multipliers.zero_pad",
    "multipliers.flora",
    "multipliers.raflora",
    "base_rules.flora_moments",
    "base_rules.fedex_total_after",
    "base_rules.fedex_total_limit",
    "base_rules.fedex_rest_point",
    "floors.mean_recursion",
    "floors.second_moment_recursion",
    "floors.rate",
    "floors.noise",
    "floors.floor",
    "floors.mean_floor",
    "floors.floor_with_drift",
    "floors.energy_after",
    "floors.energy_at_boundary",
    "floors.critical_gain_std",
    "floors.carry",
    "floors.raflora_rate",
    "floors.carry_excess",
    "trajectories.moments_after",
    "drift.full_floor",
    "drift.zero_pad_floor",
    "drift.raflora_saturation",
    "drift.raflora_growth",
    "noise.fedavg_round",
    "noise.raflora_round",
    "flow.amplitude_flow",
    "flow.local_map",
    "flow.local_gain",
    "flow.round_map",
    "flow.inverse_round_map",
    "flow.critical_amplitude",
    "flow.critical_law",
    "flow.floor",
    "flow.approach",
    "flow.critical_time",
)
"""Derivations that the proofs define, as `module.function` of `analysis.derivations`."""

HEAD = """\
(* Written by `python -m analysis.proofs.derived` from the sympy derivations; do not edit.

   Every definition is the expression that analysis/derivations derives under the same name, and
   that the tests compare with analysis/closed_form. *)

From Coq Require Import Reals QArith.
Open Scope R_scope.
"""

RATIONAL_HEAD = """
(* The same expressions over the rational numbers, where Coq can compute. *)
Module Rational.
Open Scope Q_scope.
Definition number := QArith_base.Q.
"""


class CoqPrinter(StrPrinter):
    """Prints an expression in Coq's syntax for the reals or the rationals.

    The number of rounds t is a natural number: an exponent as it is, a factor by `INR t`.
    """

    def _print_Pow(self, expr: sp.Expr, rational: bool = False) -> str:
        text: str = super()._print_Pow(expr, rational=rational)
        return text.replace("**", "^")

    def _print_Symbol(self, expr: sp.Symbol) -> str:
        return coq_name(expr)


def coq_name(symbol: sp.Symbol) -> str:
    """Return the name of a symbol in Coq: `x_{2,0}` becomes `x2_0` and `delta^2` `delta2`."""
    name = str(symbol).replace("^", "")
    if "{" in name:
        head, _, index = name.partition("_{")
        first, _, rest = index.rstrip("}").partition(",")
        name = f"{head}{first}_{rest}"
    return name


def coq(expression: sp.Expr) -> str:
    """Return an expression in Coq's syntax."""
    rounds = sp.Symbol("(INR t)", positive=True)
    plain = sp.Symbol("t", positive=True)
    exponents = {
        power: sp.Pow(power.base, power.exp.xreplace({t: plain}), evaluate=False)
        for power in expression.atoms(sp.Pow)
        if t in power.exp.free_symbols
    }
    text = CoqPrinter().doprint(expression.xreplace(exponents).xreplace({t: rounds}))
    return text.replace("**", "^").replace("log(", "ln(")


def definitions() -> dict[str, sp.Expr]:
    """Return the defined expressions by their names in Coq."""
    found: dict[str, sp.Expr] = {}
    for entry in DEFINED:
        module, function = entry.split(".")
        value = getattr(importlib.import_module(f"analysis.derivations.{module}"), function)()
        name = f"{module}_{function}"
        if dataclasses.is_dataclass(value):
            parts = {f"{name}_{f.name}": getattr(value, f.name) for f in dataclasses.fields(value)}
        else:
            parts = {name: value}
        found |= {name: sp.sympify(part) for name, part in parts.items()}
    return found


def arguments(expression: sp.Expr) -> list[sp.Symbol]:
    """Return the arguments of a definition: its symbols by name."""
    return sorted(expression.free_symbols, key=str)


def _definition(name: str, expression: sp.Expr, number: str) -> str:
    groups = groupby(arguments(expression), key=lambda symbol: symbol == t)
    given = [
        f" ({' '.join(map(coq_name, symbols))} : {'nat' if is_round else number})"
        for is_round, symbols in groups
    ]
    return f"Definition {name}{''.join(given)} : {number} :=\n  {coq(expression)}."


def _is_rational(expression: sp.Expr) -> bool:
    """Return True if an expression is a rational function."""
    return bool(expression.is_rational_function())


def text() -> str:
    """Return the file."""
    return "\n".join([*_lines()])


def _lines() -> Iterator[str]:
    found = definitions()
    yield HEAD
    for name, expression in found.items():
        yield _definition(name, expression, "R")
    yield RATIONAL_HEAD
    for name, expression in found.items():
        if _is_rational(expression) and t not in expression.free_symbols:
            yield _definition(name, expression, "number")
    yield "\nEnd Rational.\n"


if __name__ == "__main__":
    write_text(FILE, text())
