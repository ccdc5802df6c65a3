"""A study: rules, rank configurations and heterogeneities on one real task, and its runs.

A seed determines all random draws of its run: the task's samples, new parameters, the split,
cohorts and batches. Each heterogeneity has its own seeds, and all rules use the same seeds, so that
their difference is due to the rule.

The i-th seeds of all heterogeneities form replicate i of the study. Heterogeneities are chosen, not
drawn, and their runs differ in mean and spread. A statement about all of them together therefore
has as many independent samples as the study has replicates, not as it has runs.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedlora_sim import Scenario, parse_ranks
from fedlora_sim.errors import check_choice, check_positive_int, check_seed, check_share, expected
from fedlora_sim.rules import get_rule
from fedlora_sim.simulate import check_suits

MIXED, LOWEST, HIGHEST = "mixed", "equal_lowest", "equal_highest"
PATHS = ("model", "data", "test_data")
"""Fields with local paths, which are not part of the definition of a study."""
NO_NAME = r"[^\w.]+"  # spaces and characters of options: raflora:canonicalize=true


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Args:
        scenario: the scenario.
        rule: the server rule.
        seed: seed of the run.
        heterogeneity: name of the split.
        configuration: `mixed`, `equal_lowest`, `equal_highest`, or a name defined by the study.
    """

    scenario: Scenario
    rule: str
    seed: int
    heterogeneity: str
    configuration: str

    @property
    def label(self) -> str:
        """Unique name in the study."""
        parts = (self.heterogeneity, self.configuration, self.rule, f"seed-{self.seed}")
        return "_".join(re.sub(NO_NAME, "-", part) for part in parts)


@dataclass(frozen=True)
class Study:
    """A comparison on one task.

    Args:
        name: name of the study.
        about: one line about the study.
        scenario: fields that all runs share; its ranks are the `mixed` configuration.
        rules: server rules, each run under every heterogeneity.
        heterogeneity: scenario fields of each heterogeneity by name.
        seeds: seeds of each heterogeneity by name.
        target_accuracy: accuracy for counting the rounds to reach it.
        rank_configurations: further ranks by name, run under `compared_rules` only.
        compared_rules: see `rank_configurations`.
        counterfactual_rules: rules in whose runs of the mixed ranks each cohort is also aggregated
            by all other rules that train the same factors.
        complete: whether it is the unchanged whole of its file.
    """

    name: str
    about: str
    scenario: Scenario
    rules: tuple[str, ...]
    heterogeneity: Mapping[str, Mapping[str, Any]]
    seeds: Mapping[str, tuple[int, ...]]
    target_accuracy: float
    rank_configurations: Mapping[str, Any]
    compared_rules: tuple[str, ...]
    counterfactual_rules: tuple[str, ...]
    complete: bool = True

    def runs(self) -> list[StudyRun]:
        """Return all runs, including equal-rank references of the lowest and the highest rank."""
        ranks, clients = self.scenario.federation.levels, len(self.scenario.ranks)
        equal = {LOWEST: f"{ranks[0]}x{clients}", HIGHEST: f"{ranks[-1]}x{clients}"}
        found = []
        for name, seeds in self.seeds.items():
            for seed in seeds:
                found += [self._run(name, MIXED, rule, seed) for rule in self.rules]
                found += [self._run(name, c, "fedavg", seed, ranks=r) for c, r in equal.items()]
                found += [
                    self._run(name, configuration, rule, seed, ranks=own)
                    for configuration, own in self.rank_configurations.items()
                    for rule in self.compared_rules
                ]
        return found

    def replicate(self, heterogeneity: str, seed: int) -> int:
        """Return the number of the replicate to which a run belongs."""
        return self.seeds[heterogeneity].index(seed)

    def part(
        self,
        rules: Sequence[str] | None = None,
        heterogeneity: Sequence[str] | None = None,
        seeds: int | None = None,
    ) -> Study:
        """Return a part of the study, whose runs are runs of the whole.

        Args:
            rules: rules to keep; all when None. Equal-rank references are kept.
            heterogeneity: names to keep; all when None.
            seeds: number of first seeds of each heterogeneity to keep; all when None.

        Raises:
            InputError: names what the study does not have.
        """
        chosen = self.rules if rules is None else check_rules(rules)
        _check_among("rules", chosen, self.rules)
        names = list(self.heterogeneity) if heterogeneity is None else list(heterogeneity)
        _check_among("heterogeneity", names, list(self.heterogeneity))
        most = min(len(own) for own in self.seeds.values())
        count = most if seeds is None else check_positive_int("seeds", seeds)
        if count > most:
            raise expected("seeds", seeds, f"at most the {most} of the study")
        part = replace(
            self,
            rules=tuple(rule for rule in self.rules if rule in chosen),
            heterogeneity={n: own for n, own in self.heterogeneity.items() if n in names},
            seeds={n: own[:count] for n, own in self.seeds.items() if n in names},
            compared_rules=tuple(rule for rule in self.compared_rules if rule in chosen),
        )
        return replace(part, complete=self.complete and part == self)

    def _run(self, name: str, configuration: str, rule: str, seed: int, **changes: Any) -> StudyRun:
        both = configuration == MIXED and rule in self.counterfactual_rules
        fields = {"counterfactuals": both, "task_seed": seed, **self.heterogeneity[name], **changes}
        # check all fields, not only the changed ones: the error for a wrong name suggests the
        # closest
        scenario = Scenario.from_mapping(asdict(self.scenario) | fields)
        return StudyRun(scenario, rule, seed, name, configuration)


def check_rules(names: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of rules; each must be known and occur once."""
    labels = tuple(get_rule(name).label for name in names)
    if len(set(labels)) != len(labels):
        raise expected("rules", list(names), "each rule once")
    return labels


def _check_among(argument: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise expected(argument, name, f"one of the study's: {', '.join(known)}")
    if not names:
        raise expected(argument, list(names), f"one or more of the study's: {', '.join(known)}")


# Studies as TOML files, checked to the last row before anything is run

PACKAGED = files("analysis") / "studies"
FIELDS = {
    "name": str,
    "about": str,
    "rules": list,
    "seeds": int,
    "first_seed": int,
    "target_accuracy": float,
    "scenario": dict,
    "heterogeneity": dict,
    "rank_configurations": dict,
    "compared_rules": list,
    "counterfactual_rules": list,
}
NEEDED = ("name", "rules", "seeds", "scenario", "heterogeneity")
NO_SPLIT = ("fidelity", "ranks", "counterfactuals", "task_seed")
"""Fields of the study, not of a heterogeneity."""
STUDYS_OWN = {
    "counterfactuals": "see counterfactual_rules",
    "task_seed": "every run's is its own seed",
}
"""Fields that differ from run to run, and the study's fields that set them."""
MACHINE = {*PATHS, "threads", "device"}
"""Fields that define where a study runs; a change of any other field gives another study."""


def study_names() -> list[str]:
    """Return the names of the studies in the package."""
    found = (Path(entry.name) for entry in PACKAGED.iterdir())
    return sorted(path.stem for path in found if path.suffix == ".toml")


def study_about(name: str) -> str:
    """Return the description of a study in the package."""
    return str(_read(name)["about"])


def load_study(source: str, changes: Mapping[str, Any] | None = None) -> Study:
    """Return a study from a TOML file, or from the package by name.

    Args:
        source: path of a file that ends in .toml, or a name of `study_names`.
        changes: scenario fields that replace those of the file, such as paths of model and data.

    Raises:
        InputError: names the field, its value and what was expected; all scenarios and rules of the
            study are checked.
    """
    return study_of(_read(source), changes or {})


def _read(source: str) -> dict[str, Any]:
    try:
        if source.endswith(".toml"):
            return tomllib.loads(Path(source).read_text(encoding="utf-8"))
        name = check_choice("study", source, study_names())
        return tomllib.loads((PACKAGED / f"{name}.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise expected("study", source, f"a readable TOML file ({error})") from None


def study_of(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Study:
    """Return a study from the tables of its TOML file; see `load_study`."""
    _check_kinds(values)
    fields = {"fidelity": "training", **values["scenario"], **changes}
    for name, instead in STUDYS_OWN.items():
        if name in fields:
            raise expected(name, fields[name], f"none in [scenario]: {instead}")
    splits = values["heterogeneity"]
    first, count = check_seed("first_seed", values.get("first_seed", 0)), values["seeds"]
    starts = range(first, first + count * len(splits), count)
    study = Study(
        name=values["name"],
        about=values.get("about", ""),
        scenario=Scenario.from_mapping(fields),
        rules=check_rules(values["rules"]),
        heterogeneity=splits,
        seeds={n: tuple(range(a, a + count)) for n, a in zip(splits, starts, strict=True)},
        target_accuracy=check_share("target_accuracy", values.get("target_accuracy", 0.8)),
        rank_configurations=values.get("rank_configurations", {}),
        compared_rules=check_rules(values.get("compared_rules", ["fedavg", "raflora"])),
        counterfactual_rules=check_rules(values.get("counterfactual_rules", [])),
        complete=not changes.keys() - MACHINE,
    )
    _check_runs(study)
    return study


def _check_kinds(values: Mapping[str, Any]) -> None:
    """Refuse unknown or missing fields, and fields of the wrong type."""
    for name, value in values.items():
        kind = FIELDS[check_choice("study field", name, FIELDS)]
        if not isinstance(value, (int, float) if kind is float else kind):
            raise expected(name, value, f"a value of type {kind.__name__}")
    for name in NEEDED:
        if not values.get(name):
            raise expected(name, values.get(name), "what a study cannot do without")
    check_positive_int("seeds", values["seeds"])
    for split, fields in values["heterogeneity"].items():
        if not isinstance(fields, dict):
            raise expected(f"heterogeneity {split!r}", fields, "a table of scenario fields")
        for name in NO_SPLIT:
            if name in fields:
                raise expected(name, fields[name], f"no such field in heterogeneity {split!r}")
    for name in values.get("rank_configurations", {}):
        if name in (MIXED, LOWEST, HIGHEST):
            raise expected("rank_configurations", name, "a name that not every study has")


def _check_runs(study: Study) -> None:
    """Refuse invalid scenarios, by creating the scenario of each run."""
    if study.scenario.fidelity != "training":
        raise expected("fidelity", study.scenario.fidelity, "training: a study fine-tunes")
    clients = len(study.scenario.ranks)
    for name, ranks in study.rank_configurations.items():
        if len(parse_ranks(ranks)) != clients:
            wanted = f"{clients} clients, as many as ranks={list(study.scenario.ranks)} has"
            raise expected(f"rank_configurations {name!r}", ranks, wanted)
    labels = set()
    for run in study.runs():
        if run.label in labels:
            raise expected("name", run.label, "names that differ in more than their spaces")
        labels.add(run.label)
        check_suits(run.scenario, get_rule(run.rule))
