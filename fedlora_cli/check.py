"""`fedlora-sim check`: check whether a rule is a correct aggregator."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from fedlora_cli.options import load_rule
from fedlora_cli.tables import wide_console
from fedlora_sim.errors import check_seed
from fedlora_sim.runtime import one_thread

if TYPE_CHECKING:  # torch takes seconds, and the help of a command needs none
    from fedlora_sim.conformance import CheckResult
    from fedlora_sim.conformance.report import ConformanceReport
    from fedlora_sim.rules import AggregationRule

FAILED = 1


def check(
    rule: Annotated[
        str,
        typer.Argument(
            metavar="RULE",
            help="rule, see `fedlora-sim rules`, or pkg.module:Name, in the current folder or "
            "installed",
        ),
    ],
    checks: Annotated[
        list[str] | None, typer.Option(help="check to run; may be repeated; all by default")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(help="cases to try per law; those of Hypothesis by default")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the search for counterexamples")] = 0,
    prove: Annotated[
        bool,
        typer.Option("--prove", help="decide the laws on weights for all weights, by z3"),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead")] = False,
) -> None:
    """Check a rule against the laws of aggregation that it declares.

    Searches for a counterexample to each declared law. For a law that the rule declares not to
    hold, one must be found. Laws that it leaves open are skipped, and counted. Every failure is
    reported with the smallest case found, as Python code. Exit code 1 if a check failed.

    With --json: "rule", "seed", "examples", "counts" and "results", one per check: "check",
    "status", "statement", "reason", "examples" (applicable cases) and "counterexample", with Python
    "code".

    With --prove nothing is sampled: z3 decides whether the weights per client and direction are
    invariant under order, scale and repetition, for all weights of up to three clients. For a law
    that the rule declares not to hold, the smallest counterexample in whole numbers is shown. JSON:
    "rule" and "proofs", one per law: "law", "status", "statement", "reason", "seconds" and
    "counterexample".
    """
    if prove:
        _prove(load_rule(rule), as_json)
        return
    from fedlora_sim.conformance import CHECKS
    from fedlora_sim.conformance.check import check_examples, check_named
    from fedlora_sim.conformance.report import ConformanceReport, to_json

    count, seed = check_examples(examples), check_seed("--seed", seed)
    names = [law.name for law in (CHECKS if checks is None else map(check_named, checks))]
    chosen = load_rule(rule)
    results = _run(chosen, names, count, seed)
    report = ConformanceReport(chosen, results, seed, count)
    if as_json:
        print(json.dumps(to_json(report), indent=1, allow_nan=False))
    else:
        _print(report)
    if report.failures:
        raise typer.Exit(FAILED)


def _prove(rule: AggregationRule, as_json: bool) -> None:
    from fedlora_sim.conformance.symbolic import LAWS, prove_weights

    with tqdm(total=len(LAWS), desc=rule.label, unit="law", disable=None) as bar:
        proofs = prove_weights(rule, lambda proof: bar.update())
    if as_json:
        found = {"rule": rule.label, "proofs": [asdict(proof) for proof in proofs]}
        print(json.dumps(found, indent=1))
    else:
        table = Table("law", "status", "finding", "time", box=SIMPLE)
        for proof in proofs:
            example = proof.counterexample or {}
            values = ", ".join(f"{name} {list(value)}" for name, value in example.items())
            finding = f"{proof.reason}: {values}" if values else proof.reason
            table.add_row(proof.law, proof.status, escape(finding), f"{proof.seconds:.1f} s")
        wide_console().print(table)
    if any(proof.status == "failed" for proof in proofs):
        raise typer.Exit(FAILED)


def _run(rule: AggregationRule, names: list[str], examples: int, seed: int) -> list[CheckResult]:
    from fedlora_sim.conformance import check_aggregator

    with tqdm(total=len(names), desc=rule.label, unit="check", disable=None) as bar, one_thread():

        def show(result: CheckResult) -> None:
            bar.set_postfix_str(result.check, refresh=False)
            bar.update()

        return check_aggregator(rule, examples=examples, seed=seed, checks=names, on_result=show)


def _print(report: ConformanceReport) -> None:
    from fedlora_sim.conformance.report import failure, summary, table

    console = wide_console()
    console.print(table(report))
    for result in report.failures:  # unchanged: code to paste must not be folded
        print(f"FAILED {failure(result, report.rule)}\n")
    print(summary(report))
