"""Account of the rounds whose client files are known: which rule, its terms, and alternatives.

For each round and module every registered rule aggregates the clients' files, and the result is
compared with the global adapter that the server made. The energy ledger needs the global adapter
before the round too; then its terms are those of the rule that the server used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from analysis.diagnose.layouts import FoundRun, RoundFiles, SavedAdapter, natural
from analysis.ledger import ledger
from fedlora_sim.account import Carriers
from fedlora_sim.datasets import ACCOUNT
from fedlora_sim.errors import InputError, expected
from fedlora_sim.federation import check_num_samples
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import pad_last
from fedlora_sim.metrics import projected_amplitudes
from fedlora_sim.rules import aggregate, get_rule, rule_names

Array = np.ndarray[Any, np.dtype[np.float64]]

SAME = 1e-2
"""A rule made the global adapter if its result differs by at most this share in norm.

Far above the rounding of adapters in half precision, and far below the effect of another rule.
"""


@dataclass(frozen=True, eq=False)
class ClientAccount:
    """What the client files of a run show.

    Args:
        rounds: rounds with client files and a global adapter.
        ranks: rank of each client by name, the highest over modules.
        levels: rank levels.
        kept: share of the update's energy above each level but the last, had the rule aggregated
            these files, by rule: mean over rounds, (M - 1,).
        actual: that share of the global adapters, (M - 1,).
        distance: largest relative difference in norm between the rule's result and the global
            adapter, by rule.
        made_by: rules whose result is the global adapter of every round.
        scalings: inconsistencies of the LoRA scalings.
        account: energy ledger of the rounds; None if no rule made the adapters, or no round follows
            a known one.
    """

    rounds: tuple[int, ...]
    ranks: Mapping[str, int]
    levels: tuple[int, ...]
    kept: Mapping[str, tuple[float, ...]]
    actual: tuple[float, ...]
    distance: Mapping[str, float]
    made_by: tuple[str, ...]
    scalings: tuple[str, ...]
    account: xr.Dataset | None

    def to_json(self) -> dict[str, Any]:
        """Return everything but the ledger."""
        return {k: v for k, v in asdict(self).items() if k != "account"}


def account_of_clients(
    run: FoundRun, ranks: Sequence[int] | None, num_samples: Sequence[float] | None
) -> ClientAccount:
    """Return the account of all rounds with client files.

    Args:
        run: the rounds of a run.
        ranks: ranks of the federation, whose levels count; None: those of the files.
        num_samples: sample count of each client in order of names; equal when None.

    Raises:
        InputError: if clients do not match the global adapter or the counts.
    """
    rounds = [files for files in run.rounds if files.clients]
    names = sorted({name for files in rounds for name in files.clients}, key=natural)
    weights = dict.fromkeys(names, 1.0)
    if num_samples is not None:
        counts = check_num_samples(num_samples, len(names))
        weights = dict(zip(names, counts, strict=True))
    found = {name: _rank_of(_first(rounds, name)) for name in names}
    levels = tuple(sorted(set(ranks or found.values())))
    if not set(found.values()) <= set(levels):
        given = sorted(set(found.values()))
        raise expected("ranks", list(levels), f"the ranks of the client files, {given}")
    before = dict(zip([f.number + 1 for f in run.rounds], run.rounds, strict=True))
    made = [_Round(files, before.get(files.number), weights, levels) for files in rounds]
    spread = [one.shares() for one in made]
    rules = [rule for rule in rule_names() if all(rule in one[0] for one in spread)]
    kept = {r: _mean([_above(one[0][r][0], levels) for one in spread]) for r in rules}
    distance = {rule: max(one[0][rule][1] for one in spread) for rule in rules}
    fits = tuple(rule for rule in rules if distance[rule] <= SAME)
    rows = [one.account(fits[0]) for one in made] if fits else [{} for _ in made]
    return ClientAccount(
        tuple(files.number for files in rounds),
        found,
        levels,
        kept,
        _mean([_above(one[1], levels) for one in spread]),
        distance,
        fits,
        _scalings(rounds[-1]),
        _ledger([f.number for f in rounds], rows, levels),
    )


def _first(rounds: Sequence[RoundFiles], name: str) -> SavedAdapter:
    return next(files.clients[name]() for files in rounds if name in files.clients)


def _rank_of(adapter: SavedAdapter) -> int:
    return max(adapter.factors(module).rank for module in adapter.modules)


def _mean(rows: Sequence[Array]) -> tuple[float, ...]:
    return tuple(np.mean(rows, axis=0).tolist())


def _above(energy: Array, levels: Sequence[int]) -> Array:
    """Return the share of energy above each level but the last, from energies (R,)."""
    whole = energy.sum()
    return np.array([energy[r:].sum() / whole if whole > 0 else 0.0 for r in levels[:-1]])


@dataclass(frozen=True)
class _Round:
    """One round with client files, and the round before, if it is known."""

    files: RoundFiles
    before: RoundFiles | None
    weights: Mapping[str, float]
    levels: tuple[int, ...]

    def shares(self) -> tuple[dict[str, tuple[Array, float]], Array]:
        """Return energies and distance by rule, and energies of the global adapter."""
        after, before, clients, counts = self._opened()
        size = self.levels[-1]
        energy: dict[str, Array] = {}
        apart: dict[str, Array] = {}
        actual = np.zeros(size)
        for module in after.modules:
            for client in clients:
                if module not in client.modules:
                    raise expected(client.where, module, f"the modules of {after.where}")
            updates = [client.factors(module) for client in clients]
            own = after.factors(module)
            last = None if before is None else before.factors(module)
            actual += _energies(own, size)
            norm = float((own.norm() ** 2).sum())
            for name in rule_names():
                result = _aggregated(updates, counts, name, self.levels, last)
                if result is None:
                    continue
                # The global adapter is the whole update or the adapter alone, in all modules alike.
                squares = [_squared_distance(one, own) for one in (result[0], result[-1])]
                energy[name] = energy.get(name, np.zeros(size)) + _energies(result[0], size)
                apart[name] = apart.get(name, np.zeros(3)) + np.array([*squares, norm])
        distance = {
            name: math.sqrt(min(whole, alone) / norm) if norm > 0 else math.inf
            for name, (whole, alone, norm) in apart.items()
        }
        return {n: (energy[n], distance[n]) for n in energy}, actual

    def account(self, rule: str) -> dict[str, dict[str, Tensor]]:
        """Return the account of each module under a rule; empty without the round before.

        Stacked experts are left out.
        """
        after, before, clients, counts = self._opened()
        if before is None:
            return {}
        found = {}
        for module in after.modules:
            own, last = after.factors(module), before.factors(module)
            if own.lora_A.ndim == 2:
                updates = [client.factors(module) for client in clients]
                found[module] = _account(rule, updates, counts, self.levels, last, own)
        return found

    def _opened(self) -> tuple[SavedAdapter, SavedAdapter | None, list[SavedAdapter], list[float]]:
        counts = [self.weights[name] for name in self.files.clients]
        return (
            self.files.open_global(),
            None if self.before is None else self.before.open_global(),
            [open_client() for open_client in self.files.clients.values()],
            counts if sum(counts) > 0 else [1.0] * len(counts),
        )


def _energies(update: LoRAFactors, size: int) -> Array:
    """Return the energies of the leading directions, (size,), summed over stacked experts."""
    rank = min(size, update.rank)
    values = update.product.singular_values(rank).reshape(-1, rank)
    return pad_last((values**2).sum(0), size).numpy()


def _squared_distance(one: LoRAFactors, other: LoRAFactors) -> float:
    lora_a = torch.cat([one.lora_A, other.lora_A], -2)
    lora_b = torch.cat([one.scaling * one.lora_B, -other.scaling * other.lora_B], -1)
    squares = (lora_b.mT @ lora_b) * (lora_a @ lora_a.mT)
    return max(float(squares.sum()), 0.0)


def _aggregated(
    updates: Sequence[LoRAFactors],
    counts: Sequence[float],
    rule: str,
    levels: Sequence[int],
    previous: LoRAFactors | None,
) -> tuple[LoRAFactors, LoRAFactors] | None:
    """Return the rule's whole update and its adapter; None if it cannot aggregate these clients."""
    kept = previous if previous is not None and previous.rank == levels[-1] else None
    policy = "zero" if kept is None else "carry"
    try:
        made = aggregate(
            updates, counts, rule, rank_levels=levels, previous=kept, empty_partition=policy
        )
        return made.total(), made.adapter
    except InputError:
        return None


def _account(
    rule: str,
    updates: Sequence[LoRAFactors],
    counts: Sequence[float],
    levels: Sequence[int],
    before: LoRAFactors,
    after: LoRAFactors,
) -> dict[str, Tensor]:
    """Return sigma before and after the round, and the account on its directions, each (r_max,)."""
    size, chosen = levels[-1], get_rule(rule)
    u, s, vh = before.product.svd(min(size, before.rank))
    ranks = torch.tensor([update.rank for update in updates])
    members = ranks[:, None] > torch.arange(size)
    norms = torch.stack([update.norm() for update in updates])
    policy = "carry" if before.rank == size else "zero"
    weights = torch.tensor(counts, dtype=torch.float64)
    carriers = Carriers.of(chosen, policy, weights, members, norms)
    total = pad_last(s, size)
    returned = torch.stack([pad_last(projected_amplitudes(u, vh, x), size) for x in updates])
    server = pad_last(projected_amplitudes(u, vh, after), size)
    base = torch.zeros(size, dtype=torch.float64)
    found = carriers.account_of_svd(total, base, returned, server, torch.float64)
    new = pad_last(after.product.singular_values(min(size, after.rank)), size)
    return {"before": total**2, "energy": new**2, **found}


def _ledger(
    rounds: Sequence[int], rows: Sequence[Mapping[str, Any] | None], levels: Sequence[int]
) -> xr.Dataset | None:
    """Return the ledger, each known round as a run of one round, so that gaps do not matter."""
    known = [(t, row) for t, row in zip(rounds, rows, strict=True) if row]
    if not known:
        return None
    partition = np.repeat(np.arange(1, len(levels) + 1), np.diff((0, *levels)))
    dims = ("seed", "round", "layer", "direction")
    made = []
    for t, row in known:
        layers = sorted(row)
        values = {
            name: np.stack([row[layer][name].numpy() for layer in layers])
            for name in ("before", "energy", *ACCOUNT)
        }
        nothing = np.full_like(values["energy"], np.nan)
        energy = np.stack([values["before"], values["energy"]])[None]
        data = {name: (dims, np.stack([nothing, values[name]])[None]) for name in ACCOUNT}
        whole = (("seed", "round", "direction"), energy.sum(2))
        coords = {
            "seed": [0],
            "round": [t - 1, t],
            "layer": layers,
            "partition": ("direction", partition),
        }
        run = xr.Dataset({"energy": whole, "layer_energy": (dims, energy), **data}, coords)
        made.append(ledger(run).isel(round=[1]))
    return xr.concat(made, "round", join="outer")


def _scalings(files: RoundFiles) -> tuple[str, ...]:
    """Return a sentence for each rank whose scaling differs from the global adapter's."""
    adapter = files.open_global()
    if not adapter.is_scaled:
        return ()
    clients = [open_client() for open_client in files.clients.values()]
    found = set()
    for module in adapter.modules:  # an alpha_pattern gives some of them another scaling
        own = adapter.factors(module).scaling
        for client in clients:
            update = client.factors(module)
            if not math.isclose(update.scaling, own, rel_tol=1e-6):
                found.add((update.rank, update.scaling, own))
    return tuple(
        f"clients of rank {rank} scale by {scaling:g}, the global adapter by {own:g}: a "
        f"client that loads its first {rank} components unchanged multiplies the update by "
        f"{scaling / own:.3g}"
        for rank, scaling, own in sorted(found)
    )
