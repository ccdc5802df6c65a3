"""`python -m paper_figs [NAME ...]`: draw the paper's figures from their data files.

Nothing is simulated: `python -m analysis.paper` makes the data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from analysis.paper.store import ROOT
from fedlora_sim.errors import check_choice
from paper_figs.files import FIGURES, draw_paper, stale

DATA, OUT = ROOT / "results" / "paper", ROOT / "results" / "figures"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the requested figures, or all, and report progress."""
    parser = argparse.ArgumentParser(prog="python -m paper_figs", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data files")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write")
    parser.add_argument("--force", action="store_true", help="replace what was changed since")
    asked = parser.parse_args(arguments)
    try:
        names = [check_choice("NAME", name, list(FIGURES)) for name in asked.names] or list(FIGURES)
    except ValueError as error:
        parser.error(str(error))
    names = list(dict.fromkeys(names))
    missing = [name for name in names if not (asked.data / f"{name}.json").exists()]
    if missing:
        parser.error(f"no data of {', '.join(missing)} in {asked.data}: run `make results`")
    mpl.use("Agg")
    manifest = draw_paper(
        names, asked.data, asked.out, lambda name: print(name, file=sys.stderr), force=asked.force
    )
    old = stale(manifest)
    if old:
        print(f"made by other code than there is now: {', '.join(old)}", file=sys.stderr)
    print(f"{len(names)} figures in {asked.out}")


if __name__ == "__main__":
    main()
