"""`Monitor`: the energies of a running federation, round by round, with one warning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.collapse.measure import FALLS
from analysis.diagnose.layouts import SavedAdapter, state_dict_adapter
from analysis.diagnose.spectra import (
    ERROR,
    Array,
    energies_of,
    geometric_rate,
    share_of_shared,
)
from fedlora_sim.errors import check_choice, check_count, check_share, expected
from fedlora_sim.federation import parse_ranks
from fedlora_sim.metrics import effective_rank
from fedlora_sim.storage import write_text

Log = Callable[[Mapping[str, float], int], object]

LOGGERS = ("tensorboard", "wandb", "mlflow")
"""Packages that a monitor logs to by name."""
THRESHOLD = 1 - FALLS
"""A fitted factor per round below this gives a warning."""


class CollapseWarning(UserWarning):
    """The fitted rate of a partition fell below the threshold of a monitor."""


class Monitor:
    """Measure the global adapter of each round of any training loop.

    Args:
        ranks: rank of each client, as a sequence or as text (`"4x5,8x5"`).
        alpha: `lora_alpha` of the global adapter; None: energies are those of `B A`.
        use_rslora: whether the scaling is `alpha / sqrt(r)` instead of `alpha / r`.
        csv: file to which the values of all rounds are written; replaced at each update.
        loggers: `tensorboard`, `wandb` or `mlflow`, if installed and, for W&B and MLflow, with a
            run started; or functions `log(values, round)`.
        threshold: warn once a partition's fitted factor per round is below this, by its interval.

    Raises:
        InputError: if a logger is not installed, or an argument is invalid.
    """

    def __init__(
        self,
        ranks: str | Sequence[int],
        *,
        alpha: float | None = None,
        use_rslora: bool = False,
        csv: str | Path | None = None,
        loggers: Sequence[str | Log] = (),
        threshold: float = THRESHOLD,
    ) -> None:
        self.levels = tuple(sorted(set(parse_ranks(ranks))))
        self.alpha, self.use_rslora = alpha, use_rslora
        self.csv = None if csv is None else Path(csv)
        self.threshold = check_share("threshold", threshold)
        self._logs = [one if callable(one) else _logger(one) for one in loggers]
        self._energy: dict[int, Array] = {}
        self._values: dict[int, dict[str, float]] = {}
        self.warned = False

    def update(
        self,
        round: int,  # noqa: A002 (the name that all loops use)
        adapter: Mapping[str, Any],
        clients: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, float]:
        """Measure a round, and log and write its values.

        Args:
            round: its number; a round that was seen is replaced.
            adapter: state dict of the global adapter after the round.
            clients: state dicts of the adapters that the clients returned.

        Returns:
            `energy`, `effective_rank`, and for each rank level but the last
            `share_above_<level>`, the share of the energy above it, and `rate_<level>`, the factor
            per round of the partition that starts above it, relative to the shared partition;
            `rate_high_<level>` is the upper end of its interval. With clients also
            `client_share_above_<level>`, the mean over clients. NaN: not known.

        Raises:
            InputError: if an adapter cannot be read, or has too few directions.

        Warns:
            CollapseWarning: once, when a rate is below the threshold.
        """
        number = check_count("round", round) if round else 0
        whole = self._of(adapter, "adapter")
        if len(whole) < self.levels[-1]:
            wanted = f"the highest rank of the clients, {self.levels[-1]}, or more directions"
            raise expected("adapter", f"{len(whole)} directions", wanted)
        self._energy[number] = whole
        values = {"energy": float(whole.sum()), "effective_rank": _rank(whole)}
        values |= {f"share_above_{r}": _above(whole, r) for r in self.levels[:-1]}
        highest = self._rates(values)
        if clients is not None:
            values |= self._client_values(clients)
        self._values[number] = values
        if self.csv is not None:
            write_text(self.csv, self._table())
        for log in self._logs:
            log({k: v for k, v in values.items() if np.isfinite(v)}, number)
        if highest is not None and not self.warned:
            self.warned = True
            text = (
                f"round {number}: the energy of {highest} falls by the factor "
                f"{self.threshold:g} a round or faster, relative to the shared directions: the "
                "federation's rank collapses"
            )
            warnings.warn(text, CollapseWarning, stacklevel=2)
        return values

    def _of(self, state: Mapping[str, Any], where: str) -> Array:
        """Return the energies of all modules together, (R,)."""
        adapter: SavedAdapter = state_dict_adapter(
            state, where, alpha=self.alpha, use_rslora=self.use_rslora
        )
        rows = list(energies_of(adapter).values())
        whole = np.zeros(max(map(len, rows)))
        for row in rows:
            whole[: len(row)] += row
        return whole

    def _rates(self, values: dict[str, float]) -> str | None:
        """Add the rates to the values; return the first partition below the threshold."""
        rounds = np.array(sorted(self._energy))
        width = max(map(len, self._energy.values()))
        rows = [np.pad(self._energy[t], (0, width - len(self._energy[t]))) for t in rounds]
        parts = np.add.reduceat(np.stack(rows), [0, *self.levels[:-1]], axis=-1)
        relative = share_of_shared(parts)
        error = ERROR / max(len(self.levels) - 1, 1)
        found = None
        for h, level in enumerate(self.levels[:-1], 1):
            rate = geometric_rate(rounds, relative[:, h], error)
            values[f"rate_{level}"], values[f"rate_high_{level}"] = rate.value, rate.high
            if found is None and rate.high < self.threshold:
                found = f"directions {level + 1}-{self.levels[h]}"
        return found

    def _client_values(
        self, clients: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        named = clients.items() if isinstance(clients, Mapping) else enumerate(clients)
        energies = [self._of(state, f"clients[{name}]") for name, state in named]
        if not energies:
            return {}
        return {
            f"client_share_above_{r}": float(np.mean([_above(own, r) for own in energies]))
            for r in self.levels[:-1]
        }

    def _table(self) -> str:
        names = list(dict.fromkeys(name for row in self._values.values() for name in row))
        lines = [",".join(["round", *names])]
        for t in sorted(self._values):
            row = self._values[t]
            lines.append(",".join([str(t), *(_cell(row.get(name)) for name in names)]))
        return "\n".join(lines) + "\n"


def _above(energy: Array, rank: int) -> float:
    whole = float(energy.sum())
    return float(energy[rank:].sum()) / whole if whole > 0 else float("nan")


def _rank(energy: Array) -> float:
    return float(effective_rank(energy)) if energy.sum() > 0 else 0.0


def _cell(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else repr(float(value))


def _logger(name: str) -> Log:
    """Return the logging function of an installed package.

    Raises:
        InputError: if it is not installed; names it.
    """
    check_choice("loggers", name, LOGGERS)
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    try:
        package = importlib.import_module(module)
    except ImportError:
        raise expected("loggers", name, f"an installed package (pip install {name})") from None
    if name == "tensorboard":
        return _tensorboard(package.SummaryWriter())
    if name == "wandb":
        return lambda values, t: package.log({f"fedlora/{k}": v for k, v in values.items()}, step=t)
    return lambda values, t: package.log_metrics(
        {f"fedlora/{k}": v for k, v in values.items()}, step=t
    )


def _tensorboard(writer: Any) -> Log:
    """Return a function that has written the values of a round when it returns."""

    def log(values: Mapping[str, float], t: int) -> None:
        for name, value in values.items():
            writer.add_scalar(f"fedlora/{name}", value, t)
        writer.flush()  # the writer queues: a killed run would lose its last rounds

    return log
