"""Rounds of a fine-tuning run on disk, shown on a progress bar while they are stored."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fedlora_sim.finetune.checkpoints import Checkpoints
from fedlora_sim.finetune.exchange import GlobalUpdate
from fedlora_sim.finetune.measures import Row
from fedlora_sim.finetune.run import FederatedRun
from fedlora_sim.metrics import energy_ratio


class ShownRounds(Checkpoints):
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
