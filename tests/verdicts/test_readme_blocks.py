"""The README's generated blocks: made anew from a record, or refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.report import digits_table, verdict_table
from paper_figs import readme

TEMPLATE = """# Title

<!-- verdicts: generated -->
old table
<!-- end -->

between

<!-- digits: generated -->
<!-- end -->

<!-- rules: generated -->
<!-- end -->

after
"""


def blocks(report: dict[str, Any]) -> dict[str, str]:
    return {"verdicts": verdict_table(report), "digits": digits_table(report)}


def test_blocks_are_replaced_and_the_rest_is_kept(report: dict[str, Any]) -> None:
    text = readme.render(TEMPLATE, blocks(report))
    assert "old table" not in text
    assert text == TEMPLATE.replace("old table", verdict_table(report)).replace(
        "<!-- digits: generated -->\n", f"<!-- digits: generated -->\n{digits_table(report)}\n"
    )
    assert readme.render(text, blocks(report)) == text


def test_a_backslash_in_a_statement_is_taken_as_it_is(report: dict[str, Any]) -> None:
    report["claims"][0]["statement"] = r"\rho at \1."
    assert r"\rho at \1." in readme.render(TEMPLATE, blocks(report))


@pytest.mark.parametrize("name", ["verdicts", "digits"])
def test_a_missing_block_is_refused(report: dict[str, Any], name: str) -> None:
    with pytest.raises(SystemExit, match=f"{name}: generated"):
        readme.render(TEMPLATE.replace(f"{name}:", "other:"), blocks(report))


def test_a_block_without_its_end_is_refused(report: dict[str, Any]) -> None:
    unfinished = TEMPLATE.replace("old table\n<!-- end -->", "old table")
    with pytest.raises(SystemExit):
        readme.render(unfinished, blocks(report))


@pytest.fixture
def house(tmp_path: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a README and a verification's results."""
    (tmp_path / "README.md").write_text(TEMPLATE)
    figures = tmp_path / "results" / "verify" / "figures"
    figures.mkdir(parents=True)
    (figures.parent / "report.json").write_text(json.dumps(report))
    for name in readme.FIGURES:
        (figures / f"{name}.png").write_bytes(b"png")
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "RECORD", tmp_path / "results" / "recorded")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["readme", *arguments])
    readme.main()


def test_a_recorded_readme_passes_its_check(
    house: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch)
    text = (house / "README.md").read_text()
    assert verdict_table(report) in text
    assert readme.rules_table() in text
    assert sorted(p.name for p in (house / "results" / "recorded").iterdir()) == [
        "digits.png",
        "energies.png",
        "report.json",
    ]
    run(monkeypatch, "--check")
    assert (house / "README.md").read_text() == text


def test_a_stale_readme_fails_its_check_and_is_not_touched(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch)
    stale = (house / "README.md").read_text().replace("supported", "refuted", 1)
    (house / "README.md").write_text(stale)
    with pytest.raises(SystemExit, match="make readme"):
        run(monkeypatch, "--check")
    assert (house / "README.md").read_text() == stale


@pytest.mark.parametrize("missing", ["digits", "full effort"])
def test_a_partial_verification_is_not_recorded(
    house: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "digits":
        del report["digits"]
    else:
        report["environment"]["quick"] = True
    (house / "results" / "verify" / "report.json").write_text(json.dumps(report))
    with pytest.raises(SystemExit, match="full report"):
        run(monkeypatch)
    assert not (house / "results" / "recorded" / "report.json").exists()
    assert (house / "README.md").read_text() == TEMPLATE
