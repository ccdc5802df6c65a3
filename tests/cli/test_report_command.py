"""`fedlora-sim report`, and `verify --html`: one page from the files of a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from verify_cases import claim

from analysis.paper import energies
from fedlora_sim.storage import MARKER

RECORDED = Path(__file__).parents[2] / "results" / "recorded"


@pytest.fixture
def kept(here: Path) -> Path:
    """Return a folder with the recorded report and nothing else."""
    folder = here / "kept"
    folder.mkdir()
    shutil.copy(RECORDED / "report.json", folder)
    return folder


@pytest.mark.slow
def test_a_page_is_written_next_to_its_report(fedlora: Callable, kept: Path) -> None:
    done = fedlora("report", "kept")
    assert (done.code, done.out) == (0, "report in kept/report.html\n")
    assert sorted(path.name for path in kept.iterdir()) == [MARKER, "report.html", "report.json"]
    text = (kept / "report.html").read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert text.count('<tbody class="claim"') == len(
        json.loads((kept / "report.json").read_text())["claims"]
    )


@pytest.mark.slow
def test_it_is_reproducible(fedlora: Callable, kept: Path) -> None:
    assert fedlora("report", "kept", "--out", "new/a.html").code == 0
    assert fedlora("report", "kept", "--out", "b.html").code == 0
    assert Path("new/a.html").read_bytes() == Path("b.html").read_bytes()


def test_a_study_has_a_page_too(fedlora: Callable, here: Path) -> None:
    (here / "agnews").mkdir()
    shutil.copy(RECORDED / "agnews" / "study.json", "agnews")
    assert fedlora("report", "agnews").code == 0
    assert "Study: agnews" in Path("agnews/study.html").read_text()


def without(read: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in read.items() if name != part}


@pytest.mark.parametrize(
    ("written", "expectation"),
    [
        (None, "a folder with report.json or study.json"),
        ("{", "a file in JSON"),
        ("[]", "a report of this version, with 'claims'"),
        ('{"claims": [], "environment": {}}', "a report with at least one claim"),
        ('{"claims": [{"id": "a"}], "environment": {}}', "this version, with 'statement'"),
    ],
)
def test_files_that_are_not_reports_are_refused(
    fedlora: Callable, here: Path, written: str | None, expectation: str
) -> None:
    (here / "kept").mkdir()
    if written is not None:
        (here / "kept" / "report.json").write_text(written)
    done = fedlora("report", "kept")
    assert done.code == 2
    assert done.err.startswith("fedlora-sim: DIR='kept")
    assert expectation in done.err
    assert not list(here.rglob("*.html"))


@pytest.mark.parametrize("part", ["p_holm", "theme", "verdict"])
def test_a_report_of_an_older_version_is_refused(fedlora: Callable, kept: Path, part: str) -> None:
    report = json.loads((kept / "report.json").read_text())
    report["claims"][3] = without(report["claims"][3], part)
    (kept / "report.json").write_text(json.dumps(report))
    done = fedlora("report", "kept")
    assert done.code == 2
    assert f"a report of this version, with '{part}'" in done.err


@pytest.mark.parametrize(
    ("out", "expectation"),
    [
        ("x.txt", "ends in .html"),
        ("folder.html", "a file (this is a folder)"),
        ("file/x.html", "a place to write to"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_refused(
    fedlora: Callable, kept: Path, here: Path, out: str, expectation: str
) -> None:
    (here / "folder.html").mkdir()
    (here / "file").write_text("")
    done = fedlora("report", "kept", "--out", out)
    assert done.code == 2
    assert done.err.startswith("fedlora-sim: --out=")
    assert expectation in done.err


@pytest.mark.slow
def test_verify_writes_the_page_with_html(
    fedlora: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.claims.select", lambda names, quick: (claim("one"),))
    monkeypatch.setattr("paper_figs.draw_all", lambda report, data, out: [])
    small = energies.ENERGIES.replace(ranks="1,2,3", rounds=2, d_in=6, d_out=5)
    monkeypatch.setattr(energies, "ENERGIES", small)
    assert fedlora("verify", "--out", "v", "--html").code == 0
    page = Path("v/report.html").read_text()
    assert "The value is one." in page
    assert 'id="trajectories"' in page, "the energies next to the report are shown"
    assert fedlora("report", "v", "--out", "again.html").code == 0
    assert Path("again.html").read_text() == page
    assert fedlora("verify", "--out", "v").code == 0
    assert not Path("v/report.html").exists(), "no page of an earlier run stays next to this one"
