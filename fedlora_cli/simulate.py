"""`fedlora-sim simulate`: simulate a scenario under several rules into one labeled netCDF file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from fedlora_cli.options import FORCE_HELP, check_folder, load_rule
from fedlora_cli.resume import resumable
from fedlora_cli.scenario_options import (
    Cohort,
    Device,
    Fidelity,
    Ranks,
    Rounds,
    ScenarioFile,
    Settings,
    Task,
    read_scenario,
)
from fedlora_sim import Scenario
from fedlora_sim.errors import check_choice, check_count, expected
from fedlora_sim.rules.external import rule_code
from fedlora_sim.run_store import RunStore
from fedlora_sim.storage import check_file, only_writer, remove_stale, save_dataset

if TYPE_CHECKING:  # torch takes seconds, and the help of a command needs none
    import xarray as xr

    from fedlora_sim.rules import AggregationRule

NO_FILE_NAME = r"[^\w.]+"  # characters of a rule's options: raflora:canonicalize=true
# Runs stored together: large enough for a file, and small enough to lose.
RUNS_PER_PIECE = {"spectral": 1000, "matrix": 50, "training": 1}
MOMENTS_PER_PIECE = {"spectral": 50_000, "matrix": 500}


def simulate(
    out: Annotated[Path, typer.Option(help="netCDF file to write (.nc)")],
    fidelity: Fidelity = None,
    task: Task = None,
    ranks: Ranks = None,
    cohort: Cohort = None,
    rule: Annotated[
        str, typer.Option(help="rules or module:Name, separated by commas")
    ] = "fedavg,raflora",
    rounds: Rounds = None,
    seeds: Annotated[int, typer.Option(help="number of seeds")] = 1,
    first_seed: Annotated[int, typer.Option("--seed", help="the first seed")] = 0,
    scenario: ScenarioFile = None,
    settings: Settings = None,
    device: Device = None,
    keep: Annotated[str, typer.Option(help="runs, or moments: means and quantiles of them")] = (
        "runs"
    ),
    force: Annotated[bool, typer.Option("--force", help=FORCE_HELP)] = False,
) -> None:
    """Simulate federated LoRA under one or several rules and write the labeled dataset."""
    given = {
        "fidelity": fidelity,
        "task": task,
        "ranks": ranks,
        "cohort_size": cohort,
        "rounds": rounds,
        "device": device,
    }
    chosen = read_scenario(scenario, settings, given)
    rules = {server.label: server for server in map(load_rule, rule.split(","))}
    if len(rules) != len(rule.split(",")):
        raise expected("--rule", rule, "each rule once")
    numbers = range(first_seed, first_seed + check_count("--seeds", seeds))
    if out.suffix != ".nc" or out.is_dir():
        raise expected("--out", str(out), "a file name that ends in .nc")
    check_folder("--out", out, out.parent)
    if check_choice("--keep", keep, ("runs", "moments")) == "moments":
        check_choice("fidelity", chosen.fidelity, tuple(MOMENTS_PER_PIECE))
    described = {
        "scenario": chosen.to_attrs(),
        "rules": list(rules),
        "seeds": [numbers.start, numbers.stop],
        "keep": keep,
        **_code_of_others(rules),
    }
    store = RunStore(out.with_name(f".{out.name}.parts"), described)
    check_file(out, "--out", force=force)
    with only_writer(out, "--out", inside=False), resumable(store):
        remove_stale(out.parent)
        collect = _collect if keep == "runs" else _collect_moments
        dataset = collect(chosen, rules, numbers, store)
        check_file(out, "--out", force=force)  # checked again: it may exist by now
        save_dataset(dataset, out)
    print(f"wrote {out}")


def _code_of_others(rules: Mapping[str, AggregationRule]) -> dict[str, str]:
    """Return the code versions of external rules, which distinguish stored results."""
    codes = {label: rule_code(rule) for label, rule in rules.items()}
    return {f"code of {label}": code for label, code in codes.items() if code is not None}


def _collect(
    scenario: Scenario, rules: Mapping[str, AggregationRule], numbers: range, store: RunStore
) -> xr.Dataset:
    """Run what is not in the store yet, and store every finished piece."""
    import xarray as xr

    from fedlora_sim import simulate as run

    by_rule = []
    with tqdm(total=len(rules) * len(numbers), unit="run", disable=None) as bar:
        for name, rule in rules.items():
            bar.set_description(name)
            pieces = []
            size = RUNS_PER_PIECE[scenario.fidelity]
            for start in range(0, len(numbers), size):
                seeds = numbers[start : start + size]
                label = f"{re.sub(NO_FILE_NAME, '-', name)}-{seeds[0]}-{seeds[-1]}"
                piece = store.get_run(label)
                if piece is None:
                    kept = store.folder / label if scenario.fidelity == "training" else None
                    piece = run(
                        scenario, rule=rule, seed=seeds, on_progress=bar.update, checkpoints=kept
                    )
                    store.put_run(label, piece)
                    if kept is not None:  # the rounds of a finished run are not needed any more
                        shutil.rmtree(kept)
                else:
                    bar.update(len(seeds))
                pieces.append(piece)
            merged = xr.concat(pieces, "seed", data_vars="minimal", combine_attrs="override")
            by_rule.append(merged.expand_dims(rule=[name]))
    return xr.concat(by_rule, "rule", data_vars="all", combine_attrs="drop_conflicts")


def _collect_moments(
    scenario: Scenario, rules: Mapping[str, AggregationRule], numbers: range, store: RunStore
) -> xr.Dataset:
    """Return the moments of all runs, and store those of every finished piece."""
    import xarray as xr

    from fedlora_sim.moments import SeedMoments
    from fedlora_sim.simulate import moments_of

    by_rule = []
    with tqdm(total=len(rules) * len(numbers), unit="run", disable=None) as bar:
        for name, rule in rules.items():
            bar.set_description(name)
            moments = SeedMoments(scenario, name)
            size = MOMENTS_PER_PIECE[scenario.fidelity]
            for start in range(0, len(numbers), size):
                seeds = numbers[start : start + size]
                label = f"{re.sub(NO_FILE_NAME, '-', name)}-{seeds[0]}-{seeds[-1]}"
                state = store.get_run(label)
                if state is None:
                    piece = moments_of(scenario, rule, tuple(seeds), bar.update)
                    store.put_run(label, piece.state())
                else:
                    piece = SeedMoments.from_state(scenario, name, state)
                    bar.update(len(seeds))
                moments.merge(piece)
            by_rule.append(moments.dataset(numbers).expand_dims(rule=[name]))
    return xr.concat(by_rule, "rule", data_vars="all", combine_attrs="drop_conflicts")
