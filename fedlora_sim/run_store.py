"""Finished runs on disk, so that long work survives Ctrl-C and kill -9 and goes on from there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from fedlora_sim.datasets import load_dataset, save_dataset
from fedlora_sim.errors import expected


class RunStore:
    """A folder of finished pieces of one piece of work.

    Every piece is written under a temporary name and moved into place, so that whatever is there
    is whole. Pieces of other work (another configuration, another version of the code) are
    dropped, never mixed in.

    Args:
        folder: where the pieces lie; made when the first is kept.
        configuration: everything that the work depends on, JSON-serialisable.

    Raises:
        ValueError: if the folder holds something else.
    """

    def __init__(self, folder: str | Path, configuration: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        described = json.dumps({**configuration, "code": code_fingerprint()}, sort_keys=True)
        self.key = hashlib.sha256(described.encode()).hexdigest()
        stored = self._stored_key()
        if stored is None and self._holds_something_else():
            raise expected("folder", str(folder), "a store of finished runs, or no folder yet")
        if stored != self.key:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _stored_key(self) -> str | None:
        try:
            return (self.folder / "key").read_text()
        except OSError:
            return None

    def _holds_something_else(self) -> bool:
        """Whether anything lies there but what a store killed at its first breath leaves."""
        return self.folder.exists() and any(p.suffix != ".tmp" for p in self.folder.iterdir())

    def count(self) -> int:
        """Pieces kept so far."""
        return sum(1 for path in self.folder.glob("*") if path.suffix in {".json", ".nc"})

    def get_run(self, label: str) -> xr.Dataset | None:
        """A kept dataset, or None."""
        path = self.folder / f"{label}.nc"
        return load_dataset(path) if path.exists() else None

    def put_run(self, label: str, dataset: xr.Dataset) -> None:
        """Keep a dataset."""
        self._open()
        save_dataset(dataset, self.folder / f"{label}.nc")

    def get_record(self, label: str) -> dict[str, Any] | None:
        """A kept record, or None."""
        path = self.folder / f"{label}.json"
        return dict(json.loads(path.read_text())) if path.exists() else None

    def put_record(self, label: str, record: Mapping[str, Any]) -> None:
        """Keep a JSON record."""
        self._open()
        write_text(self.folder / f"{label}.json", json.dumps(record))

    def clear(self) -> None:
        """Drop everything: the work is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> None:
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            write_text(self.folder / "key", self.key)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def code_fingerprint() -> str:
    """Hash of the simulator's and the analysis' sources: results of other code are not reused."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for folder in (package, package.parent / "analysis"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
