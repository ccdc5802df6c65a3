"""`diagnose`: whether a federated run loses its higher ranks, why, and the remedy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from analysis.collapse.measure import EXTINCT, FALLS, NOTHING, Collapse, together
from analysis.diagnose.client_rounds import ClientAccount, account_of_clients
from analysis.diagnose.consistency import RuleFit, compare
from analysis.diagnose.layouts import (
    FoundRun,
    RoundFiles,
    SavedAdapter,
    Scalings,
    find_run,
    is_own,
    state_dict_adapter,
)
from analysis.diagnose.own_run import OwnRun, read_own_run
from analysis.diagnose.report import (
    FEWEST,
    Diagnosis,
    LayerHealth,
    Missing,
    PartitionHealth,
    remedy_of,
    sentence_of,
)
from analysis.diagnose.spectra import (
    ERROR,
    Array,
    Estimate,
    Rounds,
    Spectra,
    drift_line,
    geometric_rate,
    half_life,
    read_spectra,
    settling,
    share_of_shared,
)
from analysis.ledger import TERMS
from fedlora_sim.errors import check_positive, expected
from fedlora_sim.federation import Federation, parse_ranks
from fedlora_sim.metrics import effective_rank

HALF = 0.5
"""A run collapses only if a partition has lost this share of its energy relative to the shared."""

IN_MEMORY, DATASET = "state dicts", "dataset"
"""Layouts of runs in memory: state dicts, and a dataset that `simulate` returned."""


# The diagnosis


def diagnose(
    run: str | Path | Sequence[Mapping[str, Any]] | Mapping[int, Mapping[str, Any]] | xr.Dataset,
    *,
    ranks: str | Sequence[int] | None = None,
    cohort: int | None = None,
    num_samples: Sequence[float] | None = None,
    alpha: float | None = None,
    use_rslora: bool = False,
    layout: str | None = None,
) -> Diagnosis:
    """Diagnose whether a federated run loses the energy of its higher ranks.

    Args:
        run: a folder with the global adapters of rounds, optionally with those of clients; a run of
            `fedlora-sim train`; the state dicts of successive rounds, or by round; or a dataset of
            `simulate` with one seed.
        ranks: rank of each client of the federation, as a sequence or as text (`"4x5,8x5"`).
        cohort: clients per round.
        num_samples: sample count of each client; equal when None. With client files in order of the
            clients' names.
        alpha: `lora_alpha`, for files that do not state it.
        use_rslora: whether the scaling is `alpha / sqrt(r)`, for files that do not state it.
        layout: a known layout, or a regular expression whose one group is the round in the path of
            an adapter; None: recognized.

    Returns:
        Measures, verdict and remedy. Information that is missing is listed, and never guessed.

    Raises:
        InputError: if the run cannot be read, or an argument contradicts it.
    """
    if alpha is not None:
        check_positive("alpha", alpha)
    scalings = Scalings(alpha, use_rslora)
    given = None if ranks is None else parse_ranks(ranks)
    found, own = _source(run, layout, scalings)
    if own is not None:
        given = own.ranks if given is None else given
        cohort = own.cohort if cohort is None else cohort
        num_samples = own.num_samples if num_samples is None else num_samples
    spectra = own.spectra if own is not None else read_spectra(found)
    federation = (
        None
        if given is None
        else Federation(given, None if num_samples is None else tuple(num_samples), cohort)
    )
    clients = None
    if any(files.clients for files in found.rounds):
        clients = account_of_clients(found, given, num_samples)
    levels = _levels(federation, found, clients)
    missing = list(_missing(levels, federation, cohort, spectra, clients))
    assumed = []
    if num_samples is None and (federation is not None or clients is not None):
        assumed.append("clients have equal sample counts (--samples)")
    shared = spectra.energy.sum(1)
    parts = _partitions(spectra.rounds, spectra.partitions(levels).sum(1), levels)
    rules: tuple[RuleFit, ...] = ()
    if federation is not None and cohort is not None and len(levels) > 1:
        amplitude = np.sqrt(spectra.partitions(levels).sum(1))
        rules = tuple(compare(federation, spectra.rounds, amplitude))
    account = own.account if own is not None else (None if clients is None else clients.account)
    diagnosis = Diagnosis(
        run=str(run) if isinstance(run, str | Path) else found.layout,
        layout=found.layout,
        rounds=tuple(spectra.rounds.tolist()),
        gaps=_gaps(spectra.rounds.tolist()),
        is_scaled=spectra.is_scaled,
        levels=levels,
        energy=shared,
        effective_rank=_effective_rank(shared),
        partitions=parts,
        layers=tuple(_layer(spectra, i, levels) for i in range(len(spectra.layers))),
        rules=rules,
        clients=clients,
        terms={} if account is None else _terms(account),
        scalings=() if clients is None else clients.scalings,
        missing=tuple(missing),
        assumed=tuple(assumed),
        rule=None if own is None else own.rule,
        verdict=together(part.verdict for part in parts[1:]) if len(parts) > 1 else _alone(parts),
    )
    return replace(diagnosis, sentence=sentence_of(diagnosis), remedy=remedy_of(diagnosis))


def _alone(parts: Sequence[PartitionHealth]) -> Collapse:
    """Return the verdict on a run with one rank level, which has nothing to lose to dilution."""
    return Collapse.KEEPS if parts else Collapse.UNDECIDED


def _source(run: Any, layout: str | None, scalings: Scalings) -> tuple[FoundRun, OwnRun | None]:
    if isinstance(run, xr.Dataset):
        return FoundRun(DATASET, ()), OwnRun.of_dataset(run)
    if isinstance(run, str | Path):
        folder = Path(run)
        if not folder.is_dir():
            raise expected("run", str(run), "a folder with the adapters of a run")
        inner = [path.parent for path in sorted(folder.glob("*/run.json"))]
        if layout in (None, "own") and (is_own(folder) or inner):
            if not is_own(folder) and len(inner) > 1:
                names = ", ".join(map(str, inner[:4]))
                raise expected("run", str(run), f"one run, e.g. one of {names}")
            return FoundRun("own", ()), read_own_run(folder if is_own(folder) else inner[0])
        return find_run(folder, layout, scalings), None
    by_round: Iterable[tuple[int, Any]]
    if isinstance(run, Mapping):
        by_round = sorted(run.items())
        if not all(isinstance(number, int) for number, _ in by_round):
            raise expected("run", sorted(map(str, run))[:4], "state dicts by round")
    elif isinstance(run, Sequence) and len(run):
        by_round = enumerate(run)
    else:
        raise expected("run", type(run).__name__, "a folder, state dicts of rounds, or a dataset")
    rounds = tuple(
        RoundFiles(number, partial(_of_state, state, number, scalings))
        for number, state in by_round
    )
    return FoundRun(IN_MEMORY, rounds), None


def _of_state(state: Mapping[str, Any], number: int, scalings: Scalings) -> SavedAdapter:
    return state_dict_adapter(
        state, f"run[{number}]", alpha=scalings.alpha, use_rslora=scalings.use_rslora
    )


def _levels(
    federation: Federation | None, found: FoundRun, clients: ClientAccount | None
) -> tuple[int, ...]:
    if federation is not None:
        return federation.levels
    if clients is not None:
        return clients.levels
    return found.group_ranks


def _missing(
    levels: Sequence[int],
    federation: Federation | None,
    cohort: int | None,
    spectra: Spectra,
    clients: ClientAccount | None,
) -> Iterable[Missing]:
    if not levels:
        yield Missing("ranks", "rank levels: which energy must be kept, and so the verdict")
    elif federation is None:
        yield Missing("ranks", "the coverage of each partition: which rules are possible")
    if cohort is None and clients is None:
        yield Missing("cohort", "the coverage of each round: which rules are possible")
    if not spectra.is_scaled:
        needed = "amplitudes of dW: energies are those of B A"
        if clients is not None and len(clients.levels) > 1:
            needed = "updates of clients of different ranks, whose scaling alpha / r differs"
        yield Missing("alpha", needed)


def _gaps(rounds: Sequence[int]) -> tuple[int, ...]:
    known = set(rounds)
    return tuple(t for t in range(rounds[0], rounds[-1]) if t not in known)[:1000]


def _effective_rank(energy: Array) -> tuple[float, ...]:
    some = energy.sum(-1) > 0
    found = np.zeros(len(energy))
    if some.any():
        found[some] = effective_rank(energy[some])
    return tuple(found.tolist())


def _layer(spectra: Spectra, i: int, levels: Sequence[int]) -> LayerHealth:
    energy = spectra.energy[:, i]
    parts = _partitions(spectra.rounds, spectra.partitions(levels)[:, i], levels)
    return LayerHealth(
        spectra.layers[i], _effective_rank(energy), tuple(energy[-1].tolist()), parts
    )


def _partitions(
    rounds: Rounds, energy: Array, levels: Sequence[int]
) -> tuple[PartitionHealth, ...]:
    """Return the health of the partitions of one series of energies, (T, M)."""
    if not levels:
        return ()
    relative, whole = share_of_shared(energy), energy.sum(-1)
    with np.errstate(invalid="ignore"):
        share = energy / np.where(whole > 0, whole, np.nan)[:, None]
    error = ERROR / max(len(levels) - 1, 1)
    found = []
    for h, (low, high) in enumerate(zip((0, *levels), levels, strict=False)):
        rate = geometric_rate(rounds, relative[:, h], error)
        line = drift_line(rounds, np.sqrt(energy[:, h]))
        extinct = _is_extinct(relative[:, h])
        found.append(
            PartitionHealth(
                (low + 1, high),
                tuple(share[:, h].tolist()),
                _left(relative[:, h]),
                rate,
                half_life(rate),
                settling(line, float(np.sqrt(energy[-1, h])), error),
                extinct,
                _verdict(rate, _left(relative[:, h]), relative[:, h], extinct),
            )
        )
    return tuple(found)


def _is_extinct(relative: Array) -> bool:
    """Return whether a partition that had energy has none after the last two rounds."""
    known = relative[np.isfinite(relative)]
    if len(known) < 2 or not known.max(initial=0.0) > 0:
        return False
    return bool((known[-2:] <= EXTINCT * known.max()).all())


def _left(relative: Array) -> float:
    known = relative[np.isfinite(relative)]
    width = max(len(known) // 3, 1)
    means = np.convolve(known, np.ones(width) / width, "valid") if len(known) else np.zeros(1)
    return float(means[-1] / means.max()) if means.max() > 0 else math.nan


def _verdict(rate: Estimate, left: float, relative: Array, extinct: bool) -> Collapse:
    """Return the verdict on a partition from its energy relative to the shared partition."""
    known = int((np.isfinite(relative) & (relative > 0)).sum())
    if extinct:
        return Collapse.COLLAPSES
    if known < FEWEST or math.isnan(left):
        return Collapse.UNDECIDED
    if left < NOTHING or (rate.high < 1 - FALLS and left < HALF):
        return Collapse.COLLAPSES
    return Collapse.KEEPS if left >= HALF else Collapse.UNDECIDED


def verdict_of(rounds: Rounds, energy: Array) -> Collapse:
    """Return the verdict on a run from the energies of its partitions alone.

    Args:
        rounds: numbers of the rounds, (T,).
        energy: energies of the partitions, the shared one first, (T, M).
    """
    relative = share_of_shared(energy)
    error = ERROR / max(energy.shape[1] - 1, 1)
    return together(
        _verdict(geometric_rate(rounds, own, error), _left(own), own, _is_extinct(own))
        for own in relative.T[1:]
    )


def _terms(account: xr.Dataset) -> dict[str, tuple[float, ...]]:
    """Return the mean of each ledger term over rounds and layers in which it is finite, (M,)."""
    change = account.change.transpose("term", "partition", ...).values
    change = change.reshape(*change.shape[:2], -1)
    finite = np.isfinite(change)
    total = np.where(finite, change, 0.0).sum(-1)
    count = finite.sum(-1)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return {name: tuple(mean[i].tolist()) for i, name in enumerate(TERMS)}
