"""One array of a sweep, in many files: read when it is looked at, NaN where nothing is yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from fedlora_sim.errors import expected
from fedlora_sim.sweep.store import task_path

Key = tuple[int | slice, ...]


@dataclass(frozen=True)
class Places:
    """Where every run of a sweep is.

    Args:
        folder: of the sweep.
        tasks: ids.
        task: number of the task of every run, -1 where its file is missing; the sweep's shape.
        offset: the run's place in the file; same shape.
    """

    folder: Path
    tasks: Sequence[str]
    task: NDArray[np.int64]
    offset: NDArray[np.int64]


class SweepArray(BackendArray):
    """A variable over all runs, as xarray's backends have it.

    Args:
        name: of the variable.
        places: where runs are.
        inner: its shape in a run; a run with less is filled up with NaN.
        dtype: of the values.
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
        """Read one file: the runs of it that are asked for, as far as they go."""
        path = task_path(self.places.folder, task)
        low, high = int(runs.min()), int(runs.max()) + 1
        try:
            with h5py.File(path, "r") as file:
                if self.name not in file:  # another fidelity
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
