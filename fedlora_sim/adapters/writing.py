"""Adapter folders on disk, complete or absent.

An output folder appears, or replaces an older one, in one step: at every moment there is the old
output or the new one. `fedlora_sim.storage` does it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedlora_sim.adapters.config import CONFIG_FILE
from fedlora_sim.adapters.reading import WEIGHTS_FILE
from fedlora_sim.errors import expected
from fedlora_sim.storage import (
    check_folder,
    remove_stale,
    replacing_folder,
    write_tensors,
    write_text,
)

REPORT_FILE = "aggregation.json"
COMMAND = "aggregate"
"""What the marker of an adapter folder names as its writer, whichever command it was."""


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
    remove_stale(out.absolute().parent)
    check_folder(out, force=force)


def write_adapters(
    out: Path, contents: Iterable[tuple[str, AdapterContent]], *, force: bool
) -> None:
    """Write a folder of adapters, in one step.

    Args:
        out: folder to write, checked by `check_output`.
        contents: adapters by their place in the folder, "" for the folder itself; drawn one by
            one, so that only one has to be in memory.
        force: whether to replace an adapter folder that is there.
    """
    with replacing_folder(out.resolve(), COMMAND, force=force) as new:
        for place, content in contents:
            _write_adapter(new / place, content)


def _write_adapter(folder: Path, content: AdapterContent) -> None:
    write_tensors(folder / WEIGHTS_FILE, content.tensors, {"format": "pt"})
    _write_json(folder / CONFIG_FILE, content.config)
    if content.report is not None:
        _write_json(folder / REPORT_FILE, content.report)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
