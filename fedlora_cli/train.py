"""`fedlora-sim train`: run fine-tuning in a folder that stores every round."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import typer
import xarray as xr
from tqdm import tqdm

from fedlora_cli.options import check_folder, load_rule
from fedlora_cli.resume import INTERRUPTED
from fedlora_cli.scenario_options import Device, ScenarioFile, Settings, Threads, read_scenario
from fedlora_sim import Scenario
from fedlora_sim.errors import check_choice, check_seed, expected
from fedlora_sim.finetune.checkpoints import KEEP, Checkpoints, state_rounds
from fedlora_sim.finetune.exchange import GlobalUpdate
from fedlora_sim.finetune.measures import Row
from fedlora_sim.finetune.run import FederatedRun
from fedlora_sim.metrics import energy_ratio
from fedlora_sim.rules import AggregationRule
from fedlora_sim.runtime import torch_threads
from fedlora_sim.simulate import check_suits, training_dataset
from fedlora_sim.storage import ResultFolder, save_dataset
from paper_figs import finetuning, style

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
    with torch_threads(scenario.threads):
        run = FederatedRun(scenario, rule, seed, folder=folder)
        kept = _ShownRounds(folder, run, keep)
        with kept.bar:
            result = run.run(checkpoints=kept)
    return training_dataset(scenario, rule, (seed,), [result])


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """On Ctrl-C report what is stored and how to continue, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt:
        done = max(state_rounds(folder), default=0)
        kept = f"{done} finished rounds are kept in {folder}"
        print(f"\nstopped; {kept}; the same command with --resume goes on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def draw_split(dataset: xr.Dataset, out: Path) -> None:
    """Draw the split of the data among clients, `split.png`."""
    matplotlib.use("Agg")
    style.apply()
    style.save(finetuning.draw_split(dataset)[0], out, "split", ["png"])


class _ShownRounds(Checkpoints):
    """Rounds on disk, shown after they are stored: on a bar, or as a line without a terminal."""

    def __init__(self, folder: Path, run: FederatedRun, keep: str) -> None:
        super().__init__(folder, run.description(), keep)
        self.run, done, rounds = run, self.last_round() or 0, run.scenario.rounds
        if done:
            print(f"going on from round {done} of {rounds} in {folder}", file=sys.stderr)
        self.bar = tqdm(total=rounds, initial=done, desc=run.rule.label, unit="round", disable=None)
        self.before = time.monotonic()

    def save(self, t: int, state: GlobalUpdate, row: Row) -> None:
        """Store a round, and show it."""
        super().save(t, state, row)
        now = time.monotonic()
        seconds, self.before = now - self.before, now
        if t == 0:  # the start
            return
        measured = self._measured(row)
        self.bar.set_postfix_str(measured, refresh=False)
        self.bar.update()
        if self.bar.disable:
            line = f"round {t} of {self.run.scenario.rounds}: {measured} ({seconds:.1f} s)"
            print(line, file=sys.stderr, flush=True)

    def _measured(self, row: Row) -> str:
        energy = np.square(row["singular_values"]).sum(0)
        level = self.run.federation.levels[0]
        values = {"accuracy": row["accuracy"], "rho": energy_ratio(energy, level)}
        found = (f"{name} {float(x):.3f}" for name, x in values.items() if np.isfinite(x))
        return ", ".join(found) or "not judged"
