"""Studies as TOML files: read, and checked to the last row before anything is run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from analysis.real.study import HIGHEST, LOWEST, MIXED, PATHS, Study, check_rules
from fedlora_sim import Scenario, parse_ranks
from fedlora_sim.errors import check_choice, check_positive_int, check_seed, check_share, expected
from fedlora_sim.rules import get_rule

PACKAGED = "analysis.real.studies"
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
"""Fields that are the study's, not a heterogeneity's."""
STUDYS_OWN = {
    "counterfactuals": "see counterfactual_rules",
    "task_seed": "every run's is its own seed",
}
"""Fields that differ from run to run, and what says so instead."""
MACHINE = {*PATHS, "threads", "device"}
"""Fields that say where a study is run, not what it is: a change of another is another study."""


def study_names() -> list[str]:
    """Studies that come with the package."""
    found = (Path(entry.name) for entry in files(PACKAGED).iterdir())
    return sorted(path.stem for path in found if path.suffix == ".toml")


def study_about(name: str) -> str:
    """What a study that comes with the package is about."""
    return str(_read(name)["about"])


def load_study(source: str, changes: Mapping[str, Any] | None = None) -> Study:
    """A study from a TOML file, or one of those that come with the package by its name.

    Args:
        source: path of a file that ends in .toml, or a name of `study_names`.
        changes: scenario fields that win over the file's: where model and data are.

    Raises:
        InputError: naming the field, its value and what was expected; every scenario and rule of
            the study is checked, not only the first.
    """
    return study_of(_read(source), changes or {})


def _read(source: str) -> dict[str, Any]:
    try:
        if source.endswith(".toml"):
            return tomllib.loads(Path(source).read_text(encoding="utf-8"))
        name = check_choice("study", source, study_names())
        return tomllib.loads((files(PACKAGED) / f"{name}.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise expected("study", source, f"a readable TOML file ({error})") from None


def study_of(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Study:
    """A study from the tables of its TOML file; see `load_study`."""
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
    """Refuse fields that no study has, are missing, or of another kind than they should be."""
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
    """Refuse what a run would: every scenario is made, and with that checked."""
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
        allocation = run.scenario.allocation
        if get_rule(run.rule).needs_svd_allocation and allocation != "svd":
            raise expected("allocation", allocation, f"svd for rule={run.rule!r}")
