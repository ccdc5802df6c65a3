"""README and docs: tables match the record, examples run, and link targets exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedlora_cli.main import COMMANDS
from fedlora_sim.rules import registry
from paper_figs.documents import documents

ROOT = Path(__file__).parents[1]
DOCUMENTS = documents(ROOT)
EXAMPLES = [
    (path.name, text)
    for path in DOCUMENTS
    for text in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)
]


@pytest.mark.slow
def test_tables_are_those_of_the_recorded_report():
    check = [sys.executable, "-m", "paper_figs.documents", "--check"]
    done = subprocess.run(check, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("page", "example"), EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_examples_run(page, example, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # one of them runs a sweep
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))  # one example adds a rule
    exec(compile(example, page, "exec"), {})
    assert capsys.readouterr().out


def test_there_are_examples():
    assert len(EXAMPLES) >= 9
    assert "README.md" in {page for page, _ in EXAMPLES}


def anchor(heading):
    """Return the web anchor of a heading: lower case, no punctuation, dashes for spaces."""
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


def outside_fences(text):
    """Yield the lines that are not code; every fence must be closed."""
    lines, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            assert line == "```" or not fenced, f"a block opens within a block: {line}"
            fenced = not fenced
        elif not fenced:
            lines.append(line)
        else:
            assert not line.startswith("## "), f"a heading within a block: {line}"
    assert not fenced, "the last block is not closed"
    return lines


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_of_code_are_closed(path):
    assert any(line.startswith("#") for line in outside_fences(path.read_text()))


@pytest.mark.parametrize(
    "text", ["```toml\n\n## Next\n", "```toml\n```sh\n```\n", "```sh\nls\n"], ids=repr
)
def test_blocks_that_are_not_closed_are_seen(text):
    with pytest.raises(AssertionError, match="block"):
        outside_fences(text)


def test_a_page_lists_every_command():
    text = (ROOT / "docs" / "commands.md").read_text()
    block = text.split("```")[1]
    assert set(re.findall(r"^fedlora-sim ([\w-]+)", block, flags=re.MULTILINE)) == set(COMMANDS)
