"""The README tells the truth: its tables match the record, and its examples run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedlora_sim.aggregation import registry

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_tables_are_those_of_the_recorded_report():
    check = [sys.executable, "-m", "paper_figs.readme", "--check"]
    done = subprocess.run(check, capture_output=True, text=True, cwd=README.parent, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_examples_run(example, capsys, monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))  # one example adds a rule
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_there_are_examples():
    assert len(EXAMPLES) == 5
