"""`fedlora-sim diagnose`: test whether your own federated run loses its higher ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.diagnose.layout_names import LAYOUTS
from fedlora_cli.options import FORCE_HELP, check_folder, parse_samples
from fedlora_sim.errors import InputError, expected
from fedlora_sim.storage import ResultFolder, write_json, write_text

if TYPE_CHECKING:  # torch takes seconds, and the help of a command needs none
    from analysis.diagnose import Diagnosis

COLLAPSES = 1
JSON_FILE, PAGE = "diagnosis.json", "diagnosis.html"
OPTIONS = {
    "run": "RUN",
    "ranks": "--ranks",
    "cohort_size": "--cohort",
    "num_samples": "--samples",
    "alpha": "--alpha",
    "layout": "--layout",
}
_FRONT = re.compile(rf"({'|'.join(OPTIONS)})(?==)")


def diagnose(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="folder with the adapters of rounds (PEFT folders, .bin or .pt files), or a run "
            "of `train`",
        ),
    ],
    ranks: Annotated[
        str | None, typer.Option(help="ranks of the clients, e.g. 4x5,8x5 (rank 4, 5 clients)")
    ] = None,
    cohort: Annotated[int | None, typer.Option(help="clients per round")] = None,
    samples: Annotated[
        str | None, typer.Option(help="sample counts, e.g. 100x5,50x5; equal by default")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="lora_alpha, for files that do not state it")
    ] = None,
    rslora: Annotated[
        bool, typer.Option("--rslora", help="the scaling of these files is alpha / sqrt(r)")
    ] = False,
    layout: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(LAYOUTS)}, or a regular expression whose group is the round, e.g. "
            r"'epoch(\d+)'; recognized by default"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help=f"write {JSON_FILE} into this folder")
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help=f"also write {PAGE}, a page with figures, into --out")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="exit with code 1 if the run collapses")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help=FORCE_HELP)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead")] = False,
) -> None:
    """Test whether your own federated run loses its higher ranks, why, and what to do.

    Global adapters of rounds are enough: their energies show rates, half-lives, extinct partitions
    and the floors at which they settle. With ranks and cohort size, the report lists the rules that
    the adapters are consistent with; with client files, also which rule made them, the ledger of
    the energy, and what other rules would have kept.

    Nothing is guessed: the report names the options that are missing. Pickles are read as plain
    tensors only.
    """
    from analysis.diagnose import diagnose as diagnosis_of

    if html and out is None:
        raise expected("--html", True, "a folder to write to, --out DIR")
    names = [JSON_FILE, *([PAGE] if html else [])]
    results = None
    if out is not None:
        check_folder("--out", out, out)
        results = ResultFolder(out, "diagnose", force=force)
        results.check(names)
    counts = None if samples is None else parse_samples("--samples", samples)
    try:
        found = diagnosis_of(
            run,
            ranks=ranks,
            cohort=cohort,
            num_samples=counts,
            alpha=alpha,
            use_rslora=rslora,
            layout=layout,
        )
    except InputError as error:
        raise InputError(_FRONT.sub(lambda name: OPTIONS[name[1]], str(error), count=1)) from None
    if as_json:
        print(json.dumps(found.to_json(), indent=1, allow_nan=False))
    else:
        print(found)
    if results is not None:
        _write(found, results, html=html)
        if not as_json:
            print(f"\nwrote {', '.join(str(results.folder / name) for name in names)}")
    if strict and found.collapses:
        raise typer.Exit(COLLAPSES)


def _write(found: Diagnosis, results: ResultFolder, *, html: bool) -> None:
    with results.only_writer(), results.replace() as new:
        write_json(new / JSON_FILE, found.to_json())
        if html:
            from paper_figs.html.diagnosis import diagnosis_page  # imported late: not always needed

            write_text(new / PAGE, diagnosis_page(found))
