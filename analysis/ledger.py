"""The energy ledger: an exact account of the energy of each partition in every round of a run.

A round changes the energy of partition h from `E_h` to `E'_h`. With the amplitudes of
`fedlora_sim.account` on the singular directions before the round, summed over the partition,

    E'_h / E_h = [sum idle**2 / E_h] [sum trained**2 / sum idle**2]
                 [sum server**2 / sum trained**2] [E'_h / sum server**2],

dilution by the rule, training by the clients that carry a direction, mixing by all others (and by
averages of factors), turning of the directions, with the rule's truncation. The logarithms add up,
for every rule, fidelity and policy. In additive form `E'_h = q_h E_h + delta_h**2`, with
`q_h = sum server**2 / E_h`: the recursion of Wu et al. (arXiv 2602.13486, App. B) with both terms
measured, and the floor `delta_h**2 / (1 - q_h)`. Otherwise our derivation.
"""

from __future__ import annotations

import itertools

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fedlora_sim.datasets import ACCOUNT
from fedlora_sim.errors import expected

Array = NDArray[np.float64]

TERMS = ("dilution", "training", "mixing", "turning")
WHOLE = "update"
"""Name of the one layer of spectral and matrix runs."""
_DIMS = ("seed", "round", "layer", "partition")
_ATTRS = ("long_name", "units")
_LABELS = {
    "change": ("contribution to the change of log10 of the energy", "decades"),
    "energy": ("energy of the partition after the round", "squared amplitude of dW"),
    "q": ("share of the energy that stays on its directions, sum server**2 / E", "1"),
    "delta2": ("energy that comes from other directions", "squared amplitude of dW"),
    "drift": ("amplitude that the clients add, implied by X' = mu (X + c)", "amplitude of dW"),
    "coverage": ("weight share of the round's clients that carry the partition", "1"),
    "multiplier": ("declared multiplier of the partition's amplitude in the round", "1"),
}


def ledger(run: xr.Dataset) -> xr.Dataset:
    """Return the energy ledger of a run.

    Args:
        run: result of `simulate`, at spectral and matrix fidelity with `ledger=True`.

    Returns:
        Dimensions (seed, round, layer, partition), with the values of round 0 NaN where they
        describe a round:

        `change` (..., term): decades by dilution, training, mixing and turning. They add up to
        `log10(E'_h / E_h)`. A partition that a term extinguishes has -inf there and 0 in the terms
        that find nothing left; energy that a term brings back is +inf, and their sum is then
        undefined. All terms are NaN where the partition had no energy before the round. The last
        three are NaN where its energy was rounding, and all but turning where the rule declares no
        multiplier.

        `energy`; `q` and `delta2` of `E'_h = q_h E_h + delta2_h`; `coverage`, the mean over the
        partition's directions; `multiplier` `mu_h`, their root mean square weighted by energy;
        `drift` `c = (X'_h - I_h) / mu_h` with `X_h = sqrt(E_h)` and `I_h = sqrt(sum idle**2)`.
        Without a base correction `I_h = mu_h X_h`, so that `X'_h = mu_h (X_h + c)`; under FLoRA
        `I_h = X_h` and `X'_h = X_h + W_h c`. NaN where no client of the round carries the
        partition.

        Attributes are those of the run.

    Raises:
        InputError: if the run lacks the account of its rounds.
    """
    if not isinstance(run, xr.Dataset):
        raise expected("run", type(run).__name__, "a dataset that `simulate` returned")
    missing = [name for name in ("energy", *ACCOUNT) if name not in run]
    if missing:
        wanted = "a run with them: repeat it, outside training with simulate(..., ledger=True)"
        raise expected("run", f"a dataset without {', '.join(missing)}", wanted)
    known = _by_layer(run)
    energy, coverage, multiplier, idle, trained, server = (
        known[name].values for name in ("energy", *ACCOUNT)
    )
    partition = run.partition.values
    first = np.flatnonzero(np.diff(partition, prepend=0))  # direction of each partition
    before = np.full_like(energy, np.nan)
    before[:, 1:] = energy[:, :-1]
    squares = (before, idle**2, trained**2, server**2, energy)
    levels = [_totals(values, first) for values in squares]
    change = np.stack([_decades(*pair) for pair in itertools.pairwise(levels)], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        started = np.where(levels[0] > 0, levels[0], np.nan)
        mu = np.sqrt(_means(multiplier**2, first, before))
        carried = _means(coverage, first)
        drift = (np.sqrt(levels[-1]) - np.sqrt(levels[1])) / np.where(mu * carried > 0, mu, np.nan)
        values = {
            "change": np.where(np.isnan(started)[..., None], np.nan, change),
            "energy": levels[-1],
            "q": levels[3] / started,
            "delta2": np.where(np.isnan(started), np.nan, levels[-1] - levels[3]),
            "drift": drift,
            "coverage": carried,
            "multiplier": mu,
        }
    data = {
        name: ((*_DIMS, "term")[: x.ndim], x, dict(zip(_ATTRS, _LABELS[name], strict=True)))
        for name, x in values.items()
    }
    coords = {name: known[name].values for name in _DIMS[:3]}
    return xr.Dataset(
        data, {**coords, "partition": partition[first], "term": list(TERMS)}, run.attrs
    )


def implied_floor(account: xr.Dataset, rounds: slice = slice(None)) -> xr.DataArray:
    """Return the floor `delta2 / (1 - q)` that the additive form implies.

    Args:
        account: result of `ledger`.
        rounds: rounds over which `q` and `delta2` are averaged, by label, both ends included.

    Returns:
        Energies, dimensions (seed, layer, partition). Infinite where the mean `q` is 1 or more, so
        that the energy grows without end; NaN where no round has both values.
    """
    chosen = account.sel(round=rounds)
    q, delta2 = (chosen[name].mean("round") for name in ("q", "delta2"))
    floor = delta2 / (1 - q).where(q < 1)
    return floor.where(~(q >= 1), np.inf).rename("floor")


def _by_layer(run: xr.Dataset) -> xr.Dataset:
    """Return energies and account, dimensions (seed, round, layer, direction)."""
    names = ("layer_energy" if "layer_energy" in run else "energy", *ACCOUNT)
    bare = run[list(names)]
    if "layer" not in bare.dims:
        bare = bare.expand_dims(layer=[WHOLE])
    return bare.transpose(*_DIMS[:3], "direction").rename({names[0]: "energy"})


def _totals(values: Array, first: NDArray[np.intp]) -> Array:
    """Return the sums over the known directions of each partition; NaN where there are none."""
    known = ~np.isnan(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), first, axis=-1)
    return np.where(np.logical_or.reduceat(known, first, axis=-1), sums, np.nan)


def _means(values: Array, first: NDArray[np.intp], weights: Array | None = None) -> Array:
    """Return the weighted means of each partition; the plain ones where no weight is positive."""
    size = np.diff(first, append=values.shape[-1])
    plain = np.add.reduceat(values, first, axis=-1) / size
    if weights is None:
        return plain
    total = _totals(weights, first)
    return np.where(total > 0, _totals(values * weights, first) / total, plain)


def _decades(low: Array, high: Array) -> Array:
    """Return log10(high / low); 0 where both are zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log10(high) - np.log10(low)
    return np.where((low == 0) & (high == 0), 0.0, found)
