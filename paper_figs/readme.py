"""Record results for the README, and write its tables and pictures from the record.

`python -m paper_figs.readme` takes `results/verify`, `results/bench` and the studies beside them
that are newer than their record; with `--check` nothing is written, and a README that does not
match the record is an error.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.report import digits_table
from analysis.summary import conjecture_table, folded_tables, theme_table
from fedlora_sim.aggregation.describe import describe_all
from paper_figs.conformance import conformance_block
from paper_figs.rivals_speed import rivals_block
from paper_figs.speed import (
    aggregation_table,
    bars_table,
    gpu_block,
    hardware_line,
    layers_table,
    spectral_table,
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
    "conformance": {"conformance": conformance_block},
}
ON_GPU = ("aggregation-cuda", "training-cuda")


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
    report = json.loads((record / "report.json").read_text())
    blocks = {
        "themes": theme_table(report),
        "conjectures": conjecture_table(report),
        "verdicts": folded_tables(report),
        "digits": digits_table(report),
        "run": run_line(report),
        "rules": rules_table(),
        "gpu": gpu_block(record),
        "training_bars": training_bars_block(record),
    }
    for name, tables_of in BENCHES.items():
        bench = json.loads((record / f"{name}.json").read_text())
        blocks |= {block: table(bench) for block, table in tables_of.items()}
    return blocks | study_blocks(record)


def render(readme: str, blocks: dict[str, str]) -> str:
    """The README with every generated block made anew."""
    for name, text in blocks.items():
        pattern = rf"(<!-- {name}: generated -->\n)(?:(?!: generated -->).)*?(<!-- end -->)"
        match = re.search(pattern, readme, flags=re.DOTALL)
        if match is None:
            raise SystemExit(f"README.md: expected a block '<!-- {name}: generated -->'")
        readme = f"{readme[: match.start()]}{match[1]}{text}\n{match[2]}{readme[match.end() :]}"
    return readme


def main() -> None:
    """Record, then render; or only check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=ROOT / "results" / "verify")
    parser.add_argument("--bench", type=Path, default=ROOT / "results" / "bench")
    parser.add_argument("--study", action="append", help="record this study again")
    parser.add_argument("--check", action="store_true", help="fail if the README is stale")
    arguments = parser.parse_args()
    path = ROOT / "README.md"
    if not arguments.check:
        fresh = json.loads((arguments.source / "report.json").read_text())
        if not fresh.get("digits") or fresh["environment"]["quick"]:
            sys.exit(f"{arguments.source}: only a full report, the digits runs in it, is recorded")
        RECORD.mkdir(parents=True, exist_ok=True)
        shutil.copy(arguments.source / "report.json", RECORD / "report.json")
        for name in (*BENCHES, *ON_GPU):
            if (arguments.bench / f"{name}.json").exists():
                shutil.copy(arguments.bench / f"{name}.json", RECORD / f"{name}.json")
        for name in FIGURES:
            shutil.copy(arguments.source / "figures" / f"{name}.png", RECORD / f"{name}.png")
        record_studies(ROOT / "results", RECORD, arguments.study or [])
    rendered = render(path.read_text(), tables(RECORD))
    if arguments.check and rendered != path.read_text():
        sys.exit("README.md does not match results/recorded: run `make readme`")
    if not arguments.check:
        path.write_text(rendered)


if __name__ == "__main__":
    main()
