"""One default for empty partitions: `carry`, in every function, command and prediction."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest

from analysis import closed_form
from analysis.predict import Case, predict
from fedlora_sim import Scenario, simulate
from fedlora_sim.tolerances import relative

NAME = "empty_partition"
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fedlora_sim", "analysis", "paper_figs", "fedlora_cli")
RANKS, COHORT, ROUNDS = "1x8,4x1", 1, 20


def defaults() -> dict[str, str]:
    """Return the default of every parameter and field `empty_partition`, by its place."""
    found = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if NAME in text else ():
            for name, default in _named(node):
                if name == NAME and default is not None:
                    place = f"{path.relative_to(ROOT).as_posix()}:{node.name}"
                    found[place] = ast.literal_eval(default)
    return found


def _named(node):
    """Parameters of a function, or fields of a class, with their defaults."""
    if isinstance(node, ast.FunctionDef):
        names = [*node.args.posonlyargs, *node.args.args]
        plain = node.args.defaults
        yield from zip((a.arg for a in names[len(names) - len(plain) :]), plain, strict=True)
        keywords = (a.arg for a in node.args.kwonlyargs)
        yield from zip(keywords, node.args.kw_defaults, strict=True)
    elif isinstance(node, ast.ClassDef):
        for item in node.body:
            if isinstance(item, ast.AnnAssign):
                yield ast.unparse(item.target), item.value


def test_every_default_is_carry():
    found = defaults()
    assert {place: value for place, value in found.items() if value != "carry"} == {}
    names = {place.rsplit(":", 1)[1] for place in found}
    for name in dir(closed_form):
        function = getattr(closed_form, name)
        if inspect.isfunction(function) and NAME in inspect.signature(function).parameters:
            assert name in names
    assert sum(place.startswith("analysis/closed_form/") for place in found) >= 13
    assert {"aggregate", "Scenario", "explore", "forecast"} <= names
    assert "fedlora_cli/aggregate.py:aggregate" in found


@pytest.mark.parametrize("rule", ["raflora", "rbla"])
def test_the_default_prediction_is_that_of_the_default_simulation(rule):
    scenario = Scenario(RANKS, cohort_size=COHORT, rounds=ROUNDS)
    run = simulate(scenario, rule=rule, seed=range(3)).energy.values.mean(0)
    told = closed_form.energy_trajectory(
        rule, RANKS, ROUNDS, initial_amplitude=scenario.initial_amplitudes, cohort_size=COHORT
    )
    np.testing.assert_allclose(told, run, rtol=relative("reduction"))
    zero = closed_form.energy_rate(rule, RANKS, cohort_size=COHORT, empty_partition="zero")
    assert zero[-1] < 0.2  # the policy decides: a client of rank 4 is in one of nine cohorts
    first = predict(Case(RANKS, ROUNDS, COHORT), (rule,)).rules
    carried = next(row for row in first if row.empty_partition == "carry")
    np.testing.assert_array_equal(
        carried.values["energy_rate"],
        closed_form.energy_rate(rule, RANKS, cohort_size=COHORT)[[0, 1]],
    )
