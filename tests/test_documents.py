"""README and docs tell the truth: tables match the record, examples run, links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedlora_sim.aggregation import registry
from paper_figs.record import documents

ROOT = Path(__file__).parents[1]
DOCUMENTS = documents(ROOT)
EXAMPLES = [
    (path.name, text)
    for path in DOCUMENTS
    for text in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)
]


def test_tables_are_those_of_the_recorded_report():
    check = [sys.executable, "-m", "paper_figs.record", "--check"]
    done = subprocess.run(check, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("page", "example"), EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_examples_run(page, example, capsys, monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))  # one example adds a rule
    exec(compile(example, page, "exec"), {})
    assert capsys.readouterr().out


def test_there_are_examples():
    assert len(EXAMPLES) == 5


def anchor(heading):
    """What a heading is known by on the web: lower case, no punctuation, dashes for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_there_are_links():
    assert {path.name for path in DOCUMENTS} >= {"README.md", "claims.md", "real_models.md"}
    assert "](docs/claims.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", path.read_text())
    for file, fragment in links:
        target = path.parent / file if file else path
        assert target.exists(), file
        if fragment:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            assert fragment in map(anchor, headings), fragment
