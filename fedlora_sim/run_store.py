"""Finished runs on disk, so that long work survives Ctrl-C and kill -9 and goes on from there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from fedlora_sim.datasets import load_dataset, save_dataset, versions


class RunStore:
    """Finished pieces of one piece of work, in a folder of its own.

    Every piece is written under a temporary name and moved into place, so that whatever is there
    is whole. The folder's name follows from everything that the work depends on: pieces of another
    configuration, or of other code, lie beside it and are never mixed in.

    Args:
        parent: where the folder is made, when the first piece is kept.
        configuration: what the work depends on besides the simulator, JSON-serialisable.
    """

    def __init__(self, parent: str | Path, configuration: Mapping[str, Any]) -> None:
        code = source_fingerprint(Path(__file__).parent)
        described = json.dumps({**configuration, **versions(), "code": code}, sort_keys=True)
        self.folder = Path(parent) / hashlib.sha256(described.encode()).hexdigest()[:12]

    def count(self) -> int:
        """Pieces kept so far."""
        return sum(1 for path in self.folder.glob("*") if path.suffix in {".json", ".nc"})

    def get_run(self, label: str) -> xr.Dataset | None:
        """A kept dataset, or None."""
        path = self.folder / f"{label}.nc"
        return load_dataset(path) if path.exists() else None

    def put_run(self, label: str, dataset: xr.Dataset) -> None:
        """Keep a dataset."""
        save_dataset(dataset, self.folder / f"{label}.nc")

    def get_record(self, label: str) -> dict[str, Any] | None:
        """A kept record, or None."""
        path = self.folder / f"{label}.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def put_record(self, label: str, record: Mapping[str, Any]) -> None:
        """Keep a JSON record."""
        write_text(self.folder / f"{label}.json", json.dumps(record))

    def clear(self) -> None:
        """Drop everything: the work is done."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # other work is kept there
            self.folder.parent.rmdir()


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def source_fingerprint(folder: Path) -> str:
    """Hash of the Python sources below a folder: results of other code are not reused."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
