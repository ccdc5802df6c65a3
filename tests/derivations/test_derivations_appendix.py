"""The appendix: every derivation is in it, and its LaTeX is balanced."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pkgutil
import re
import subprocess
import sys
from functools import cache

import pytest
import sympy as sp

import analysis.derivations
from analysis.derivations import appendix, floors
from analysis.derivations.statement import MARK

pytestmark = pytest.mark.slow  # the appendix is written once, in seconds

HELPERS = {"statement", "symbols", "appendix"}


@cache
def text() -> str:
    return appendix.appendix()


def marked() -> list[tuple[str, object]]:
    return [
        (f"{module.__name__.rpartition('.')[2]}.{name}", function)
        for module in appendix.sections()
        for name, function in appendix.derivations_of(module).items()
    ]


def test_every_module_is_a_section():
    found = {info.name for info in pkgutil.iter_modules(analysis.derivations.__path__)}
    assert found - HELPERS == set(appendix.SECTIONS)


def test_every_public_derivation_is_named():
    for name, _ in marked():
        assert f"\\texttt{{{appendix.escape(name)}}}" in text()
    assert len(marked()) == text().count(")\n\\begin{equation*}")


# public helper functions that are not derivations
UNMARKED = {
    "floors.fedavg_cohort_moments",
    "trajectories.round_matrix",
    "trajectories.as_recursion",
    "multipliers.clients",
    "sensitivities.elasticity",
    "communication.stack_rank",
}


def test_no_public_function_is_left_out():
    for module in appendix.sections():
        short = module.__name__.rpartition(".")[2]
        defined = {
            node.name
            for node in ast.parse(inspect.getsource(module)).body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        }
        left_out = {f"{short}.{name}" for name in defined - set(appendix.derivations_of(module))}
        assert left_out <= UNMARKED


@pytest.mark.parametrize(("name", "function"), marked(), ids=[name for name, _ in marked()])
def test_a_derivation_has_a_description(name, function):
    documentation = inspect.getdoc(function)
    assert documentation, name
    for section in ("Returns:", "Reference:"):
        assert section in documentation
    result = function()
    parts = [result]
    if dataclasses.is_dataclass(result):
        parts = [getattr(result, field.name) for field in dataclasses.fields(result)]
    assert len(parts) == len(getattr(function, MARK))
    assert all(isinstance(part, sp.Basic) for part in parts)
    assert not any(part.has(sp.nan, sp.Limit) for part in parts)


def test_braces_and_environments_balance():
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text().replace("\\\\", "")):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    open_environments = []
    for action, name in re.findall(r"\\(begin|end)\{([^}]*)\}", text()):
        if action == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert not open_environments
    assert text().count("\\left") == text().count("\\right")


def test_text_outside_equations_has_no_bare_specials():
    outside = re.sub(r"\\begin\{equation\*\}.*?\\end\{equation\*\}", "", text(), flags=re.DOTALL)
    lines = [line for line in outside.splitlines() if not line.startswith(("%", "$"))]
    plain = "\n".join(lines)
    assert not re.search(r"(?<!\\)[_&#$%^~]", plain.replace("\\textasciicircum{}", ""))
    assert all(ord(character) < 128 for character in text()), "plain TeX input"


def test_equations_hold_no_names_that_tex_reads_as_words():
    equations = re.findall(r"\\begin\{equation\*\}(.*?)\\end\{equation\*\}", text(), re.DOTALL)
    assert len(equations) > len(marked()) / 2
    for body in equations:
        assert "**" not in body
        assert "Symbol" not in body


def test_long_numerators_keep_their_value():
    value = sp.expand((sp.Symbol("a") + sp.Symbol("b") + 1) ** 9)
    broken = appendix.equation("y", value)
    assert broken.count("\\\\") > 1
    assert len(re.findall(r"[ab]\^", broken)) >= len(sp.Add.make_args(value)) - 3


def test_prose_is_escaped():
    assert appendix.prose("at `q' = 1`, 5% of x_t") == r"at \texttt{q' = 1}, 5\% of x\_t"
    assert appendix.prose("the *mean* factor") == r"the \emph{mean} factor"


def test_module_prints_or_writes(tmp_path, capsys):
    appendix.main([])
    assert capsys.readouterr().out == text()
    appendix.main(["--out", str(tmp_path / "appendix.tex")])
    assert (tmp_path / "appendix.tex").read_text() == text()
    with pytest.raises(SystemExit):
        appendix.main(["--out", str(tmp_path / "appendix.tex")])


def test_results_are_remembered():
    assert floors.energy_after() is floors.energy_after()


def test_numbers_do_not_import_sympy():
    code = (
        "import sys, analysis.closed_form, analysis.cohorts.shares; print('sympy' in sys.modules)"
    )
    # torch imports sympy itself
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
