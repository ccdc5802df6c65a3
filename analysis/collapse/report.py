"""`collapse_report`: a rule in the standard scenarios, compared with FedAvg and raFLoRA."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table
from tqdm.auto import tqdm

from analysis.closed_form import half_life
from analysis.collapse.measure import CRITERIA, MOST, Collapse, together, versus
from analysis.collapse.outcome import Agreement, Outcome, Progress, Runs, outcome, run
from analysis.collapse.predict import CollapsePrediction, predict
from analysis.collapse.scenarios import EXACT, SCENARIOS, Standard, chosen
from analysis.formats import NONE, interval, number, percent, rule_name, times
from analysis.predict import directions_label
from analysis.stats.intervals import Array, Measurement
from analysis.stats.verdicts import FAMILY_ERROR
from fedlora_sim.errors import check_count, check_seed, expected
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.version import __version__

if TYPE_CHECKING:
    import pandas as pd

# Numbers with intervals as text: losses, half-lives, shares

EXACTLY = "exactly "
"""Prefix of a number that every run gave, which has no interval."""
DIGITS = 3
DOUBLES = 2.0
"""Growth from this factor on is shown as a factor."""
MANY = 10.0
"""Shares from here on are shown as factors too."""


def directions(standard: Standard, partition: int) -> str:
    """Return the directions of a partition, counted from 1: `5–8`."""
    return directions_label(standard.scenario.federation.partitions[partition])


def share_or_factor(share: float | None, digits: int = DIGITS) -> str:
    """Return a share as a percentage with at most two decimals; a multiple above ten."""
    if share is None or not MANY <= share < np.inf:
        return percent(share, digits, decimals=2)
    return times(share, digits)


def share_text(found: Measurement, h: int) -> str:
    """Return a share with its interval; a multiple above ten."""
    if np.isnan(found.value[h]):
        return "nothing"
    return _with_ends(found, h, times if found.value[h] >= MANY else share_or_factor)


def loss_text(found: Measurement, h: int) -> str:
    """Return the loss of a factor per round with its interval; negative for growth.

    The factor itself if it doubles the energy or more.
    """
    if np.isnan(found.value[h]):
        return NONE
    if found.value[h] >= DOUBLES:
        return _with_ends(found, h, times)
    return _with_ends(_lost(found), h, share_or_factor)


def change_text(found: Measurement, h: int) -> str:
    """Return `loses 36% [35%, 37%]`, `grows by 4% [3%, 5%]` or `grows ×18`."""
    if np.isnan(found.value[h]):
        return "has nothing left to lose"
    if found.value[h] >= DOUBLES:
        return f"grows {loss_text(found, h)}"
    if share_or_factor(1 - found.value[h]).startswith("-"):
        gained = Measurement(found.value - 1, found.low - 1, found.high - 1, found.samples)
        return f"grows by {_with_ends(gained, h, share_or_factor)}"
    return f"loses {loss_text(found, h)}"


def half_lives(rate: Array) -> Array:
    """Return half-lives of factors per round; infinite at 1 up to rounding; NaN where unknown."""
    known = ~np.isnan(rate)
    lives = half_life(np.where(known & (rate < 1 - EXACT), np.maximum(rate, 0.0), 1.0))
    return np.where(known, lives, np.nan)


def half_life_text(found: Measurement, h: int) -> str:
    """Return the half-life of a factor per round with its interval; empty if nothing falls."""
    ends = (found.value, found.low, found.high)
    # the ends of an interval of factors are the ends of one of half-lives, in order
    value, low, high = map(half_lives, ends)
    lives = Measurement(value, low, high, found.samples)
    if not np.isfinite(lives.value[h]):
        return ""
    if not np.isfinite(lives.high[h]):
        return f"at least {number(lives.low[h], DIGITS)}"
    return _with_ends(lives, h, number)


def extinct_text(own: Outcome, h: int) -> str:
    """Return the share of runs that lost a partition, and the round by which half of them did."""
    by = own.extinct_rounds[h]
    when = f", in half by round {by:.0f}" if np.isfinite(by) else ""
    return f"{share_text(own.numbers['extinct'], h)} of runs{when}"


def telling_partition(own: Outcome) -> int:
    """Return partition above the shared one that decided; of several, the one that lost most."""
    wanted = [h for h, found in enumerate(own.partitions, 1) if found is own.verdict]
    name = "left" if own.verdict is Collapse.KEEPS else "relative_rate"
    value = np.nan_to_num(own.numbers[name].value, nan=-1.0)
    return min(wanted or range(1, len(value)), key=lambda h: float(value[h]))


def _lost(found: Measurement) -> Measurement:
    return Measurement(1 - found.value, 1 - found.high, 1 - found.low, found.samples)


def _with_ends(found: Measurement, h: int, text: Callable[[float | None, int], str]) -> str:
    value = text(float(found.value[h]), DIGITS)
    if found.low[h] == found.high[h]:
        return f"{EXACTLY}{value}"
    return f"{value} {interval((found.low[h], found.high[h]), DIGITS, text)}"


# The report

CONTROLS = ("fedavg", "raflora")
"""Rules that are run for comparison with every other one; the theory predicts their results."""


@dataclass(frozen=True, eq=False)
class ScenarioReport:
    """All rules in one standard scenario.

    Args:
        standard: the scenario.
        fidelity: `spectral` or `matrix`.
        runs: number of seeds, the same for every rule.
        rules: outcomes by label, the user's rule first; it is missing if it could not be run.
        failure: the error of the user's rule, or None.
    """

    standard: Standard
    fidelity: str
    runs: int
    rules: dict[str, Outcome]
    failure: str | None = None

    def verdict(self, label: str) -> Collapse:
        """Return the verdict on a rule; undecided if it could not be run."""
        return self.rules[label].verdict if label in self.rules else Collapse.UNDECIDED

    def sentence(self, label: str) -> str:
        """Return verdict on a rule in this scenario as one sentence, with numbers and intervals."""
        if label not in self.rules:
            return f"{label} is undecided: it could not be run ({self.failure})."
        return of_scenario(self.rules, label, self.standard)

    @property
    def failed_controls(self) -> tuple[str, ...]:
        """Controls whose results contradict the theory, as text."""
        return tuple(
            f"{label}, {self.standard.title}: theory says {found.prediction.verdict}, measured "
            f"{found.verdict}"
            for label, found in ((label, self.rules[label]) for label in CONTROLS)
            if found.verdict is not found.prediction.verdict
        )


@dataclass(frozen=True, eq=False)
class CollapseReport:
    """Whether a rule collapses, with all numbers.

    Args:
        rule: label of the rule.
        source: the rule's own source.
        seed: base seed; run i has seed `seed * 1_000_000 + i`.
        scenarios: one report per standard scenario.
    """

    rule: str
    source: str
    seed: int
    scenarios: tuple[ScenarioReport, ...]

    @property
    def failed_controls(self) -> tuple[str, ...]:
        """Failed controls; if there are any, the verdict is not reliable."""
        return tuple(text for part in self.scenarios for text in part.failed_controls)

    @property
    def verdict(self) -> Collapse:
        """`collapses` if it does in any scenario, `keeps its rank` if it does in all of them."""
        return together(part.verdict(self.rule) for part in self.scenarios)

    @property
    def sentence(self) -> str:
        """The verdict in one sentence, with numbers and intervals."""
        return of_report(self)

    def table(self) -> Table:
        """Return a rich table of all partitions and scenarios, including FedAvg and raFLoRA."""
        return of(self)

    def to_frame(self) -> pd.DataFrame:
        """Return a tidy table with one row per scenario, rule, partition and number."""
        return to_frame(self)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data for `json.dumps`; see `analysis.collapse.report`."""
        return to_record(self)

    def __str__(self) -> str:
        return in_full(self)


def collapse_report(
    rule: Any,
    *,
    seed: int = 0,
    seeds: int | None = None,
    scenarios: Sequence[str] | None = None,
    progress: bool = False,
) -> CollapseReport:
    """Run a rule in the standard scenarios, and test by intervals whether it collapses.

    Everything is predicted before it is run. Rules with a spectral form run at spectral fidelity,
    others with real factors of small layers. FedAvg and raFLoRA run at the same fidelity and on the
    same seeds for comparison. All intervals of one rule hold together at 95%.

    Args:
        rule: a name with options, or a rule object, as for `get_rule`.
        seed: base seed; equal seeds give equal reports.
        seeds: runs of each scenario with random draws, at least 2; by default 2,000 at spectral
            fidelity (6,000 with cohorts) and 64 at matrix fidelity. The other scenarios need at
            most 2 and 8. With too few runs a control is undecided, which counts as a failed
            control.
        scenarios: names from `SCENARIOS`; all by default.
        progress: show a progress bar, one step per run.

    Returns:
        The report.

    Raises:
        InputError: if an argument is invalid; names the argument, its value and what was expected.
    """
    own, standards = get_rule(rule), chosen(scenarios)
    base = check_seed("seed", seed)
    if seeds is not None and check_count("seeds", seeds) < 2:
        raise expected("seeds", seeds, "at least 2 runs: one says nothing of its own spread")
    rules = {own.label: own} | _controls(own)
    predictions = {s.name: {k: predict(s, r) for k, r in rules.items()} for s in standards}
    counts = {s.name: s.seeds(s.fidelity_for(own), seeds) for s in standards}
    total = len(rules) * sum(counts.values())
    with tqdm(total=total, disable=not progress, desc=own.label, unit="run") as bar:
        parts = tuple(
            _scenario(s, rules, own.label, predictions[s.name], base, counts[s.name], bar.update)
            for s in standards
        )
    return CollapseReport(own.label, own.source, base, parts)


def _controls(own: AggregationRule) -> dict[str, AggregationRule]:
    """Return the controls by name.

    Raises:
        InputError: if another rule has the name of one.
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
    predictions: dict[str, CollapsePrediction],
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
        except Exception as raised:  # the user's rule may raise anything
            if label in CONTROLS:
                raise
            failure = f"{type(raised).__name__}: {raised}"
    # The part of a scenario does not depend on how many scenarios are run.
    error = FAMILY_ERROR / len(SCENARIOS)
    found = {}
    for label, these in runs.items():
        paired = {
            f"versus_{other}": versus(these.energy, runs[other].energy, standard, error)
            for other in CONTROLS
        }
        found[label] = outcome(label, these, standard, fidelity, predictions[label], error, paired)
    return ScenarioReport(standard, fidelity, count, found, failure)


# The report as plain data: for JSON, and as a tidy table


def to_record(report: CollapseReport) -> dict[str, Any]:
    """Return a report as plain data for JSON, without infinite or undefined numbers.

    Keys: `rule`, `source`, `seed`, `version`, `verdict`, `sentence`, `failed_controls`, and
    `scenarios`, each with `name`, `about`, `scenario` (its fields), `fidelity`, `runs`, `failure`,
    `partitions` (first and last direction), `verdict` and `sentence` of the rule, and `rules`: by
    label, `verdict`, `partitions`, `prediction` (`source`, `verdict`), `extinct_round`, `notes` and
    `numbers`, a list of rows as in `to_frame`. A null means not measured or not predicted, an end
    without bound, or an infinite half-life or round.
    """
    return {
        "rule": report.rule,
        "source": report.source,
        "seed": report.seed,
        "version": __version__,
        "verdict": str(report.verdict),
        "sentence": report.sentence,
        "failed_controls": list(report.failed_controls),
        "scenarios": [_scenario_record(part, report.rule) for part in report.scenarios],
    }


def to_frame(report: CollapseReport) -> pd.DataFrame:
    """Return one row per scenario, rule, partition and kind of number.

    Columns: `scenario`, `fidelity`, `rule`, `partition` (from 1; 1 is the shared one), `kind`,
    `value`, `low`, `high`, `runs`, `predicted`, `agreement` and `verdict`, the rule's in the
    scenario.
    """
    import pandas as pd  # only needed here

    return pd.DataFrame(
        {
            "scenario": part.standard.name,
            "fidelity": part.fidelity,
            "rule": label,
            **row,
            "verdict": str(own.verdict),
        }
        for part in report.scenarios
        for label, own in part.rules.items()
        for row in _rows(own)
    )


def _rows(own: Outcome) -> list[dict[str, Any]]:
    rows = []
    for kind, found in own.numbers.items():
        predicted = own.prediction.values.get(kind, np.full(len(found.value), np.nan))
        ends = {"value": found.value, "low": found.low, "high": found.high, "predicted": predicted}
        made = {kind: ends}
        if kind == "rate":  # a half-life is another form of a rate
            made["half_life"] = {name: half_lives(x) for name, x in ends.items()}
        for name, columns in made.items():
            rows += [
                {
                    "partition": h + 1,
                    "kind": name,
                    **{end: float(x[h]) for end, x in columns.items()},
                    "runs": found.samples,
                    "agreement": str(own.agreement[kind][h]),
                }
                for h in range(len(found.value))
            ]
    return rows


def _scenario_record(part: ScenarioReport, label: str) -> dict[str, Any]:
    standard = part.standard
    return {
        "name": standard.name,
        "about": standard.about,
        "scenario": _fields(standard, part.fidelity),
        "fidelity": part.fidelity,
        "runs": part.runs,
        "failure": part.failure,
        "window": list(standard.window),
        "partitions": [[p.start + 1, p.stop] for p in standard.scenario.federation.partitions],
        "verdict": str(part.verdict(label)),
        "sentence": part.sentence(label),
        "rules": {name: _outcome(own) for name, own in part.rules.items()},
    }


def _fields(standard: Standard, fidelity: str) -> dict[str, Any]:
    attrs = standard.at(fidelity).to_attrs()
    return {name: _plain(value) for name, value in attrs.items()}


def _outcome(own: Outcome) -> dict[str, Any]:
    verdict = own.prediction.verdict
    return {
        "verdict": str(own.verdict),
        "partitions": [str(found) for found in own.partitions],
        "prediction": {
            "source": own.prediction.source,
            "verdict": None if verdict is None else str(verdict),
        },
        "extinct_round": [_plain(x) for x in own.extinct_rounds],
        "notes": list(own.notes),
        "numbers": [{name: _plain(x) for name, x in row.items()} for row in _rows(own)],
    }


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


# Verdicts as sentences, with all numbers, their intervals, and those of FedAvg and raFLoRA

UNTRUSTED = "The controls failed: do not trust this report."
EVERYTHING = "it loses everything, the shared directions too"
WIDTH = 100


def of_scenario(rules: Mapping[str, Outcome], label: str, standard: Standard) -> str:
    """Return the verdict on a rule in a scenario."""
    return f"{label} {_verb(rules[label].verdict)}: {_evidence(rules, label, standard)}."


def of_report(report: CollapseReport) -> str:
    """Return the verdict on a rule over all scenarios, with the numbers of the deciding one."""
    verdict = report.verdict
    titles: dict[Collapse, list[str]] = {}
    for part in report.scenarios:
        titles.setdefault(part.verdict(report.rule), []).append(part.standard.title)
    first = next(p for p in report.scenarios if p.verdict(report.rule) is verdict)
    held, total = titles[verdict], len(report.scenarios)
    where = f"in {len(held)} of {total} scenarios ({', '.join(held)})"
    if len(held) == total:
        where = f"in all {total} scenarios" if total > 1 else f"in {held[0]}"
    text = f"{report.rule} {_verb(verdict)} {where}"
    if report.rule in first.rules:
        evidence = _evidence(first.rules, report.rule, first.standard)
        text += f". At {first.standard.title}, {evidence}"
    rest = [f"It {_verb(v)} in {', '.join(t)}" for v, t in titles.items() if v is not verdict]
    text = ". ".join([text, *rest]) + "."
    return f"{UNTRUSTED} {text}" if report.failed_controls else text


def in_full(report: CollapseReport) -> str:
    """Return verdict, that of each scenario, disagreements with the theory, and the criteria."""
    lines = [report.sentence, ""]
    for part in report.scenarios:
        lines.append(f"{part.standard.title} ({part.fidelity}, {part.runs:,} runs):")
        lines.append(f"  Federation: {part.standard.federation_text}.")
        lines.append(f"  {part.sentence(report.rule)}")
        own = part.rules.get(report.rule)
        lines += [f"  Note: {note}." for note in (own.notes if own else ())]
        lines += [f"  {_against_theory(own)}"] if own else []
    lines += ["", f"Decided by simultaneous 95% intervals; {CRITERIA}."]
    lines += [f"Control failed: {text}." for text in report.failed_controls]
    return "\n".join(textwrap.fill(x, WIDTH, subsequent_indent="    ") for x in lines)


def _evidence(rules: Mapping[str, Outcome], label: str, standard: Standard) -> str:
    own = rules[label]
    h = telling_partition(own)
    rate, extinct = own.numbers["relative_rate"], own.numbers["extinct"]
    if own.verdict is Collapse.COLLAPSES and min(extinct.low[0], extinct.low[h]) > MOST:
        return f"{EVERYTHING} (extinct in {extinct_text(own, h)})"
    if np.isnan(rate.value[h]):
        return f"above the shared rank {standard.levels[0]} nothing could be measured"
    lives = half_life_text(rate, h)
    details = [f"half-life {lives} rounds"] if lives else []
    if own.verdict is Collapse.KEEPS:
        left, late = share_text(own.numbers["left"], h), own.numbers["relative_late"]
        details.append(f"late in the run it {change_text(late, h)}, at {left} of its start")
    elif extinct.value[h] > 0:
        details.append(f"extinct in {extinct_text(own, h)}")
    inside = "; ".join(details)
    others = ", ".join(
        f"{rule_name(key)} {change_text(rules[key].numbers['relative_rate'], h)}"
        for key in CONTROLS
        if key != label
    )
    change = change_text(rate, h)
    said = f"it {change} of its energy" if change.startswith("loses") else f"its energy {change}"
    place = f"above the shared rank {standard.levels[0]} (directions {directions(standard, h)})"
    against = "relative to the shared directions" if standard.relative else "itself"
    return f"{place} {said} a round, {against}" + (f" ({inside})" if inside else "") + f"; {others}"


def _verb(verdict: Collapse) -> str:
    return "is undecided" if verdict is Collapse.UNDECIDED else str(verdict)


def _against_theory(own: Outcome) -> str:
    """Return the number of numbers that agree with their predictions, and those that do not."""
    prediction = own.prediction
    told = "" if prediction.verdict is None else f" Predicted: {prediction.verdict}."
    found = [(name, a) for name, each in own.agreement.items() for a in each if a in _COMPARED]
    if not found:
        return f"Theory: {prediction.source}.{told}"
    agree = sum(a is Agreement.AGREES for _, a in found)
    others = "".join(
        f"; {a}: {', '.join(sorted({name for name, b in found if b is a}))}"
        for a in _COMPARED[1:]
        if any(b is a for _, b in found)
    )
    return f"Theory: {prediction.source}.{told} {agree} of {len(found)} numbers agree{others}."


_COMPARED = (Agreement.AGREES, Agreement.DISAGREES, Agreement.UNDECIDED)


# The table: partitions as rows, the rule with FedAvg and raFLoRA

SIGNS = {
    Agreement.AGREES: "✓",
    Agreement.DISAGREES: "✗",
    Agreement.UNDECIDED: "?",
}
NO_UNITS = str.maketrans("", "", "%×")
CAPTION = (
    "Energy lost a round by each partition itself, and relative to the shared directions of the "
    "same run (flow: itself), which decides the verdict; FedAvg and raFLoRA relative too. "
    "Simultaneous 95% intervals; none: the same in every run. Theory: ✓ agrees, ✗ disagrees, "
    "? undecided. A negative loss is growth, ×3 threefold. Left: in the last quarter of "
    "the rounds, relative to the shared directions (flow: over the start). Extinct: share of runs, "
    "and round by which half were. ρ: share of the shared directions in the energy at the end."
)


def of(report: CollapseReport) -> Table:
    """Return table: losses per round, half-lives, remaining energy, extinction, shared ratio."""
    table = Table(
        title="Energy lost a round, half-lives, and what is left",
        box=SIMPLE,
        caption=CAPTION,
        caption_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("scenario", min_width=16, max_width=16)
    table.add_column("dir.", no_wrap=True)
    others = [rule_name(key) for key in CONTROLS if key != report.rule]
    names = ("itself", "theory", "relative", "half-life, rounds", "left", "extinct")
    for name in (*names, *others):
        table.add_column(name, justify="right", overflow="fold")
    for part in report.scenarios:
        own = part.rules.get(report.rule)
        if own is None:
            table.add_row(part.standard.title, "", "not run")
            continue
        ratio = share_text(own.numbers["rho"], 0).removeprefix(EXACTLY).partition(" [")[0]
        heads = (part.standard.title, _verdict(own), f"ρ {ratio}")
        for h in range(len(part.standard.levels)):
            table.add_row(heads[h], *_row(part, own, h, report.rule))
        table.add_section()
    return table


def _row(part: ScenarioReport, own: Outcome, h: int, label: str) -> list[str]:
    rate, predicted = own.numbers["rate"], own.prediction.values.get("rate")
    relative = own.numbers["relative_rate"]
    sign = SIGNS.get(own.agreement["rate"][h], "")
    told = NONE if predicted is None else f"{_loss(predicted[h])} {sign}".strip()
    lives = half_life_text(relative, h) or ("never" if np.isfinite(relative.value[h]) else NONE)
    others = [part.rules[key].numbers["relative_rate"].value[h] for key in CONTROLS if key != label]
    extinct, by = own.numbers["extinct"], own.extinct_rounds[h]
    lost, bracket, ends = share_text(extinct, h).partition(" [")
    lost += (f", {by:.0f}" if np.isfinite(by) else "") + bracket + ends
    cells = [
        directions(part.standard, h),
        loss_text(rate, h),
        told,
        loss_text(relative, h),
        lives,
        share_text(own.numbers["left"], h),
        lost if extinct.value[h] > 0 else "no",
        *(NONE if np.isnan(factor) else _loss(factor) for factor in others),
    ]
    return [_stacked(cell) for cell in cells]


def _stacked(text: str) -> str:
    """Return an interval below its value, in the same unit."""
    value, _, ends = text.removeprefix(EXACTLY).partition(" [")
    return f"{value}\n[{ends.translate(NO_UNITS)}" if ends else value


def _loss(factor: float) -> str:
    return times(factor, DIGITS) if factor >= DOUBLES else share_or_factor(1 - factor)


def _verdict(own: Outcome) -> str:
    """Return the verdict without a mark: marks of the table refer to the theory only."""
    return str(own.verdict)
