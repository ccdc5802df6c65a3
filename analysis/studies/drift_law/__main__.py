"""`python -m analysis.studies.drift_law DOMAIN`: verify the drift law on real training.

Runs that are stored already are not made again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from analysis.claims.report import measurement_text
from analysis.studies.drift_law.domains import domain_names, load_domain, make_runs
from analysis.studies.drift_law.law_report import law_report, to_markdown
from analysis.studies.report import last_part
from fedlora_sim.storage import ResultFolder, write_json, write_text

COMMAND = "drift_law"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs of a domain, or continue them, and report on them."""
    parser = argparse.ArgumentParser(prog="python -m analysis.studies.drift_law")
    parser.add_argument("domain", metavar="DOMAIN", help=f"{', '.join(domain_names())}, or a file")
    parser.add_argument("--out", type=Path, help="folder; results/drift_law/DOMAIN by default")
    parser.add_argument("--seeds", type=int, help="so many of the domain's first seeds")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    asked = parser.parse_args(arguments)
    try:
        changes = dict(text.split("=", 1) for text in asked.set)
        domain = load_domain(asked.domain, changes)
        if asked.seeds is not None:
            domain = domain.first(asked.seeds)
    except ValueError as error:
        parser.error(str(error))
    out = asked.out or Path("results") / "drift_law" / domain.name
    results = ResultFolder(out, COMMAND)
    total, started = len(domain.seeds) * len(domain.runs), time.monotonic()
    with results.only_writer(), tqdm(total=total, unit="run", disable=None) as bar:
        results.check(("drift_law.json", "drift_law.md"))

        def show(role: str, seed: int) -> None:
            bar.update()
            if bar.disable:  # without a terminal: a line per run instead of a bar
                passed = time.monotonic() - started
                print(f"{passed:6.0f} s: {role}, seed {seed}", file=sys.stderr, flush=True)

        report = law_report(domain, make_runs(domain, out, show), _command(asked))
        with results.replace() as new:
            write_json(new / "drift_law.json", report)
            write_text(new / "drift_law.md", to_markdown(report))
    for claim in report["claims"]:
        print(f"{claim['verdict']:>10}  {claim['id']}: {measurement_text(claim)}")
    print(f"report in {out}")


def _command(asked: argparse.Namespace) -> str:
    """Return the command line without the paths of this machine."""
    parts = ["python -m analysis.studies.drift_law", shlex.quote(last_part(asked.domain))]
    parts += [] if asked.seeds is None else [f"--seeds {asked.seeds}"]
    for text in asked.set:
        name, _, value = text.partition("=")
        parts.append(f"--set {name}={shlex.quote(last_part(value))}")
    return " ".join(parts)


if __name__ == "__main__":
    main()
