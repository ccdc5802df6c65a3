"""Moments and quantiles over seeds, block by block, for more runs than fit into memory.

Blocks are merged by the pairwise formula of Chan, Golub and LeVeque 1979 (Stanford STAN-CS-79-773).
Quantiles come from histograms of the decimal logarithm. Their bins have a width of 2**-10 decades;
where the energies of a round and direction span more than `BINS` bins, neighboring bins are merged
until they do not. The bins depend on the lowest and the highest value alone, so that the result is
the same for all blocks and orders of the seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fedlora_sim.datasets import LABELS, direction_coords
from fedlora_sim.scenario import Scenario
from fedlora_sim.version import versions

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS = 1024
"""Bins of a histogram."""
PER_DECADE = 1024
"""Narrowest bins of a decade."""
BLOCK_NUMBERS = 2_000_000
"""Energies of a block: 16 MB."""


def blocks_of(scenario: Scenario, seeds: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Return the seeds in blocks whose energies fit into memory."""
    numbers = (scenario.rounds + 1) * scenario.federation.r_max
    size = max(1, BLOCK_NUMBERS // numbers)
    for start in range(0, len(seeds), size):
        yield seeds[start : start + size]


class RunningMoments:
    """Mean and variance of each entry over runs. Values that are not a number do not count."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count: Array = np.zeros(shape)
        self.mean: Array = np.zeros(shape)
        self.squares: Array = np.zeros(shape)  # sums of squared deviations from the mean

    def add(self, values: Array) -> None:
        """Add a block of runs, (S, ...)."""
        known, block = ~np.isnan(values), RunningMoments(values.shape[1:])
        block.count += known.sum(0)
        block.mean += np.where(known, values, 0.0).sum(0) / np.maximum(block.count, 1)
        block.squares += np.where(known, (values - block.mean) ** 2, 0.0).sum(0)
        self.merge(block)

    def merge(self, other: RunningMoments) -> None:
        """Add the runs of another one."""
        total = np.maximum(self.count + other.count, 1)
        shift = other.mean - self.mean
        self.squares += other.squares + shift**2 * (self.count * other.count / total)
        self.mean += shift * (other.count / total)
        self.count += other.count

    def result(self) -> tuple[Array, Array]:
        """Return means, and variances with divisor `n - 1`; NaN without enough values."""
        mean = np.where(self.count > 0, self.mean, np.nan)
        divisor = np.where(self.count > 1, self.count - 1, np.nan)
        return mean, self.squares / divisor


class RunningQuantiles:
    """Quantiles of each entry over runs, by histograms of the logarithms of positive values."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        cells = int(np.prod(shape))
        self.shape, self.runs = shape, 0
        self.zeros: Integers = np.zeros(cells, dtype=np.int64)
        self.counts: Integers = np.zeros((cells, BINS), dtype=np.int64)
        # The first bin and the level: bins of level L have 2**L of the narrowest.
        self.first: Integers = np.zeros(cells, dtype=np.int64)
        self.level: Integers = np.zeros(cells, dtype=np.int64)
        self.least: Array = np.full(cells, np.inf)
        self.most: Array = np.zeros(cells)

    def add(self, values: Array) -> None:
        """Add a block of runs with values of at least zero, (S, ...)."""
        rows = values.reshape(len(values), -1)
        positive = rows > 0
        self.runs += len(rows)
        self.zeros += (~positive).sum(0)
        self._widen(np.where(positive, rows, np.inf).min(0), rows.max(0))
        run, cell = np.nonzero(positive)
        place = (_narrow_bin(rows[run, cell]) >> self.level[cell]) - self.first[cell]
        found = np.bincount(cell * BINS + place, minlength=self.counts.size)
        self.counts += found.reshape(self.counts.shape)

    def merge(self, other: RunningQuantiles) -> None:
        """Add the runs of another one."""
        self.runs += other.runs
        self.zeros += other.zeros
        self._widen(other.least, other.most)
        cell, place = np.nonzero(other.counts)
        narrow = (other.first[cell] + place) << other.level[cell]
        here = (narrow >> self.level[cell]) - self.first[cell]
        np.add.at(self.counts, (cell, here), other.counts[cell, place])

    def _widen(self, least: Array, most: Array) -> None:
        """Merge neighboring bins until the range of every entry fits, with these values."""
        self.least, self.most = np.minimum(self.least, least), np.maximum(self.most, most)
        cells = np.flatnonzero(self.most > 0)
        lowest, highest = _narrow_bin(self.least[cells]), _narrow_bin(self.most[cells])
        level = np.zeros(len(cells), dtype=np.int64)
        while (wide := (highest >> level) - (lowest >> level) >= BINS).any():
            level += wide
        first = lowest >> level
        moved = (level != self.level[cells]) | (first != self.first[cells])
        cells, level, first = cells[moved], level[moved], first[moved]
        old = self.first[cells, None] + np.arange(BINS)
        new = (old >> (level - self.level[cells])[:, None]) - first[:, None]
        counts = self.counts[cells]
        row, place = np.nonzero(counts)
        self.counts[cells] = 0
        np.add.at(self.counts, (cells[row], new[row, place]), counts[row, place])
        self.level[cells], self.first[cells] = level, first

    def result(self, quantiles: Sequence[float]) -> Array:
        """Return the smallest values that at least these shares of the runs do not exceed.

        Returns:
            (quantiles, ...), each within one bin: see `resolution`.
        """
        reached = self.counts.cumsum(1)
        found = np.empty((len(quantiles), len(self.zeros)))
        for row, q in zip(found, quantiles, strict=True):
            rank = np.clip(np.ceil(q * self.runs), 1, self.runs) - self.zeros
            place = np.minimum((reached < rank[:, None]).sum(1), BINS - 1)
            cell = np.arange(len(place))
            own = np.maximum(self.counts[cell, place], 1)
            within = (rank - (reached[cell, place] - own) - 0.5) / own
            decades = (self.first + place + within) * np.exp2(self.level) / PER_DECADE
            row[:] = np.where(rank > 0, np.clip(10.0**decades, self.least, self.most), 0.0)
        return found.reshape(-1, *self.shape)

    def resolution(self) -> Array:
        """Return the width of the bins of each entry, in decades."""
        return (np.exp2(self.level) / PER_DECADE).reshape(self.shape)


def _narrow_bin(values: Array) -> Integers:
    """Return the number of the narrowest bin of each positive value."""
    return np.floor(np.log10(values) * PER_DECADE).astype(np.int64)


HISTOGRAM = ("zeros", "counts", "first", "level", "least", "most")


class SeedMoments:
    """Moments of the variables of `simulate`, and quantiles of the energies."""

    def __init__(self, scenario: Scenario, rule: str) -> None:
        self.scenario, self.rule = scenario, rule
        cells = (scenario.rounds + 1, scenario.federation.r_max)
        shapes = {"energy": cells, "rho": cells[:1], "effective_rank": cells[:1]}
        if scenario.fidelity == "matrix":
            shapes["projected_energy"] = cells
        self._moments = {name: RunningMoments(shape) for name, shape in shapes.items()}
        self._energies = RunningQuantiles(cells)

    def add(self, runs: xr.Dataset) -> None:
        """Add a block of runs, as `simulate` returns them."""
        for name, moments in self._moments.items():
            moments.add(runs[name].values)
        self._energies.add(runs.energy.values)

    def merge(self, other: SeedMoments) -> None:
        """Add the runs of another one, of the same scenario and rule."""
        for name, moments in self._moments.items():
            moments.merge(other._moments[name])
        self._energies.merge(other._energies)

    def state(self) -> xr.Dataset:
        """Return the counts and sums, from which `from_state` continues."""
        data = {
            f"{name} {part}": getattr(moments, part)
            for name, moments in self._moments.items()
            for part in ("count", "mean", "squares")
        }
        data |= {name: getattr(self._energies, name) for name in HISTOGRAM}
        named = {k: ([f"{k} {i}" for i in range(v.ndim)], v) for k, v in data.items()}
        return xr.Dataset(named, attrs={"runs": self._energies.runs})

    @classmethod
    def from_state(cls, scenario: Scenario, rule: str, state: xr.Dataset) -> SeedMoments:
        """Return the moments of a state."""
        found = cls(scenario, rule)
        for name, moments in found._moments.items():
            for part in ("count", "mean", "squares"):
                setattr(moments, part, state[f"{name} {part}"].values.copy())
        for name in HISTOGRAM:
            setattr(found._energies, name, state[name].values.copy())
        found._energies.runs = int(state.attrs["runs"])
        return found

    def dataset(self, seeds: Sequence[int]) -> xr.Dataset:
        """Return the labeled result for all seeds that were added.

        Returns:
            For each variable of `simulate`, `<name>_mean` and `<name>_variance`; `energy_quantile`
            (quantile, round, direction) with `quantile_resolution` (round, direction); `extinct`
            (round, direction). Attributes hold the configuration and the seeds.
        """
        scenario, federation = self.scenario, self.scenario.federation
        variables = {}
        cells = ("round", "direction")
        for name, moments in self._moments.items():
            dims, (meaning, unit) = cells[: moments.mean.ndim], LABELS[name]
            square = "1" if unit == "1" else f"({unit})**2"
            mean, variance = moments.result()
            for kind, values, units in (("mean", mean, unit), ("variance", variance, square)):
                attrs = {"long_name": f"{kind} over seeds: {meaning}", "units": units}
                variables[f"{name}_{kind}"] = xr.Variable(dims, values, attrs)
        meaning, unit = LABELS["energy"]
        for name, dims, values, long_name, units in (
            (
                "energy_quantile",
                ("quantile", *cells),
                self._energies.result(QUANTILES),
                f"quantile over seeds: {meaning}",
                unit,
            ),
            (
                "quantile_resolution",
                cells,
                self._energies.resolution(),
                "width of the bins from which quantiles are read",
                "decades",
            ),
            (
                "extinct",
                cells,
                (self._energies.zeros / self._energies.runs).reshape(self._energies.shape),
                "share of seeds whose direction has no energy",
                "1",
            ),
        ):
            variables[name] = xr.Variable(dims, values, {"long_name": long_name, "units": units})
        return xr.Dataset(
            variables,
            coords={
                "quantile": list(QUANTILES),
                "round": np.arange(scenario.rounds + 1),
                **direction_coords(federation, scenario.allocation),
            },
            attrs={
                **scenario.to_attrs(),
                "rule": self.rule,
                **versions(),
                "rho_level": federation.levels[0],
                "keep": "moments",
                "num_seeds": len(seeds),
                "seeds": ranges_of(seeds),
            },
        )


def ranges_of(seeds: Sequence[int]) -> str:
    """Return distinct seeds as text, in ascending order: `0-999999` or `3,7-9`."""
    ordered = np.sort(np.asarray(seeds, dtype=np.int64))
    parts = np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1)
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
