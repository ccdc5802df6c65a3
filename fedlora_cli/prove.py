"""`fedlora-sim prove`: check the proofs of the theory with Coq."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from fedlora_cli.tables import wide_console
from fedlora_sim.errors import check_choice, check_count, expected

if TYPE_CHECKING:  # sympy and torch take seconds, and the help of a command needs none
    from analysis.proofs.coq import Proof

FAILED, NO_COQ = 1, 3


def prove(
    claim: Annotated[
        list[str] | None, typer.Option(help="claim whose theorems to prove; may be repeated")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="prove everything; the default")] = False,
    processes: Annotated[int, typer.Option(help="files to compile at a time")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead")] = False,
) -> None:
    """Check the proofs of the theory with Coq, and print what each theorem assumes.

    A theorem is proved if Coq accepts it and it rests on nothing but Coq's own libraries of
    numbers. Exit code 1 if one is not proved, 3 without Coq.

    With --json: "theorems", one entry per theorem and claim: "name", "claim" (null if it proves no
    claim), "proved", "assumptions" and "seconds".
    """
    from analysis.proofs.coq import NoCoqError
    from analysis.proofs.coq import prove as compile_proofs

    if claim and every:
        raise expected("--claim", claim[0], "either --claim or --all")
    check_count("--processes", processes)
    names, started = _names(claim), time.monotonic()
    try:
        proofs = compile_proofs(names, processes)
    except NoCoqError as error:
        print(f"fedlora-sim: {error}", file=sys.stderr)
        raise typer.Exit(NO_COQ) from None
    rows = [
        {
            "name": proof.name,
            "claim": one,
            "proved": proof.proved,
            "assumptions": list(proof.assumptions),
            "seconds": proof.seconds,
        }
        for proof in proofs
        for one in _claims(proof, claim)
    ]
    if as_json:
        print(json.dumps({"theorems": rows}, indent=1))
    else:
        _print(proofs, rows, time.monotonic() - started)
    if not all(proof.proved for proof in proofs):
        raise typer.Exit(FAILED)


def _names(claim: list[str] | None) -> list[str]:
    """Return the theorems of the chosen claims; all without a choice."""
    from analysis.proofs.coq import all_names
    from analysis.proofs.theorems import claims_of

    if not claim:
        return all_names()
    provable = sorted({one for name in all_names() for one in claims_of(name)})
    chosen = {check_choice("--claim", one, provable) for one in claim}
    return [name for name in all_names() if chosen & set(claims_of(name))]


def _claims(proof: Proof, chosen: list[str] | None) -> list[str | None]:
    """Return the claims of a theorem, of the chosen ones; None if it proves no claim."""
    from analysis.proofs.theorems import claims_of

    own = [one for one in claims_of(proof.name) if not chosen or one in chosen]
    return [*own] or [None]


def _print(proofs: list[Proof], rows: list[dict[str, Any]], seconds: float) -> None:
    table = Table("theorem", "claims", "proved", "assumes", "time", box=SIMPLE)
    for column in table.columns:
        column.overflow = "fold"
    for proof in proofs:
        claims = [str(row["claim"]) for row in rows if row["name"] == proof.name and row["claim"]]
        mark = "[green]proved[/]" if proof.proved else "[red]not proved[/]"
        count = len(proof.assumptions)
        assumed = f"{count} of Coq's library" if count else "nothing"
        table.add_row(
            proof.name,
            ", ".join(claims),
            mark,
            assumed if proof.proved else ", ".join(proof.assumptions) or "not accepted",
            f"{proof.seconds:.2f} s",
        )
    wide_console().print(table)
    names = sorted({name for proof in proofs for name in proof.assumptions})
    if names:
        print(f"Assumptions of Coq's library: {', '.join(names)}")
    proved = sum(proof.proved for proof in proofs)
    # More than the sum of the theorems: Coq compiles the whole files that they need.
    print(f"{proved} of {len(proofs)} proved in {seconds:.1f} s")
