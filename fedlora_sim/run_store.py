"""Intermediate results of a job, from which it continues after an interruption."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_sim.storage import (
    code_versions,
    damaged,
    digest,
    encode_dataset,
    remove_stale,
    write_bytes,
)

if TYPE_CHECKING:
    import xarray as xr


class RunStore:
    """Intermediate results of one job, in their own folder.

    The folder's name is derived from everything that the job depends on, so that results of another
    configuration or of other code are in other folders and never mixed. Each result has the digest
    of its content in its name, which reveals damage.

    Args:
        parent: where the folder is created when the first result is stored.
        configuration: what the job depends on besides the simulator, JSON-serializable.
    """

    def __init__(self, parent: str | Path, configuration: Mapping[str, Any]) -> None:
        described = json.dumps({**configuration, **code_versions()}, sort_keys=True)
        self.folder = Path(parent) / digest(described.encode())[:12]

    def count(self) -> int:
        """Return the number of stored results."""
        return sum(1 for path in self.folder.glob("*") if path.suffix in {".json", ".nc"})

    def get_run(self, label: str) -> xr.Dataset | None:
        """Return a stored dataset, or None.

        Raises:
            InputError: if its file is damaged.
        """
        import xarray as xr

        content = self._get(label, ".nc")
        if content is None:
            return None
        with xr.open_dataset(io.BytesIO(content), engine="h5netcdf") as dataset:
            return dataset.load()

    def put_run(self, label: str, dataset: xr.Dataset) -> None:
        """Store a dataset."""
        self._put(label, ".nc", encode_dataset(dataset))

    def get_record(self, label: str) -> dict[str, Any] | None:
        """Return a stored record, or None.

        Raises:
            InputError: if its file is damaged.
        """
        content = self._get(label, ".json")
        return None if content is None else dict(json.loads(content))

    def put_record(self, label: str, record: Mapping[str, Any]) -> None:
        """Store a JSON record."""
        self._put(label, ".json", json.dumps(record).encode())

    def remove_stale(self) -> None:
        """Remove temporary files of killed processes."""
        remove_stale(self.folder)

    def clear(self) -> None:
        """Remove everything, after the job is done."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # results of other jobs are stored there
            self.folder.parent.rmdir()

    def _get(self, label: str, suffix: str) -> bytes | None:
        for path in self._paths(label, suffix):
            content = path.read_bytes()
            if digest(content)[:16] != path.stem.rpartition(".")[2]:
                what = "a finished piece of work, unchanged"
                raise damaged(path, what, "its content does not match its name")
            return content
        return None

    def _put(self, label: str, suffix: str, content: bytes | memoryview) -> None:
        older = self._paths(label, suffix)
        path = self.folder / f"{label}.{digest(content)[:16]}{suffix}"
        write_bytes(path, content)
        for other in older:
            if other != path:
                other.unlink(missing_ok=True)

    def _paths(self, label: str, suffix: str) -> list[Path]:
        named = re.compile(rf"{re.escape(label)}\.[0-9a-f]{{16}}{re.escape(suffix)}")
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path for path in found if named.fullmatch(path.name))
