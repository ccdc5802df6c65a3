"""`open_sweep`: return the finished runs of a sweep as one labeled dataset."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from fedlora_sim.datasets import LABELS
from fedlora_sim.errors import expected
from fedlora_sim.sweep.grid import SEED
from fedlora_sim.sweep.plan import SweepTask
from fedlora_sim.sweep.store import MANIFEST, Manifest, load_manifest, present_tasks, task_path

# Arrays of a sweep in many files: read lazily, NaN for missing runs

Key = tuple[int | slice, ...]


@dataclass(frozen=True)
class Places:
    """The location of each run of a sweep.

    Args:
        folder: folder of the sweep.
        tasks: task ids.
        task: number of the task of each run, -1 if its file is missing; the sweep's shape.
        offset: position of the run in the file; same shape.
    """

    folder: Path
    tasks: Sequence[str]
    task: NDArray[np.int64]
    offset: NDArray[np.int64]


class SweepArray(BackendArray):
    """A variable over all runs, as an xarray backend array.

    Args:
        name: name of the variable.
        places: locations of the runs.
        inner: shape in one run; smaller runs are padded with NaN.
        dtype: dtype of the values.
    """

    def __init__(self, name: str, places: Places, inner: tuple[int, ...], dtype: Any) -> None:
        self.name, self.places, self.inner = name, places, inner
        self.shape = (*places.task.shape, *inner)
        self.dtype = np.dtype(dtype)

    def __getitem__(self, key: Any) -> Any:
        basic = indexing.IndexingSupport.BASIC
        return indexing.explicit_indexing_adapter(key, self.shape, basic, self._read)

    def _read(self, key: Key) -> NDArray[Any]:
        outer = self.places.task.ndim
        tasks = np.asarray(self.places.task[key[:outer]])
        offsets = np.asarray(self.places.offset[key[:outer]])
        chosen = [np.arange(n)[k] for n, k in zip(self.inner, key[outer:], strict=True)]
        lengths = tuple(np.size(index) for index in chosen)
        fill = np.nan if self.dtype.kind == "f" else 0
        found = np.full((tasks.size, *lengths), fill, self.dtype)
        flat, places = tasks.ravel(), offsets.ravel()
        order = np.argsort(flat, kind="stable")
        starts = np.flatnonzero(np.diff(flat[order], prepend=-2))
        for group in np.split(order, starts[1:]):
            if group.size and flat[group[0]] >= 0:
                self._fill(found, group, self.places.tasks[flat[group[0]]], places[group], chosen)
        kept = tuple(np.size(i) for i in chosen if np.ndim(i))
        return found.reshape((*tasks.shape, *kept))

    def _fill(
        self,
        found: NDArray[Any],
        rows: NDArray[np.int64],
        task: str,
        runs: NDArray[np.int64],
        chosen: Sequence[NDArray[np.int64]],
    ) -> None:
        """Read the requested runs from one file."""
        path = task_path(self.places.folder, task)
        low, high = int(runs.min()), int(runs.max()) + 1
        try:
            with h5py.File(path, "r") as file:
                if self.name not in file:  # a run of another fidelity
                    return
                stored = file[self.name]
                sizes = stored.shape[1:]
                there = [np.atleast_1d(i) for i in chosen]
                have = [np.flatnonzero(i < size) for i, size in zip(there, sizes, strict=True)]
                if any(not h.size for h in have):
                    return
                spans = tuple(
                    slice(int(i[h].min()), int(i[h].max()) + 1)
                    for i, h in zip(there, have, strict=True)
                )
                block = stored[(slice(low, high), *spans)]
        except OSError as error:
            raise expected("sweep", str(path), f"a readable file; run it again ({error})") from None
        picks = [i[h] - span.start for i, h, span in zip(there, have, spans, strict=True)]
        found[np.ix_(rows, *have)] = block[np.ix_(runs - low, *picks)]


# The lazy dataset of a sweep

STATES = {
    "energy": ("round", "direction"),
    "rho": ("round",),
    "effective_rank": ("round",),
}
PROJECTED = {"projected_energy": ("round", "direction")}
COVERED_BY = ("ranks", "num_samples", "allocation")
"""Fields that determine coverage and partitions."""


def open_sweep(folder: str | Path, *, chunks: Any = None) -> xr.Dataset:
    """Return the runs of a sweep as one dataset, whether or not all are finished.

    Values are read on access: select the needed part first (`.sel`). Missing runs are NaN, as are
    values beyond a run's last round or direction.

    Args:
        folder: the `out` folder of `run_sweep`.
        chunks: as for `xarray.open_dataset`: `{}` returns Dask arrays with one chunk per point of
            the grid; None uses xarray's own lazy loading.

    Returns:
        Dataset whose dimensions are all fields of `[grid]`, `zip` (with the fields of `[zip]` as
        coordinates), seed (unless it is zipped), round and direction. Ranks are labeled `4x8,8x6`.
        Fields that do not vary are attributes.

    Raises:
        InputError: if the folder holds no sweep.

    Warns:
        UserWarning: if tasks are missing, with their number; or if different code computed them.
    """
    return xr.open_dataset(Path(folder), engine=SweepBackend, chunks=chunks)


class SweepBackend(BackendEntrypoint):
    """xarray backend: `xr.open_dataset(folder, engine=SweepBackend)`."""

    description = "Open a folder of fedlora-sim sweep"
    open_dataset_parameters = ("filename_or_obj", "drop_variables")

    def open_dataset(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None
    ) -> xr.Dataset:
        """Return the dataset of a folder; see `open_sweep`."""
        folder = Path(os.fspath(filename_or_obj)).expanduser().absolute()
        manifest = load_manifest(folder)
        if manifest is None:
            raise expected("sweep", str(folder), f"the folder of a sweep, with its {MANIFEST}")
        present = present_tasks(folder)
        _warn(manifest, present)
        dataset = _Collection(folder, manifest, present).dataset()
        return dataset.drop_vars(drop_variables or [], errors="ignore")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return False: a folder of files may belong to any other program."""
        return False


class _Collection:
    """Parts of the dataset of one sweep."""

    def __init__(self, folder: Path, manifest: Manifest, present: set[str]) -> None:
        self.folder, self.grid = folder, manifest.grid
        self.rows, self.present = manifest.grid.rows, present
        self.tasks = manifest.tasks
        self.of_point: dict[str, SweepTask] = {}
        for task in self.tasks:
            if task.id in present:
                for part in task.parts:
                    self.of_point.setdefault(part.point.id, task)

    def dataset(self) -> xr.Dataset:
        places, dims = self._places(), self._dims()
        layouts, coords, attrs = self._layouts()
        sizes: dict[str, int] = {}
        for own in layouts.values():
            for shape in own.values():
                for dim, size in shape.items():
                    sizes[dim] = max(size, sizes.get(dim, 0))
        names = list(dict.fromkeys(name for own in layouts.values() for name in own))
        whole = bool((places.task >= 0).all())
        chunks = dict.fromkeys(dims, 1) | (
            {} if self.grid.seeds is None else {SEED: len(self.grid.seeds)}
        )
        variables = {}
        for name in names:
            shapes = [own.get(name, {}) for own in layouts.values()]
            inner = next(tuple(shape) for shape in shapes if shape)
            same = whole and all(shape == shapes[0] for shape in shapes)
            dtype = self._dtype(name, same)
            array = SweepArray(name, places, tuple(sizes[dim] for dim in inner), dtype)
            lazy = indexing.LazilyIndexedArray(array)
            preferred = {"preferred_chunks": chunks | {dim: sizes[dim] for dim in inner}}
            variables[name] = xr.Variable((*dims, *inner), lazy, attrs.get(name), preferred)
        own_coords = self._coords(sizes)
        extra = {n: v for n, v in coords.items() if n not in {*own_coords, *variables}}
        return xr.Dataset(variables, own_coords | extra, self._attrs())

    def _dims(self) -> tuple[str, ...]:
        axes = tuple(axis.name for axis in self.grid.axes)
        return axes if self.grid.seeds is None else (*axes, SEED)

    def _places(self) -> Places:
        """Return the locations of the runs of all rows, by point and seed."""
        seeds = self.grid.seeds
        columns = 1 if seeds is None else len(seeds)
        column = {seed: number for number, seed in enumerate(seeds or ())}
        # a zipped point may have a row for each seed
        starts: dict[tuple[str, int | None], int] = {
            (row.point.id, row.seeds[0] if seeds is None else None): number * columns
            for number, row in enumerate(self.rows)
        }
        task, offset = (np.full(len(self.rows) * columns, -1) for _ in range(2))
        for number, one in enumerate(self.tasks):
            if one.id in self.present:
                places = [
                    starts[part.point.id, seed if seeds is None else None] + column.get(seed, 0)
                    for part in one.parts
                    for seed in part.seeds
                ]
                task[places], offset[places] = number, np.arange(len(places))
        shape = self.grid.shape if seeds is None else (*self.grid.shape, columns)
        names = [one.id for one in self.tasks]
        return Places(self.folder, names, task.reshape(shape), offset.reshape(shape))

    def _layouts(
        self,
    ) -> tuple[dict[Any, dict[str, dict[str, int]]], dict[str, Any], dict[str, Any]]:
        """Return shapes of variables for each kind of point, and the coordinates of fine-tuning."""
        layouts: dict[Any, dict[str, dict[str, int]]] = {}
        coords: dict[str, Any] = {}
        attrs = {n: {"long_name": words[0], "units": words[1]} for n, words in LABELS.items()}
        for row in self.rows:
            scenario = row.point.scenario
            key: Any = (scenario.fidelity, scenario.rounds, max(scenario.ranks))
            if scenario.fidelity == "training":
                key = row.point.id
                if key not in layouts and key in self.of_point:
                    layouts[key], more = self._layout_of_file(key)
                    coords = {
                        n: v for n, v in more.items() if n not in coords or _same(v, coords[n])
                    }
                continue
            if key not in layouts:
                sizes = {"round": scenario.rounds + 1, "direction": max(scenario.ranks)}
                kinds = STATES | (PROJECTED if scenario.fidelity == "matrix" else {})
                layouts[key] = {n: {d: sizes[d] for d in dims} for n, dims in kinds.items()}
        return layouts, coords, attrs

    def _layout_of_file(self, point: str) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
        """Return the shapes and coordinates of a fine-tuning run."""
        path = task_path(self.folder, self.of_point[point])
        with xr.open_dataset(path, engine="h5netcdf") as dataset:
            shapes = {
                str(name): {str(d): n for d, n in v.sizes.items() if d != "run"}
                for name, v in dataset.data_vars.items()
            }
            coords = {
                str(n): c.variable.load() for n, c in dataset.coords.items() if "run" not in c.dims
            }
        return shapes, coords

    def _dtype(self, name: str, same: bool) -> Any:
        """Return the dtype of a file if nothing has to be padded with NaN, else float64."""
        if name in STATES or name in PROJECTED:
            return np.float64
        for task in self.of_point.values():
            with h5netcdf.File(task_path(self.folder, task), "r") as file:
                if name in file.variables:
                    own = np.dtype(file.variables[name].dtype)
                    return own if same or own.kind == "f" else np.float64
        return np.float64

    def _coords(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        coords: dict[str, Any] = {}
        for axis in self.grid.axes:
            coords |= {name: (axis.name, values) for name, values in axis.coordinates().items()}
        if self.grid.seeds is not None:
            coords[SEED] = np.asarray(self.grid.seeds, dtype=np.int64)
        if "round" in sizes:
            coords["round"] = np.arange(sizes["round"])
        if "direction" in sizes:
            coords["direction"] = np.arange(1, sizes["direction"] + 1)
            coords |= self._coverage(sizes["direction"])
        return coords

    def _coverage(self, r_max: int) -> dict[str, Any]:
        """Return partition and coverage of directions, along the axes on which they depend."""
        along = [
            number
            for number, axis in enumerate(self.grid.axes)
            if set(axis.fields) & set(COVERED_BY)
        ]
        shape = tuple(self.grid.shape[number] for number in along)
        partition, coverage = (np.full((*shape, r_max), np.nan) for _ in range(2))
        level = np.full(shape, np.nan)
        done = set[tuple[int, ...]]()
        for row in self.rows:
            at = tuple(row.position[number] for number in along)
            if at in done:
                continue
            done.add(at)
            scenario = row.point.scenario
            federation, own = scenario.federation, max(scenario.ranks)
            coverage[at][:own] = federation.coverage(scenario.allocation)
            directions = np.arange(1, own + 1)
            partition[at][:own] = np.searchsorted(federation.levels, directions) + 1
            level[at] = federation.levels[0]
        dims = tuple(self.grid.axes[number].name for number in along)
        known = {
            "rho_level": (dims, _whole(level)),
            "partition": ((*dims, "direction"), _whole(partition)),
        }
        if any(row.point.scenario.fidelity == "training" for row in self.rows):
            return known  # coverage depends on the split of each seed
        return known | {"coverage": ((*dims, "direction"), coverage)}

    def _attrs(self) -> dict[str, Any]:
        """Return the fields that all rows share, as `simulate` writes them."""
        first = self.rows[0].point
        own = {**first.scenario.to_attrs(), "rule": first.rule}
        return {name: value for name, value in own.items() if name not in self.grid.swept}


def _warn(manifest: Manifest, present: set[str]) -> None:
    missing = sum(task.id not in present for task in manifest.tasks)
    if missing:
        told = f"{missing:,} of {len(manifest.tasks):,} tasks are missing, their runs are NaN"
        warnings.warn(told, stacklevel=5)
    if len(manifest.made_with) > 1:
        codes = ", ".join(versions["code"] for versions in manifest.made_with)
        warnings.warn(f"tasks were made by different code: {codes}", stacklevel=5)


def _same(one: xr.Variable, other: xr.Variable) -> bool:
    return bool(one.identical(other))


def _whole(values: NDArray[np.float64]) -> NDArray[Any]:
    """Return the values as integers if none is missing."""
    return values.astype(np.int64) if not np.isnan(values).any() else values
