"""`python -m analysis.paper [NAME ...]`: make the numbers of the paper's figures.

What is there already, made by the same code from the same settings, is kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from analysis.claims.base import RunContext
from analysis.paper.catalogue import RECIPES
from analysis.paper.recipe import Recipe
from analysis.paper.store import COMMAND, ROOT, code_fingerprint, is_current, make
from fedlora_sim.errors import check_choice
from fedlora_sim.run_store import RunStore
from fedlora_sim.storage import ResultFolder

FOLDER = ROOT / "results" / "paper"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the requested numbers, or all, and report progress."""
    parser = argparse.ArgumentParser(prog="python -m analysis.paper", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write")
    parser.add_argument(
        "--force",
        action="store_true",
        help="make again what is there, also where it was changed since",
    )
    asked = parser.parse_args(arguments)
    try:
        names = [check_choice("NAME", name, list(RECIPES)) for name in asked.names] or list(RECIPES)
    except ValueError as error:
        parser.error(str(error))
    names = list(dict.fromkeys(names))
    with ResultFolder(asked.out, COMMAND).only_writer():
        _make_all(names, asked.out, force=asked.force)


def _make_all(names: Sequence[str], out: Path, *, force: bool) -> None:
    for number, name in enumerate(names, 1):
        recipe = RECIPES[name]
        context, started = RunContext(seed=recipe.base_seed), time.perf_counter()
        label = f"[{number}/{len(names)}] {name}"
        if not force and is_current(recipe, out, context):
            print(f"{label}: is there", file=sys.stderr, flush=True)
            continue
        print(f"{label} ...", file=sys.stderr, flush=True)
        context.store = _partial(recipe, out, context)
        context.store.remove_stale()
        with tqdm(unit="run", unit_scale=True, disable=None, leave=False) as runs:
            context.on_progress = runs.update
            make(recipe, out, context, force=force)
        context.store.clear()
        print(f"{label}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)


def _partial(recipe: Recipe, out: Path, context: RunContext) -> RunStore:
    """Return the store of long runs, from which a stopped command continues."""
    inputs = {"seed": context.seed, "settings": dict(recipe.settings), "code": code_fingerprint()}
    return RunStore(out / ".partial", {"recipe": recipe.name, **inputs})


if __name__ == "__main__":
    main()
