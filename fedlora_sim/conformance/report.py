"""Reports of the checks of a rule: a table, Python code of counterexamples, and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from fedlora_sim.conformance.case import EARLIER, Case, CheckResult, Status
from fedlora_sim.errors import InputError
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.rules.external import ExternalRule

WORDS: dict[Status, str] = {
    "passed": "passed",
    "expected": "expected (absent, as declared)",
    "failed": "failed",
    "skipped": "skipped",
}
"""Statuses in the counts."""

SHOWN: tuple[Status, ...] = ("passed", "expected", "skipped", "failed")
"""Groups of the table: failures come last, next to their details."""

MARKS: dict[Status, str] = {"passed": "✓", "expected": "≠", "failed": "✗", "skipped": "–"}
STYLES: dict[Status, str] = {
    "passed": "green",
    "expected": "cyan",
    "failed": "bold red",
    "skipped": "yellow",
}


@dataclass(frozen=True, eq=False)
class ConformanceReport:
    """The checks of one rule.

    Args:
        rule: the rule, as `get_rule` returns it.
        results: results of `check_aggregator`.
        seed: seed of the search.
        examples: intended number of cases per law.
    """

    rule: AggregationRule
    results: Sequence[CheckResult]
    seed: int
    examples: int

    @property
    def counts(self) -> dict[Status, int]:
        """Number of checks per status, including zeros."""
        found = [result.status for result in self.results]
        return {status: found.count(status) for status in WORDS}

    @property
    def failures(self) -> list[CheckResult]:
        """The failed checks."""
        return [result for result in self.results if result.status == "failed"]


def summary(report: ConformanceReport) -> str:
    """Return one line: the number of checks per status, including zeros, and the search effort."""
    counted = ", ".join(f"{n} {WORDS[status]}" for status, n in report.counts.items())
    return f"{report.rule.label}: {counted}; {report.examples} examples, seed {report.seed}"


def table(report: ConformanceReport) -> Table:
    """Return all checks, grouped by status."""
    found = Table("status", "check", "law, and what was found", "cases", box=SIMPLE)
    for column in found.columns:
        column.overflow = "fold"
    found.columns[0].no_wrap = found.columns[1].no_wrap = True
    found.columns[-1].justify = "right"
    for status in SHOWN:
        own = [result for result in report.results if result.status == status]
        mark = f"[{STYLES[status]}]{MARKS[status]} {status}[/]"
        for row in _skipped_rows(own) if status == "skipped" else map(_row, own):
            found.add_row(mark, *row)
        found.add_section()
    return found


def _row(result: CheckResult) -> tuple[str, str, str]:
    said = escape(result.statement)
    if result.reason:
        said += f"\n[dim]{MARKS[result.status]} {escape(result.reason)}[/]"
    return result.check, said, str(result.examples)


def _skipped_rows(results: Sequence[CheckResult]) -> Iterator[tuple[str, str, str]]:
    """Yield one row per reason, with the names of the checks that were not tested."""
    for reason in dict.fromkeys(result.reason for result in results):
        names = [result.check for result in results if result.reason == reason]
        count = "1 check" if len(names) == 1 else f"{len(names)} checks"
        yield count, f"{escape(reason)}:\n[dim]{', '.join(names)}[/]", ""


def failure(result: CheckResult, rule: AggregationRule) -> str:
    """Return the finding of a failed check, with the smallest case as Python code."""
    lines = [f"{result.check}: {result.statement}", result.reason]
    if result.counterexample is not None:
        lines += ["The smallest case that was found:", "", code(result.counterexample, rule)]
    return "\n".join(lines)


def code(case: Case, rule: AggregationRule) -> str:
    """Return a case as Python code that runs the rule on it."""
    lines = [case.code(), "", _rule_code(rule), "state = {}"]
    if case.earlier:
        lines += [
            f"for times in range({EARLIER}, {EARLIER} + earlier):",
            "    louder = [LoRAFactors(u.lora_A, times * u.lora_B, u.scaling) for u in updates]",
            "    _, state = rule.step(louder, weights, context, state)",
        ]
    lines += [
        "result, state = rule.step(updates, weights, context, state)",
        "print(result.delta())",
    ]
    return "\n".join(lines)


def _rule_code(rule: AggregationRule) -> str:
    """Return Python code that creates the rule as `rule`, by its name or from its class."""
    inner = _inner(rule)
    kind = type(inner)
    if _is_registered(rule):
        return f"from fedlora_sim.rules import get_rule\n\nrule = get_rule({rule.label!r})"
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        return f"# rule = {kind.__qualname__}, which is written where no import reaches it"
    made = repr(inner) if is_dataclass(inner) else f"{kind.__qualname__}()"
    return f"from {kind.__module__} import {kind.__qualname__.partition('.')[0]}\n\nrule = {made}"


def _inner(rule: AggregationRule) -> object:
    return rule.inner if isinstance(rule, ExternalRule) else rule


def _is_registered(rule: AggregationRule) -> bool:
    """Return True if `get_rule` returns an equal rule for its label."""
    try:
        return type(_inner(get_rule(rule.label))) is type(_inner(rule))
    except InputError:
        return False


def to_json(report: ConformanceReport) -> dict[str, Any]:
    """Return the report for JSON, with counterexamples as nested lists and as code."""
    return {
        "rule": report.rule.label,
        "seed": report.seed,
        "examples": report.examples,
        "counts": report.counts,
        "results": [_result_json(result, report.rule) for result in report.results],
    }


def _result_json(result: CheckResult, rule: AggregationRule) -> dict[str, Any]:
    case = result.counterexample
    return {
        "check": result.check,
        "status": result.status,
        "statement": result.statement,
        "reason": result.reason,
        "examples": result.examples,
        "counterexample": None if case is None else {**_case_json(case), "code": code(case, rule)},
    }


def _case_json(case: Case) -> dict[str, Any]:
    return {
        "updates": [_factors_json(update) for update in case.updates],
        "weights": list(case.weights),
        "rank_levels": list(case.rank_levels),
        "previous": _factors_json(case.previous),
        "empty_partition": case.empty_partition,
        "seed": case.seed,
        "positions": case.positions,
        "earlier": case.earlier,
    }


def _factors_json(factors: LoRAFactors) -> dict[str, Any]:
    return {
        "lora_A": factors.lora_A.tolist(),
        "lora_B": factors.lora_B.tolist(),
        "scaling": factors.scaling,
    }
