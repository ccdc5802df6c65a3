"""Studies in the record and in the README."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from study_report_cases import study_report

from analysis.studies.report import claims_table, outcomes_table, premise_table
from fedlora_sim.storage import MARKER
from paper_figs.documents import record_studies, render, study_blocks

KEPT = [MARKER, "curves.nc", "study.json", "study_curves.png", "study_outcomes.png"]
DAY = 86400


def write_study(folder: Path, **changes: Any) -> None:
    for name in ("figures/study_curves", "figures/study_outcomes"):
        for kind in ("png", "pdf"):
            path = folder / f"{name}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"drawn")
    for name in ("data/curves.nc", "runs/one.nc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"data")
    (folder / "study.json").write_text(json.dumps(study_report(**changes)))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_study(tmp_path / "results" / "small")
    return tmp_path / "results"


def test_report_figures_and_small_data_are_recorded(results: Path) -> None:
    record = results / "recorded"
    assert record_studies(results, record) == ["small"]
    assert sorted(path.name for path in (record / "small").iterdir()) == KEPT


def test_only_newer_or_requested_studies_are_recorded_again(results: Path) -> None:
    record = results / "recorded"
    record_studies(results, record)
    assert record_studies(results, record) == []
    assert record_studies(results, record, ["small"]) == ["small"]
    kept = record / "small" / "study.json"
    later = kept.stat().st_mtime + DAY
    (results / "small" / "data" / "curves.nc").unlink()
    os.utime(results / "small" / "study.json", (later, later))
    assert record_studies(results, record) == ["small"]
    assert not (record / "small" / "curves.nc").exists()


def test_a_part_of_a_study_is_not_recorded(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = {**study_report()["study"], "complete": False}
    write_study(results / "part", study=part)
    assert record_studies(results, results / "recorded", ["part"]) == ["small"]
    assert "only a whole study is recorded" in capsys.readouterr().err
    assert not (results / "recorded" / "part").exists()


def test_a_missing_study_cannot_be_recorded(results: Path) -> None:
    with pytest.raises(SystemExit, match="--study large: expected a report"):
        record_studies(results, results / "recorded", ["large"])
    assert not (results / "recorded").exists()


def test_blocks_hold_every_recorded_study(results: Path) -> None:
    record = results / "recorded"
    assert study_blocks(record) == {}
    write_study(results / "other", study={**study_report()["study"], "name": "other"})
    record_studies(results, record)
    blocks, report = study_blocks(record), study_report()
    assert list(blocks) == ["study_claims", "study_rows", "study_premise"]
    tables = (claims_table, outcomes_table, premise_table)
    for text, table in zip(blocks.values(), tables, strict=True):
        assert text.count(table(report)) == 2
        assert text.startswith(
            "**other**, 3 seeds a split, 6 rounds: `fedlora-sim study small.toml`"
        )
        assert "\n\n**small**, " in text
    empty = "".join(f"<!-- {name}: generated -->\n<!-- end -->\n" for name in blocks)
    rendered = render({"page.md": empty}, blocks)
    assert all(text in rendered["page.md"] for text in blocks.values())
    assert render(rendered, blocks) == rendered


def test_omitted_claims_are_in_the_table() -> None:
    table = claims_table(study_report())
    assert "✓ supported" in table
    assert "left out: no runs" in table
    assert "measured, 98.75% interval" in table
