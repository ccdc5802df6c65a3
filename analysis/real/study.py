"""A study: rules, rank configurations and heterogeneities on one real task, and what runs it takes.

Every heterogeneity has seeds of its own, so that all pairs of runs of one rule are independent;
rules meet the same seeds, so that their difference is the rule's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedlora_sim import Scenario
from fedlora_sim.aggregation import get_rule
from fedlora_sim.errors import check_choice, check_positive_int, check_seed, expected

FIELDS = {
    "name": str,
    "rules": list,
    "seeds": int,
    "first_seed": int,
    "target_accuracy": float,
    "scenario": dict,
    "heterogeneity": dict,
    "rank_configurations": dict,
    "compared_rules": list,
    "compared_heterogeneity": str,
    "counterfactual_rules": list,
}
MIXED, LOWEST, HIGHEST = "mixed", "equal_lowest", "equal_highest"


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Args:
        label: unique in the study; its file's name.
        scenario: what is fine-tuned.
        rule: the server rule.
        seed: of the run.
        heterogeneity: name of the split.
        configuration: `mixed`, `equal_lowest`, `equal_highest`, or a name of the study's own.
    """

    label: str
    scenario: Scenario
    rule: str
    seed: int
    heterogeneity: str
    configuration: str


@dataclass(frozen=True)
class Study:
    """What is compared on one task.

    Args:
        name: of the study.
        scenario: fields that all runs share; its ranks are the `mixed` configuration.
        rules: server rules, each run under every heterogeneity.
        heterogeneity: name -> scenario fields of a split.
        seeds: runs of each.
        first_seed: seeds count from here, `seeds` of them for each heterogeneity in turn.
        target_accuracy: for the rounds that a run takes to reach it.
        rank_configurations: further ranks by name, run under `compared_rules` and
            `compared_heterogeneity` alone.
        compared_rules: see above.
        compared_heterogeneity: see above.
        counterfactual_rules: rules in whose runs of the mixed ranks every cohort is aggregated by
            all others as well.
    """

    name: str
    scenario: Scenario
    rules: tuple[str, ...]
    heterogeneity: Mapping[str, Mapping[str, Any]]
    seeds: int
    first_seed: int
    target_accuracy: float
    rank_configurations: Mapping[str, str]
    compared_rules: tuple[str, ...]
    compared_heterogeneity: str
    counterfactual_rules: tuple[str, ...]

    def runs(self) -> list[StudyRun]:
        """All runs, equal-rank references of the lowest and the highest rank among them."""
        ranks, clients = self.scenario.federation.levels, len(self.scenario.ranks)
        equal = {LOWEST: f"{ranks[0]}x{clients}", HIGHEST: f"{ranks[-1]}x{clients}"}
        found = []
        for number, name in enumerate(self.heterogeneity):
            first = self.first_seed + number * self.seeds
            for seed in range(first, first + self.seeds):
                found += [self._run(name, MIXED, rule, seed) for rule in self.rules]
                found += [self._run(name, c, "fedavg", seed, ranks=r) for c, r in equal.items()]
                if name == self.compared_heterogeneity:
                    found += [
                        self._run(name, configuration, rule, seed, ranks=own)
                        for configuration, own in self.rank_configurations.items()
                        for rule in self.compared_rules
                    ]
        return found

    def _run(self, name: str, configuration: str, rule: str, seed: int, **changes: Any) -> StudyRun:
        both = configuration == MIXED and rule in self.counterfactual_rules
        fields = {"counterfactuals": both, **self.heterogeneity[name], **changes}
        scenario = self.scenario.replace(**fields)
        parts = (name, configuration, rule.replace(":", "-").replace("=", "-"), f"seed-{seed}")
        label = "_".join(part.replace(" ", "-") for part in parts)
        return StudyRun(label, scenario, rule, seed, name, configuration)


def load_study(source: str, changes: Mapping[str, Any] | None = None) -> Study:
    """A study from a TOML file, or one of those that come with the package by its name.

    Args:
        source: path of the file, or a name of `study_names`.
        changes: scenario fields that win over the file's: where model and data are.

    Raises:
        InputError: naming the field, its value and what was expected; every scenario and rule of
            the study is checked, not only the first.
    """
    path = Path(source)
    if not path.exists():
        check_choice("study", source, study_names())
        path = Path(str(files("analysis.real.studies") / f"{source}.toml"))
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise expected("study", str(path), f"a readable TOML file ({error})") from None
    return study_of(values, changes or {})


def study_names() -> list[str]:
    """Studies that come with the package."""
    found = (Path(str(entry)) for entry in files("analysis.real.studies").iterdir())
    return sorted(path.stem for path in found if path.suffix == ".toml")


def study_of(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Study:
    """A study from the tables of its TOML file."""
    for name, value in values.items():
        kind = FIELDS[check_choice("study field", name, FIELDS)]
        if not isinstance(value, (int, float) if kind is float else kind):
            raise expected(name, value, f"a {kind.__name__}")
    for name in ("name", "rules", "seeds", "scenario", "heterogeneity"):
        if not values.get(name):
            raise expected(name, values.get(name), "what a study cannot do without")
    fields = {"fidelity": "training", **values["scenario"], **changes}
    splits = values["heterogeneity"]
    compared = values.get("compared_heterogeneity", next(iter(splits)))
    study = Study(
        name=values["name"],
        scenario=Scenario.from_mapping(fields),
        rules=_rules(values["rules"]),
        heterogeneity=splits,
        seeds=check_positive_int("seeds", values["seeds"]),
        first_seed=check_seed("first_seed", values.get("first_seed", 0)),
        target_accuracy=float(values.get("target_accuracy", 0.8)),
        rank_configurations=values.get("rank_configurations", {}),
        compared_rules=_rules(values.get("compared_rules", ["fedavg", "raflora"])),
        compared_heterogeneity=check_choice("compared_heterogeneity", compared, splits),
        counterfactual_rules=_rules(values.get("counterfactual_rules", [])),
    )
    if study.scenario.fidelity != "training":
        raise expected("fidelity", study.scenario.fidelity, "training: a study fine-tunes")
    study.runs()  # every scenario is made, and with that checked
    return study


def _rules(names: Sequence[str]) -> tuple[str, ...]:
    labels = tuple(get_rule(name).label for name in names)
    if len(set(labels)) != len(labels):
        raise expected("rules", list(names), "each rule once")
    return labels
