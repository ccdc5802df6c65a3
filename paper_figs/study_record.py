"""Studies in the record: what is copied there, and the tables of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.studies.report import claims_table, outcomes_table, premise_table, scores_table
from fedlora_sim.storage import ResultFolder, write_bytes

FILES = ("figures/*.png", "data/*.nc", "study.json")  # the report last: it says that all is there
COMMAND = "paper_figs.record"
TABLES = {
    "study_claims": claims_table,
    "study_rows": outcomes_table,
    "study_premise": premise_table,
    "study_scores": scores_table,
}


def record_studies(results: Path, record: Path, asked: Sequence[str] = ()) -> list[str]:
    """Copy every study that is newer than its record, and those that are asked for.

    Args:
        results: folder of the studies' folders.
        record: folder of the record.
        asked: names of studies to copy in any case.

    Returns:
        The names of those copied; a part of a study never is.
    """
    copied = []
    for name in asked:
        if not (results / name / "study.json").exists():
            sys.exit(f"--study {name}: expected a report, {results / name / 'study.json'}")
    for report in sorted(results.glob("*/study.json")):
        source, target = report.parent, record / report.parent.name
        kept = target / "study.json"
        newer = not kept.exists() or report.stat().st_mtime > kept.stat().st_mtime
        if not newer and source.name not in asked:
            continue
        if not _read(report)["study"]["complete"]:
            print(f"{source}: only a whole study is recorded", file=sys.stderr)
            continue
        paths = [path for pattern in FILES for path in sorted(source.glob(pattern))]
        recorded = ResultFolder(target, COMMAND, argument="--study")
        with recorded.only_writer(), recorded.replace() as new:
            for path in paths:
                write_bytes(new / path.name, path.read_bytes())
        copied.append(source.name)
    return copied


def study_blocks(record: Path) -> dict[str, str]:
    """The generated blocks by name, each of all studies in the record; none if there is none."""
    reports = [_read(path) for path in sorted(record.glob("*/study.json"))]
    if not reports:
        return {}
    return {
        block: "\n\n".join(f"{_head(report)}\n\n{table(report)}" for report in reports)
        for block, table in TABLES.items()
    }


def _head(report: dict[str, Any]) -> str:
    study = report["study"]
    seeds = max(len(own) for own in study["seeds"].values())
    effort = f"{seeds} seeds a split, {study['rounds']} rounds"
    return f"**{study['name']}**, {effort}: `{report['command']}`"


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
