"""A collapse report as plain data: for JSON, and as a tidy table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.collapse.outcome import Outcome
from analysis.collapse.scenarios import Standard
from analysis.collapse.words import half_lives
from fedlora_sim.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from analysis.collapse.report import CollapseReport, ScenarioReport


def to_record(report: CollapseReport) -> dict[str, Any]:
    """A report as plain data for JSON; no number in it is infinite or undefined.

    Keys: `rule`, `source`, `seed`, `version`, `verdict`, `sentence`, `failed_controls`, and
    `scenarios`, each with `name`, `about`, `scenario` (its fields), `fidelity`, `runs`, `failure`,
    `partitions` (first and last direction), `verdict` and `sentence` of the rule, and `rules`: by
    label, `verdict`, `partitions`, `prediction` (`source`, `verdict`), `extinct_round`, `notes`
    and `numbers`, a list of rows as in `to_frame`. A null stands for what was not measured or not
    predicted, for an end without bound, and for a half-life or a round that never comes.
    """
    return {
        "rule": report.rule,
        "source": report.source,
        "seed": report.seed,
        "version": __version__,
        "verdict": str(report.verdict),
        "sentence": report.sentence,
        "failed_controls": list(report.failed_controls),
        "scenarios": [_scenario(part, report.rule) for part in report.scenarios],
    }


def to_frame(report: CollapseReport) -> pd.DataFrame:
    """One row per scenario, rule, partition and kind of number.

    Columns: `scenario`, `fidelity`, `rule`, `partition` (from 1; 1 is the shared one), `kind`,
    `value`, `low`, `high`, `runs`, `predicted`, `agreement` and `verdict`, the rule's in the
    scenario.
    """
    import pandas as pd  # nothing else here needs it

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
        if kind == "rate":  # a half-life is a rate in other words
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


def _scenario(part: ScenarioReport, label: str) -> dict[str, Any]:
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
