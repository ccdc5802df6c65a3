"""Adapter folders on disk, whole or not at all.

Everything is written into a working folder beside the output and renamed into place at the end, so
that a run that is stopped, by force too, leaves either the old output or the new one. What a killed
run leaves behind is a hidden folder that the next run to the same output removes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fedlora_sim.adapters.config import CONFIG_FILE
from fedlora_sim.adapters.reading import WEIGHTS_FILE
from fedlora_sim.errors import expected

try:
    import fcntl
except ImportError:  # not a POSIX system: what a killed run left behind stays there
    fcntl = None  # type: ignore[assignment]

REPORT_FILE = "aggregation.json"
OUR_FILES = {CONFIG_FILE, WEIGHTS_FILE, REPORT_FILE, "README.md"}
OUR_FOLDERS = {"adapter", "base", "clients"}


@dataclass(frozen=True, eq=False)
class AdapterContent:
    """What an adapter folder holds.

    Args:
        config: the configuration, as PEFT writes it.
        tensors: tensors by key, as PEFT names them.
        report: how the adapter came about; not a part of what PEFT reads.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    report: Mapping[str, Any] | None = None


def check_output(out: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse an output folder that cannot be written, or whose writing would destroy something.

    Args:
        out: folder to write.
        inputs: folders that are read; the output must not be one of them, in one, or around one.
        force: whether an adapter folder that is there may be replaced.

    Raises:
        InputError: naming the folder and what was expected.
    """
    for path in (out, *out.absolute().parents):
        if path.is_symlink() if path == out else (path.exists() and not path.is_dir()):
            kind = "a link" if path == out else "a file"
            raise expected("out", str(out), f"a place to write to ({path} is {kind})")
    place = out.resolve()
    for folder in inputs:
        other = folder.resolve()
        if place == other or place in other.parents or other in place.parents:
            raise expected("out", str(out), f"a folder apart from the input folder {folder}")
    if not out.exists():
        return
    if not out.is_dir():
        raise expected("out", str(out), "a place to write to (it is a file)")
    if not force:
        raise expected("out", str(out), "a folder that does not exist yet (or --force)")
    foreign = _foreign_entry(out)
    if foreign is not None:
        expectation = f"an adapter folder to replace, but it also holds {foreign.relative_to(out)}"
        raise expected("out", str(out), expectation)
    if any(out.iterdir()) and not (out / CONFIG_FILE).exists():
        raise expected(
            "out", str(out), f"an adapter folder to replace, but it has no {CONFIG_FILE}"
        )


def write_adapters(
    out: Path, contents: Iterable[tuple[str, AdapterContent]], *, force: bool
) -> None:
    """Write a folder of adapters, whole or not at all.

    Args:
        out: folder to write, checked by `check_output`.
        contents: adapters by their place in the folder, "" for the folder itself; drawn one by
            one, so that only one has to be in memory.
        force: whether to replace an adapter folder that is there.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with _working_folder(out) as work:
        new = work / "new"
        for place, content in contents:
            _write_adapter(new / place, content)
        _put_in_place(new, out, work / "old", force)
    _remove_leftovers(out)


def _write_adapter(folder: Path, content: AdapterContent) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.contiguous() for key, tensor in content.tensors.items()}
    try:
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    except SafetensorError as error:  # what the disk refuses does not come as an OSError
        raise OSError(f"{folder / WEIGHTS_FILE}: {error}") from error
    _write_json(folder / CONFIG_FILE, content.config)
    if content.report is not None:
        _write_json(folder / REPORT_FILE, content.report)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _put_in_place(new: Path, out: Path, old: Path, force: bool) -> None:
    """Rename `new` to `out`; what was there goes to `old`, and comes back if that fails."""
    check_output(out, (), force=force)  # again: it may have come into being, or filled, meanwhile
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise


def _foreign_entry(folder: Path) -> Path | None:
    """Something in a folder that no adapter folder holds, if there is any."""
    for entry in sorted(folder.iterdir()):
        if not entry.is_symlink() and entry.is_dir():
            if entry.name not in OUR_FOLDERS and folder.name != "clients":
                return entry
            found = _foreign_entry(entry)
            if found is not None:
                return found
        elif entry.is_symlink() or entry.name not in OUR_FILES:
            return entry
    return None


@contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, locked while this process lives, removed at the end."""
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    lock = _lock(work)
    try:
        yield work
    finally:
        if out.exists() or not (work / "old").exists():  # else it is all that is left of `out`
            shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder, which ends with this process however it ends; None if another holds it."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_leftovers(out: Path) -> None:
    """Remove the working folders of runs to the same output that were killed."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.[a-z0-9_]{{8}}\.tmp")
    for folder in out.parent.iterdir():
        if not ours.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        if not {entry.name for entry in folder.iterdir()} <= {"new", "old"}:
            continue
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
