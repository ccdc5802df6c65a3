"""A study: rules, rank configurations and heterogeneities on one real task, and what runs it takes.

A seed draws all that is random in its run: the task's samples, new parameters, the split, cohorts
and batches. Every heterogeneity has its own seeds, and rules meet the same seeds, so that their
difference is the rule's.

The i-th seeds of all heterogeneities form replicate i of the study. Heterogeneities are chosen, not
drawn, and their runs differ in mean and spread: what is said of all of them together has as many
independent samples of one law as the study has replicates, not as it has runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedlora_sim import Scenario
from fedlora_sim.errors import check_positive_int, expected
from fedlora_sim.rules import get_rule

MIXED, LOWEST, HIGHEST = "mixed", "equal_lowest", "equal_highest"
PATHS = ("model", "data", "test_data")
"""Fields that say where something is on this machine, and are no part of what a study is."""
NO_FILE_NAME = r"[^\w.]+"  # spaces, and what a rule's options bring: raflora:canonicalize=true


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Args:
        scenario: what is fine-tuned.
        rule: the server rule.
        seed: of the run.
        heterogeneity: name of the split.
        configuration: `mixed`, `equal_lowest`, `equal_highest`, or a name of the study's own.
    """

    scenario: Scenario
    rule: str
    seed: int
    heterogeneity: str
    configuration: str

    @property
    def label(self) -> str:
        """Unique in the study; its file's name."""
        parts = (self.heterogeneity, self.configuration, self.rule, f"seed-{self.seed}")
        return "_".join(re.sub(NO_FILE_NAME, "-", part) for part in parts)


@dataclass(frozen=True)
class Study:
    """What is compared on one task.

    Args:
        name: of the study.
        about: the study in a line.
        scenario: fields that all runs share; its ranks are the `mixed` configuration.
        rules: server rules, each run under every heterogeneity.
        heterogeneity: name -> scenario fields of a split.
        seeds: name of a heterogeneity -> seeds of its runs.
        target_accuracy: for the rounds that a run takes to reach it.
        rank_configurations: further ranks by name, run under `compared_rules` alone.
        compared_rules: see above.
        counterfactual_rules: rules in whose runs of the mixed ranks every cohort is also aggregated
            by all others that train the same factors.
        complete: whether it is all of its file and as its file has it.
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
        """All runs, equal-rank references of the lowest and the highest rank among them."""
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
        """Return the number of the replicate of the study that a run belongs to."""
        return self.seeds[heterogeneity].index(seed)

    def part(
        self,
        rules: Sequence[str] | None = None,
        heterogeneity: Sequence[str] | None = None,
        seeds: int | None = None,
    ) -> Study:
        """A part of the study, whose runs are runs of the whole.

        Args:
            rules: those to keep; all when None. Equal-rank references stay.
            heterogeneity: names of those to keep; all when None.
            seeds: so many of each heterogeneity's, the first ones; all when None.

        Raises:
            InputError: naming what the study does not have.
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
        # of all fields, not of the changed ones alone: a wrong name is refused with the closest
        scenario = Scenario.from_mapping(asdict(self.scenario) | fields)
        return StudyRun(scenario, rule, seed, name, configuration)


def check_rules(names: Sequence[str]) -> tuple[str, ...]:
    """Labels of rules, each of which must be known and there once."""
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
