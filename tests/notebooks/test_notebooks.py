"""Stored notebooks: equal pairs, no outputs, and text before every picture.

nbmake runs them: `pytest --nbmake notebooks`.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import jupytext
import pytest
from jupytext.compare import compare_notebooks

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = [
    "01_rank_collapse_in_five_minutes",
    "02_theory_and_prediction",
    "03_bring_your_own_aggregator",
    "04_real_lora_updates",
    "05_design_a_rank_configuration",
]
DRAWS = re.compile(r"^(figure\b|Explorer\()", re.MULTILINE)
LONGEST = 45  # lines of a cell; helpers are in the packages
WORDS = 12  # minimum number of words before a picture

each = pytest.mark.parametrize("name", NAMES)


def notebook(name):
    return jupytext.read(FOLDER / f"{name}.ipynb")


def code_cells(name):
    return [cell for cell in notebook(name).cells if cell.cell_type == "code"]


def test_there_are_no_others():
    for kind in ("ipynb", "py"):
        found = {path.stem for path in FOLDER.glob(f"*.{kind}")} - {"conftest"}
        assert found == set(NAMES)


@each
def test_a_notebook_and_its_twin_in_python_are_the_same(name):
    own, twin = notebook(name), jupytext.read(FOLDER / f"{name}.py")
    twin.metadata = own.metadata  # the twin has none: it is text and code
    compare_notebooks(own, twin, fmt="py:percent")


@each
def test_nothing_that_was_computed_is_stored(name):
    stored = notebook(name)
    assert "widgets" not in stored.metadata
    for cell in code_cells(name):
        assert cell.outputs == []
        assert cell.execution_count is None


@each
def test_the_kernel_is_that_of_the_environment(name):
    assert notebook(name).metadata.kernelspec.name == "python3"


@each
def test_it_begins_with_words_and_ends_with_exercises(name):
    first, *_, last = notebook(name).cells
    assert first.cell_type == last.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "## Change one thing" in last.source


@each
def test_text_precedes_every_picture(name):
    cells = notebook(name).cells
    drawing = [i for i, c in enumerate(cells) if c.cell_type == "code" and DRAWS.search(c.source)]
    assert drawing
    for i in drawing:
        assert cells[i - 1].cell_type == "markdown", cells[i].source
        assert len(cells[i - 1].source.split()) >= WORDS


@each
def test_cells_are_short(name):
    assert max(cell.source.count("\n") for cell in code_cells(name)) < LONGEST


@each
def test_imports_are_in_the_first_cell(name):
    first, *others = code_cells(name)
    kinds = (ast.Import, ast.ImportFrom)
    assert any(isinstance(node, kinds) for node in ast.walk(ast.parse(first.source)))
    for cell in others:
        assert not any(isinstance(node, kinds) for node in ast.walk(ast.parse(cell.source)))


def test_predictions_come_before_measurements():
    """For each name in the ledger, in separate cells."""
    told = {}
    for i, cell in enumerate(code_cells("02_theory_and_prediction")):
        for verb, name in re.findall(r'ledger\.(predict|measure)\("([^"]+)"', cell.source):
            told.setdefault(name, {})[verb] = i
    assert len(told) == 4
    assert all(cells["predict"] < cells["measure"] for cells in told.values())
