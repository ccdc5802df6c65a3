"""Domains: the runs of a seed by role, from a TOML file, made once and kept."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from analysis.studies.drift_law.law_claims import DILUTED, FEW
from analysis.studies.study import PATHS
from fedlora_sim import Scenario, simulate
from fedlora_sim.errors import check_choice, check_positive_int, check_seed, expected
from fedlora_sim.finetune.checkpoints import load_state
from fedlora_sim.finetune.run import evaluate
from fedlora_sim.rules import get_rule
from fedlora_sim.run_store import RunStore
from fedlora_sim.storage import code_versions, temporary_folder
from fedlora_sim.tasks.loading import load_task

PACKAGED = files("analysis") / "studies" / "drift_law"
FIELDS = {
    "name": str,
    "about": str,
    "seeds": int,
    "first_seed": int,
    "scenario": dict,
    "runs": dict,
}
CODE = "code"
"""Attribute of a run: hash of the simulator's sources that made it."""
PLACES = (*PATHS, "threads", "device")
"""Fields that say where the runs are made, and are no part of a domain."""


@dataclass(frozen=True)
class Domain:
    """The runs on one task.

    Args:
        name: name of the domain.
        about: one line about it.
        seeds: seed of the task, the split, the cohorts and the training.
        runs: scenario and rule of each role.
    """

    name: str
    about: str
    seeds: tuple[int, ...]
    runs: Mapping[str, tuple[Scenario, str]]

    def first(self, seeds: int) -> Domain:
        """Return the domain with its first seeds alone.

        Raises:
            InputError: if it has fewer.
        """
        if check_positive_int("seeds", seeds) > len(self.seeds):
            raise expected("seeds", seeds, f"at most the {len(self.seeds)} of the domain")
        return replace(self, seeds=self.seeds[:seeds])


def domain_names() -> list[str]:
    """Return the names of the domains in the package."""
    found = (Path(entry.name) for entry in PACKAGED.iterdir())
    return sorted(path.stem for path in found if path.suffix == ".toml")


def load_domain(source: str, changes: Mapping[str, Any] | None = None) -> Domain:
    """Return a domain from a TOML file, or from the package by name.

    Args:
        source: path of a file that ends in .toml, or one of `domain_names`.
        changes: fields of all scenarios that replace those of the file, such as paths.

    Raises:
        InputError: names the field, its value and what was expected.
    """
    try:
        if source.endswith(".toml"):
            values = tomllib.loads(Path(source).read_text(encoding="utf-8"))
        else:
            name = check_choice("domain", source, domain_names())
            values = tomllib.loads((PACKAGED / f"{name}.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise expected("domain", source, f"a readable TOML file ({error})") from None
    for field, kind in FIELDS.items():
        if not isinstance(values.get(field), kind):
            raise expected(field, values.get(field), f"a value of type {kind.__name__}")
    for field in values:
        check_choice("domain field", field, FIELDS)
    runs = {}
    for role, own in values["runs"].items():
        fields = {"fidelity": "training", **values["scenario"], **own, **(changes or {})}
        rule = get_rule(fields.pop("rule", "fedavg")).label
        runs[role] = (Scenario.from_mapping(fields), rule)
    first = check_seed("first_seed", values["first_seed"])
    count = check_positive_int("seeds", values["seeds"])
    return Domain(values["name"], values["about"], tuple(range(first, first + count)), runs)


def make_runs(
    domain: Domain, out: Path, on_progress: Callable[[str, int], object] = lambda role, seed: None
) -> dict[str, list[xr.Dataset]]:
    """Return the runs of each role, one per seed; those that are stored are not made again.

    Args:
        domain: the domain.
        out: folder of the stored runs.
        on_progress: called with role and seed of each run that is available.
    """
    found: dict[str, list[xr.Dataset]] = {role: [] for role in domain.runs}
    for seed in domain.seeds:
        for role, (scenario, rule) in domain.runs.items():
            fields = {n: v for n, v in asdict(scenario).items() if n not in PLACES}
            store = RunStore(out / "runs", {"scenario": fields, "rule": rule})
            dataset = store.get_run(f"seed-{seed}")
            if dataset is None:
                dataset = _made(scenario.replace(task_seed=seed), rule, seed, out, role in FEW)
                store.put_run(f"seed-{seed}", dataset)
            found[role].append(dataset)
            on_progress(role, seed)
    return found


def _made(scenario: Scenario, rule: str, seed: int, out: Path, dilute: bool) -> xr.Dataset:
    started = time.process_time()
    if dilute:
        out.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out / "state") as folder:
            dataset = simulate(scenario, rule=rule, seed=seed, checkpoints=folder)
            dataset.attrs[DILUTED] = diluted_accuracy(dataset, scenario, folder)
    else:
        dataset = simulate(scenario, rule=rule, seed=seed)
    code = {CODE: code_versions()["code"]}
    return dataset.assign_attrs(cpu_seconds=time.process_time() - started, **code)


# The final update with every partition diluted by its coverage


def diluted_accuracy(dataset: xr.Dataset, scenario: Scenario, checkpoints: Path) -> float:
    """Return the accuracy of a run's final update with each direction scaled by its coverage.

    Args:
        dataset: the run, of one seed.
        scenario: its scenario.
        checkpoints: folder in which the run has stored its last state.
    """
    task = load_task(scenario)
    folder = checkpoints / f"seed-{int(dataset.seed[0])}"
    state = load_state(folder, scenario.rounds, task.device)
    share = torch.tensor(dataset.coverage.isel(seed=0).values)
    deltas = {
        name: (u * (s * share[: len(s)].to(s))) @ vh
        for name, (u, s, vh) in state.svd(max(scenario.ranks)).items()
    }
    return evaluate(task, deltas, state.heads)[0]
