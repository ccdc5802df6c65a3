"""A rule added to a copy of the project by the recipe of CONTRIBUTING is complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedlora_sim.import_path import PACKAGES

ROOT = Path(__file__).parents[2]
PATIENCE = 300
RULE = '''"""The mean: every client's product by its samples, as `fedavg`. Source: a test."""

from dataclasses import dataclass
from typing import ClassVar

from fedlora_sim.rules.fedavg import FedAvg
from fedlora_sim.rules.registry import register


@register
@dataclass(frozen=True)
class PlainMean(FedAvg):
    """Data-weighted average of the products, for a test."""

    name: ClassVar[str] = "plain_mean"
    title: ClassVar[str] = "plain mean"
    source: ClassVar[str] = "tests/rules/test_new_rule.py"
'''
SEEN = """
import sys

from fedlora_cli.main import main
from paper_figs.style import GREEN, look

for words in (
    ["rules"],
    ["predict", "--ranks", "1x2,2x1", "--rounds", "3"],
    ["check", "plain_mean", "--examples", "2"],
):
    sys.argv = ["fedlora-sim", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
    print("END", flush=True)
assert (look("plain_mean").name, look("plain_mean").color) == ("plain mean", GREEN)
"""
EDITS = {
    "fedlora_sim/rules/__init__.py": (
        "# The built-in rules register themselves",
        "from fedlora_sim.rules import plain_mean\n",
    ),
    "fedlora_sim/reference/aggregation.py": (
        '        case "flora":',
        '        case "plain_mean":\n'
        "            return (*split_reference(_exact(clients), r_max), nothing)\n",
    ),
    "analysis/closed_form/setting.py": (
        '        RuleForm("zero_pad"',
        '        RuleForm("plain_mean"),\n',
    ),
    "paper_figs/style.py": (
        '    "raflora": (',
        '    "plain_mean": (GREEN, "--", "h"),\n',
    ),
}
"""Line of each file in CONTRIBUTING before which text is inserted."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of the project that has the rule."""
    skipped = shutil.ignore_patterns(".*")  # bytecode is copied: compiling takes seconds
    for folder in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "fedlora_sim/rules/plain_mean.py").write_text(RULE, encoding="utf-8")
    for name, (before, added) in EDITS.items():
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text.count(before) == 1, name
        (tmp_path / name).write_text(text.replace(before, added + before), encoding="utf-8")
    return tmp_path


def call(project: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_recipe_names_five_places() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    recipe = text.split("## A rule in five places\n")[1].split("\n## ")[0]
    named = re.findall(r"^\d\. `([\w/.]+)`:", recipe, flags=re.MULTILINE)
    assert named == ["fedlora_sim/rules/NAME.py", *EDITS]


@pytest.mark.slow
def test_a_rule_that_the_recipe_adds_is_known_everywhere(project: Path) -> None:
    (project / "seen.py").write_text(SEEN, encoding="utf-8")
    rules, predicted = call(project, "seen").split("END\n")[:2]
    assert "plain_mean" in rules
    assert "plain_mean" in predicted
    tests = ("rules/test_aggregation_reference.py", "engines/test_spectral_rules.py")
    found = call(
        project,
        *("pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-k", "plain_mean"),
        *(f"tests/{name}" for name in tests),
    )
    assert int(re.search(r"(\d+) passed", found)[1]) > len(tests)  # type: ignore[index]
