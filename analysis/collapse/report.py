"""`collapse_report`: a rule in the standard scenarios, beside FedAvg and raFLoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from analysis.collapse import record, sentences, table
from analysis.collapse.gauge import versus
from analysis.collapse.outcome import Outcome, Progress, Runs, outcome, run
from analysis.collapse.predict import Prediction, predict
from analysis.collapse.scenarios import SCENARIOS, Standard, chosen
from analysis.collapse.verdict import Collapse, together
from analysis.stats.verdicts import FAMILY_ERROR
from fedlora_sim.errors import check_count, check_seed, expected
from fedlora_sim.rules import AggregationRule, get_rule

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

CONTROLS = ("fedavg", "raflora")
"""Rules that are run beside every other one; theory knows what they do."""


@dataclass(frozen=True, eq=False)
class ScenarioReport:
    """All rules in one standard scenario.

    Args:
        standard: the scenario.
        fidelity: `spectral` or `matrix`.
        runs: seeds, the same ones for every rule.
        rules: outcomes by label, the reader's rule first; it is missing if it could not be run.
        failure: what the reader's rule raised, or None.
    """

    standard: Standard
    fidelity: str
    runs: int
    rules: dict[str, Outcome]
    failure: str | None = None

    def verdict(self, label: str) -> Collapse:
        """Verdict on a rule; undecided where it could not be run."""
        return self.rules[label].verdict if label in self.rules else Collapse.UNDECIDED

    def sentence(self, label: str) -> str:
        """Verdict on a rule here in one sentence, with numbers and intervals."""
        if label not in self.rules:
            return f"{label} is undecided: it could not be run ({self.failure})."
        return sentences.of_scenario(self.rules, label, self.standard)

    @property
    def failed_controls(self) -> tuple[str, ...]:
        """Controls that were not found to do what theory says of them, in words."""
        return tuple(
            f"{label}, {self.standard.title}: theory says {found.prediction.verdict}, measured "
            f"{found.verdict}"
            for label, found in ((label, self.rules[label]) for label in CONTROLS)
            if found.verdict is not found.prediction.verdict
        )


@dataclass(frozen=True, eq=False)
class CollapseReport:
    """Does a rule collapse?

    Args:
        rule: label of the rule.
        source: where the rule is from, in its own words.
        seed: base seed; run i has seed `seed * 1_000_000 + i`.
        scenarios: one report per standard scenario.
    """

    rule: str
    source: str
    seed: int
    scenarios: tuple[ScenarioReport, ...]

    @property
    def failed_controls(self) -> tuple[str, ...]:
        """Controls that failed in these runs; where there are any, no verdict is to be trusted."""
        return tuple(text for part in self.scenarios for text in part.failed_controls)

    @property
    def verdict(self) -> Collapse:
        """`collapses` if it does in any scenario, `keeps its rank` if it does in all of them."""
        return together(part.verdict(self.rule) for part in self.scenarios)

    @property
    def sentence(self) -> str:
        """The verdict in one sentence, with numbers and intervals."""
        return sentences.of_report(self)

    def table(self) -> Table:
        """Every partition of every scenario, the rule beside FedAvg and raFLoRA (rich)."""
        return table.of(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per scenario, rule, partition and number, tidy."""
        return record.to_frame(self)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data that `json.dumps` takes; see `analysis.collapse.record`."""
        return record.to_record(self)

    def __str__(self) -> str:
        return sentences.in_full(self)


def collapse_report(
    rule: Any,
    *,
    seed: int = 0,
    seeds: int | None = None,
    scenarios: Sequence[str] | None = None,
    progress: bool = False,
) -> CollapseReport:
    """Run a rule in the standard scenarios, and tell by intervals whether it collapses.

    Everything is predicted before it is run. Rules with a spectral form run there, others with real
    factors of small layers; FedAvg and raFLoRA run beside them, at the same fidelity and on the
    same seeds. All intervals of one rule hold together at 95%.

    Args:
        rule: what `get_rule` takes: a name with options, or a rule.
        seed: base seed; the same one gives the same report.
        seeds: runs of every scenario that draws something, at least 2; 2,000 at spectral (6,000
            of cohorts) and 64 at matrix fidelity by default. The others need 2 and 8 at most.
            So few that a control is undecided count as a control that failed.
        scenarios: names out of `SCENARIOS`; all by default.
        progress: show a progress bar, one step per run.

    Returns:
        The report.

    Raises:
        ValueError: naming the argument, its value and what was expected.
    """
    own, standards = get_rule(rule), chosen(scenarios)
    base = check_seed("seed", seed)
    if seeds is not None and check_count("seeds", seeds) < 2:
        raise expected("seeds", seeds, "at least 2 runs: one says nothing of its own spread")
    rules = {own.label: own} | _controls(own)
    predictions = {s.name: {k: predict(r, s) for k, r in rules.items()} for s in standards}
    counts = {s.name: s.seeds(s.fidelity_for(own), seeds) for s in standards}
    total = len(rules) * sum(counts.values())
    with tqdm(total=total, disable=not progress, desc=own.label, unit="run") as bar:
        parts = tuple(
            _scenario(s, rules, own.label, predictions[s.name], base, counts[s.name], bar.update)
            for s in standards
        )
    return CollapseReport(own.label, own.source, base, parts)


def _controls(own: AggregationRule) -> dict[str, AggregationRule]:
    """The controls by name.

    Raises:
        InputError: if another rule goes by the name of one.
    """
    controls = {name: get_rule(name) for name in CONTROLS}
    label = own.label
    if label in controls and type(own) is not type(controls[label]):
        raise expected(
            "rule", label, f"a rule with a name of its own: {label} is a control of the report"
        )
    return controls


def _scenario(
    standard: Standard,
    rules: dict[str, AggregationRule],
    own: str,
    predictions: dict[str, Prediction],
    seed: int,
    count: int,
    on_progress: Progress,
) -> ScenarioReport:
    fidelity = standard.fidelity_for(rules[own])
    numbers = [seed * 1_000_000 + i for i in range(count)]
    runs: dict[str, Runs] = {}
    failure = None
    for label, rule in rules.items():
        try:
            runs[label] = run(rule, standard, fidelity, numbers, on_progress)
        except Exception as raised:  # whatever the reader's rule raises
            if label in CONTROLS:
                raise
            failure = f"{type(raised).__name__}: {raised}"
    # The part of a scenario does not depend on how many are run.
    error = FAMILY_ERROR / len(SCENARIOS)
    found = {}
    for label, these in runs.items():
        paired = {
            f"versus_{other}": versus(these.energy, runs[other].energy, standard, error)
            for other in CONTROLS
        }
        found[label] = outcome(label, these, standard, fidelity, predictions[label], error, paired)
    return ScenarioReport(standard, fidelity, count, found, failure)
