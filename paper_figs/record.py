"""Record results, and write the tables of the README and of docs/ from the record.

`python -m paper_figs.record` takes `results/verify`, `results/bench` and the studies beside them
that are newer than their record; with `--check` nothing is written, and a document that does
not match the record is an error.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.claims.report import claim_tables, conjecture_table, digits_table, theme_table
from fedlora_sim.rules.registry import describe_all
from fedlora_sim.storage import write_bytes, write_text
from paper_figs.calibration import (
    coverage_table,
    family_line,
    margin_table,
    ranks_table,
    reach_table,
)
from paper_figs.conformance import broken_table, conformance_line, suite_table
from paper_figs.faults import faults_table
from paper_figs.mutation import mutation_table
from paper_figs.rivals_speed import rivals_block
from paper_figs.speed import (
    aggregation_table,
    bars_table,
    gpu_block,
    hardware_line,
    layers_table,
    spectral_table,
    sweep_table,
    training_bars_block,
    training_table,
)
from paper_figs.study_record import record_studies, study_blocks

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "recorded"
FIGURES = ("energies", "participation", "phase", "settling", "breakdown", "digits")
BENCHES: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "spectral": {"speed": spectral_table},
    "aggregation": {
        "aggregation": aggregation_table,
        "layers": layers_table,
        "bars": bars_table,
        "hardware": hardware_line,
    },
    "training": {"training": training_table},
    "rivals": {"rivals": rivals_block},
    "sweep": {"sweep": sweep_table},
    "calibration": {
        "calibration_coverage": coverage_table,
        "calibration_margin": margin_table,
        "calibration_family": family_line,
        "calibration_reach": reach_table,
        "calibration_ranks": ranks_table,
    },
    "faults": {"faults": faults_table},
    "conformance": {
        "conformance": conformance_line,
        "conformance_rules": suite_table,
        "conformance_broken": broken_table,
    },
    "mutation": {"mutation": mutation_table},
}
TRIED = range(10)
"""Base seeds on which scenarios and margins are chosen: a record of them would be no test."""
ON_GPU = ("aggregation-cuda", "training-cuda")
BLOCK = re.compile(
    r"<!-- (\w+): generated -->\n(?:(?!: generated -->).)*?<!-- end -->", flags=re.DOTALL
)


def run_line(report: dict[str, Any]) -> str:
    """The command that the recorded report comes from, and what it took if made in one go."""
    made, seconds = report["environment"], report["seconds"]
    took = "" if seconds is None else f" ({seconds / 60:.1f} minutes on {made['cores']} cores)"
    return f"Recorded from: `fedlora-sim verify --seed {made['seed']}`{took}."


def rules_table() -> str:
    """The registered rules, from their own docstrings."""
    lines = ["| rule | averages | multiplier | what it does | source |", "|---|---|---|---|---|"]
    for rule in describe_all():
        name = f"`{rule.name}`" + (f", `{rule.also}`" if rule.also else "")
        options = f" Options: `{rule.options}`." if rule.options else ""
        cells = (name, rule.averages, rule.multiplier, rule.summary + options, rule.source)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(record: Path) -> dict[str, str]:
    """The generated blocks by name, from the recorded results that are there."""
    report = json.loads((record / "report.json").read_text(encoding="utf-8"))
    blocks = {
        "themes": theme_table(report),
        "conjectures": conjecture_table(report),
        "verdicts": claim_tables(report),
        "digits": digits_table(report),
        "run": run_line(report),
        "rules": rules_table(),
        "gpu": gpu_block(record),
        "training_bars": training_bars_block(record),
    }
    for name, tables_of in BENCHES.items():
        bench = json.loads((record / f"{name}.json").read_text(encoding="utf-8"))
        blocks |= {block: table(bench) for block, table in tables_of.items()}
    return blocks | study_blocks(record)


def documents(root: Path) -> list[Path]:
    """The texts with generated blocks."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def render(texts: Mapping[str, str], blocks: Mapping[str, str]) -> dict[str, str]:
    """Texts by name with every generated block made anew, wherever it stands.

    Raises:
        SystemExit: for a block without its end, one that nothing generates, and one in no text.
    """
    shown: set[str] = set()
    made = {}
    for name, text in texts.items():
        found = BLOCK.findall(text)
        if len(found) != text.count(": generated -->"):
            raise SystemExit(f"{name}: expected an <!-- end --> after every generated block")
        for block in found:
            if block not in blocks:
                raise SystemExit(f"{name}: expected no block '<!-- {block}: generated -->'")
        shown.update(found)
        made[name] = BLOCK.sub(
            lambda match: f"<!-- {match[1]}: generated -->\n{blocks[match[1]]}\n<!-- end -->", text
        )
    for block in blocks:
        if block not in shown:
            raise SystemExit(f"documents: expected a block '<!-- {block}: generated -->' in one")
    return made


def main() -> None:
    """Record, then render; or only check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=ROOT / "results" / "verify")
    parser.add_argument("--bench", type=Path, default=ROOT / "results" / "bench")
    parser.add_argument("--study", action="append", help="record this study again")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--check", action="store_true", help="fail if a document is stale")
    chosen.add_argument("--tables", action="store_true", help="record nothing, write the tables")
    arguments = parser.parse_args()
    if not arguments.check and not arguments.tables:
        record(arguments.source, arguments.bench, arguments.study or [])
    texts = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in documents(ROOT)
    }
    for name, rendered in render(texts, tables(RECORD)).items():
        if rendered == texts[name]:
            continue
        if arguments.check:
            sys.exit(f"{name} does not match results/recorded: run `make record`")
        write_text(ROOT / name, rendered)


def record(source: Path, bench: Path, studies: Sequence[str]) -> None:
    """Copy what the tables are made from into the record.

    Args:
        source: folder of a full verification.
        bench: folder of the benches' results; those that are there are taken.
        studies: names of studies to take in any case.
    """
    fresh = json.loads((source / "report.json").read_text(encoding="utf-8"))
    if not fresh.get("digits") or fresh["environment"]["quick"]:
        sys.exit(f"{source}: only a full report, the digits runs in it, is recorded")
    if fresh["environment"]["seed"] in TRIED:
        sys.exit(
            f"{source}: checks are built on seeds 0 to {TRIED[-1]}; record one of `verify --seed N`"
        )
    RECORD.mkdir(parents=True, exist_ok=True)
    write_bytes(RECORD / "report.json", (source / "report.json").read_bytes())
    for name in (*BENCHES, *ON_GPU):
        if (bench / f"{name}.json").exists():
            write_bytes(RECORD / f"{name}.json", (bench / f"{name}.json").read_bytes())
    for name in FIGURES:
        write_bytes(RECORD / f"{name}.png", (source / "figures" / f"{name}.png").read_bytes())
    record_studies(ROOT / "results", RECORD, studies)


if __name__ == "__main__":
    main()
