"""Read a run of `fedlora-sim train` from its stored measures, or a dataset of `simulate`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from analysis.diagnose.spectra import Array, Spectra
from analysis.ledger import WHOLE, ledger
from fedlora_sim.datasets import ACCOUNT
from fedlora_sim.errors import expected
from fedlora_sim.finetune.checkpoints import Checkpoints, load_state, read_description, state_rounds
from fedlora_sim.finetune.measures import Row
from fedlora_sim.scenario import Scenario


@dataclass(frozen=True, eq=False)
class OwnRun:
    """A run of this project with everything that it records.

    Args:
        spectra: its energies.
        ranks: client ranks.
        cohort: clients per round.
        num_samples: sample counts; None: equal, or known only to the task.
        rule: the server rule.
        account: the energy ledger; None if the run has no account.
    """

    spectra: Spectra
    ranks: tuple[int, ...]
    cohort: int
    num_samples: tuple[float, ...] | None
    rule: str
    account: xr.Dataset | None

    @classmethod
    def of_dataset(cls, run: xr.Dataset) -> OwnRun:
        """Return the run of a dataset with one seed.

        Raises:
            InputError: if it is not one of `simulate`, or has several seeds.
        """
        if "energy" not in run or "seed" not in run.dims or "rule" not in run.attrs:
            raise expected("run", list(run.data_vars)[:4], "a dataset that `simulate` returned")
        if run.sizes["seed"] != 1:
            raise expected("run", f"{run.sizes['seed']} seeds", "one: run.isel(seed=[0])")
        scenario = Scenario.from_attrs(run.attrs)
        name = "layer_energy" if "layer_energy" in run else "energy"
        energy = run[name].isel(seed=0)
        if "layer" not in energy.dims:
            energy = energy.expand_dims(layer=[WHOLE])
        energy = energy.transpose("round", "layer", "direction")
        spectra = Spectra(
            energy["round"].values.astype(np.int64),
            tuple(map(str, energy["layer"].values)),
            energy.values,
            is_scaled=True,
        )
        has_account = all(part in run for part in ACCOUNT)
        account = ledger(run) if has_account else None
        return _own(spectra, scenario, str(run.attrs["rule"]), account)


def _own(spectra: Spectra, scenario: Scenario, rule: str, account: xr.Dataset | None) -> OwnRun:
    federation = scenario.federation
    return OwnRun(
        spectra,
        federation.ranks,
        federation.max_cohort if federation.cohort_size is None else federation.cohort_size,
        scenario.num_samples,
        rule,
        account,
    )


def read_own_run(folder: Path) -> OwnRun:
    """Return the run in a folder of `fedlora-sim train`, as far as it is finished.

    Raises:
        InputError: if the folder is damaged, or has no complete round.
    """
    described = read_description(folder)
    states = state_rounds(folder)
    if described is None or not states:
        raise expected("run", str(folder), "a run with at least one complete round")
    scenario = Scenario.from_attrs(described)
    layers = tuple(load_state(folder, states[-1], torch.device("cpu")).adapters)
    stored = {
        int(found[1])
        for path in folder.iterdir()
        if (found := re.fullmatch(r"measures-(\d{5,})\.safetensors", path.name))
    }
    rounds = sorted(t for t in stored if t <= states[-1])
    store = Checkpoints(folder, described)
    rows = {t: store.row(t) for t in rounds}
    energy = np.stack([rows[t]["singular_values"] for t in rounds]).astype(np.float64) ** 2
    spectra = Spectra(np.asarray(rounds, dtype=np.int64), layers, energy, is_scaled=True)
    account = None
    whole = rounds == list(range(len(rounds)))
    if whole and all(name in rows[rounds[-1]] for name in ACCOUNT):
        dims = ("seed", "round", "layer", "direction")
        values = {name: _by_round([rows[t] for t in rounds], name) for name in ACCOUNT}
        account = ledger(
            xr.Dataset(
                {
                    "energy": (("seed", "round", "direction"), energy.sum(1)[None]),
                    "layer_energy": (dims, energy[None]),
                    **{name: (dims, value) for name, value in values.items()},
                },
                {
                    "seed": [0],
                    "round": rounds,
                    "layer": list(layers),
                    "partition": ("direction", _partition(scenario.federation.levels)),
                },
            )
        )
    return _own(spectra, scenario, str(described["rule"]), account)


def _by_round(rows: list[Row], name: str) -> Array:
    """Return a value of all rounds, (1, T, ...); NaN for the start, which has none."""
    nothing = np.full_like(rows[-1][name], np.nan)
    return np.stack([row.get(name, nothing) for row in rows])[None].astype(np.float64)


def _partition(levels: tuple[int, ...]) -> list[int]:
    sizes = np.diff((0, *levels))
    found: list[int] = np.repeat(np.arange(1, len(levels) + 1), sizes).tolist()
    return found
