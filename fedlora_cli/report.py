"""`fedlora-sim report`: write a verification or a study as one HTML page, from its files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedlora_cli.options import FORCE_HELP, check_folder
from fedlora_sim.errors import expected
from fedlora_sim.storage import ResultFolder, check_file, write_text

KNOWN = {"report.json": "report.html", "study.json": "study.html"}
"""Name of a folder's report, and of the page for it."""

REPORT_PARTS = ("claims", "environment")
STUDY_PARTS = ("study", "claims", "left_out", "command", "environment")
CLAIM_PARTS = (
    *("id", "statement", "prediction", "margin", "measurement", "interval", "confidence"),
    *("runs", "verdict", "negative_control"),
)
VERIFIED_PARTS = (
    *("theme", "source", "kind", "assumptions", "fidelity", "statistic", "quantities"),
    *("p_value", "p_holm", "reason", "seconds"),
)


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="what `verify` or `study` has written")
    ],
    out: Annotated[
        Path | None, typer.Option(help="file to write; report.html in DIR by default")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help=FORCE_HELP)] = False,
) -> None:
    """Write the report of a verification or a study as one HTML page.

    The page is self-contained: claims can be filtered and sorted, with formulas, intervals and
    figures, for light and dark themes and for print. DIR contains report.json or study.json;
    figures and data in it are included. A study's page is study.html.
    """
    source = _source(folder)
    target = folder / KNOWN[source.name] if out is None else out
    if target.suffix != ".html":
        raise expected("--out", str(target), "a file that ends in .html")
    if target.is_dir():
        raise expected("--out", str(target), "a file (this is a folder)")
    check_folder("--out", target, target.parent)
    if target.parent.resolve() == folder.resolve():  # a part of the results, replaced with them
        command = "study" if source.name == "study.json" else "verify"
        results = ResultFolder(folder, command, argument="DIR", force=force)
        results.check([target.name], drop_older=False)
        results.put(target.name, _page(source))
    else:
        check_file(target, "--out", force=force)
        write_text(target, _page(source))
    print(f"report in {target}")


def _source(folder: Path) -> Path:
    """Return the report in a folder.

    Raises:
        InputError: if there is none.
    """
    for name in KNOWN:
        if (folder / name).is_file():
            return folder / name
    raise expected("DIR", str(folder), f"a folder with {' or '.join(KNOWN)}, as `verify` writes it")


def _page(source: Path) -> str:
    """Return the page of a report.

    Raises:
        InputError: if the file is not a report, or one of an older version.
    """
    from paper_figs.html.page import as_report
    from paper_figs.html.render import render

    try:
        read: Any = json.loads(source.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise expected("DIR", str(source), "a file in JSON") from None
    is_study = source.name == "study.json"
    _check(source, read, STUDY_PARTS if is_study else REPORT_PARTS)
    if not read["claims"]:
        raise expected("DIR", str(source), "a report with at least one claim")
    for claim in read["claims"]:
        _check(source, claim, CLAIM_PARTS if is_study else (*CLAIM_PARTS, *VERIFIED_PARTS))
    return render(as_report(read) if is_study else read, source.parent, source.name)


def _check(source: Path, read: Any, parts: tuple[str, ...]) -> None:
    """Refuse a report without a part that every report of this version has."""
    missing = [name for name in parts if not isinstance(read, dict) or name not in read]
    if missing:
        raise expected("DIR", str(source), f"a report of this version, with {missing[0]!r}")
