"""`fedlora-sim train`: run fine-tuning in a folder that stores every round."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora_cli.options import check_folder, load_rule
from fedlora_cli.resume import INTERRUPTED
from fedlora_cli.scenario_options import Device, ScenarioFile, Settings, Threads, read_scenario
from fedlora_sim import Scenario
from fedlora_sim.errors import check_choice, check_seed, expected
from fedlora_sim.runtime import torch_threads
from fedlora_sim.storage import ResultFolder, save_dataset

if TYPE_CHECKING:  # torch takes seconds, and the help of a command needs none
    import xarray as xr

    from fedlora_sim.rules import AggregationRule

ROUNDS, DATASET = "rounds", "run.nc"


def train(
    out: Annotated[Path, typer.Option(help="folder of the run")],
    scenario: ScenarioFile = None,
    settings: Settings = None,
    rule: Annotated[
        str, typer.Option(help="rule, see `fedlora-sim rules`, or module:Name")
    ] = "raflora",
    seed: Annotated[int, typer.Option(help="seed of the run")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the last round in the folder")
    ] = False,
    keep: Annotated[
        str,
        typer.Option(help="global updates kept: all (what `export` reads), or the last one"),
    ] = "all",
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Fine-tune a federation under one rule, round by round in a folder, and go on if stopped."""
    from fedlora_sim.finetune.checkpoints import KEEP
    from fedlora_sim.simulate import check_suits

    given, default = {"device": device, "threads": threads}, {"fidelity": "training"}
    chosen, server = read_scenario(scenario, settings, given, default), load_rule(rule)
    if chosen.fidelity != "training":
        raise expected("fidelity", chosen.fidelity, "training (`simulate` takes the others too)")
    check_suits(chosen, server)
    seed, keep = check_seed("--seed", seed), check_choice("--keep", keep, KEEP)
    check_folder("--out", out, out)
    if not resume and ((out / ROUNDS).exists() or (out / DATASET).exists()):
        raise expected("--out", str(out), "a new folder, or --resume to go on")
    results = ResultFolder(out, "train")
    with results.only_writer():
        results.check((DATASET, "split.png"))
        with _resumable(out / ROUNDS):
            dataset = _run(chosen, server, seed, out / ROUNDS, keep)
        with results.replace() as new:
            draw_split(dataset, new)
            save_dataset(dataset, new / DATASET)
    print(f"wrote {out / DATASET}")


def _run(
    scenario: Scenario, rule: AggregationRule, seed: int, folder: Path, keep: str
) -> xr.Dataset:
    """Run all rounds that are not in the folder yet, and return the whole run's dataset."""
    from fedlora_cli.shown_rounds import ShownRounds
    from fedlora_sim.finetune.run import FederatedRun
    from fedlora_sim.simulate import training_dataset

    with torch_threads(scenario.threads):
        run = FederatedRun(scenario, rule, seed, folder=folder)
        kept = ShownRounds(folder, run, keep)
        with kept.bar:
            result = run.run(checkpoints=kept)
    return training_dataset(scenario, rule, (seed,), [result])


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """On Ctrl-C report what is stored and how to continue, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt:
        from fedlora_sim.finetune.checkpoints import state_rounds

        done = max(state_rounds(folder), default=0)
        kept = f"{done} finished rounds are kept in {folder}"
        print(f"\nstopped; {kept}; the same command with --resume goes on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def draw_split(dataset: xr.Dataset, out: Path) -> None:
    """Draw the split of the data among clients, `split.png`."""
    import matplotlib

    from paper_figs import finetuning, style

    matplotlib.use("Agg")
    style.apply()
    style.save(finetuning.draw_split(dataset)[0], out, "split", ["png"])
