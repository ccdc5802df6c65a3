"""Files of the figures' numbers: a CSV in long form, and a JSON file that describes it.

Each row is one number: the quantity, its coordinates (empty where it has none), its value. The two
files together reproduce the dataset, up to the written digits.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import analysis
import fedlora_sim
from analysis.claims.base import RunContext
from analysis.paper.recipe import Recipe
from fedlora_sim.errors import expected
from fedlora_sim.storage import ResultFolder, digest, source_fingerprint, write_json, write_text
from fedlora_sim.version import versions

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "analysis.paper"
QUANTITY, VALUE = "quantity", "value"
DIGITS = 9
KINDS: dict[str, Any] = {"i": int, "f": float, "U": str}


def make(recipe: Recipe, folder: Path, context: RunContext, *, force: bool = False) -> Path:
    """Make the numbers of a recipe and write both files.

    Args:
        recipe: the recipe.
        folder: folder of the files.
        context: seeds, and the store of finished runs.
        force: whether files that were edited since may be replaced.

    Returns:
        The CSV file.

    Raises:
        InputError: before anything is computed, if the files exist and may not be replaced.
    """
    results = ResultFolder(folder, COMMAND, force=force)
    results.check((f"{recipe.name}.csv", f"{recipe.name}.json"), drop_older=False)
    sources = _sources(recipe)
    found = recipe.dataset(context)
    text = to_csv(found)
    record = {**_inputs(recipe, context, sources), **_form(found, recipe)}
    record |= {"sha256": digest(text.encode())}
    with results.replace(drop_older=False) as new:
        write_text(new / f"{recipe.name}.csv", text)
        write_json(_sidecar(new, recipe.name), record)
    return folder / f"{recipe.name}.csv"


def is_current(recipe: Recipe, folder: Path, context: RunContext) -> bool:
    """Return True if the files exist, are intact, and come from the same code and inputs."""
    try:
        record = read_record(folder, recipe.name)
        text = (folder / f"{recipe.name}.csv").read_bytes()
    except (OSError, ValueError):
        return False
    inputs = json.loads(json.dumps(_inputs(recipe, context, _sources(recipe))))
    same = {name: record.get(name) for name in inputs} == inputs
    return same and record.get("sha256") == digest(text)


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """Return the JSON file of a figure's numbers."""
    return dict(json.loads(_sidecar(folder, name).read_text(encoding="utf-8")))


def read(folder: Path, name: str) -> xr.Dataset:
    """Return the dataset of a figure, from its two files.

    Raises:
        InputError: if the CSV file does not match the JSON file.
    """
    record = read_record(folder, name)
    text = (folder / f"{name}.csv").read_bytes()
    if digest(text) != record["sha256"]:
        raise expected(f"{name}.csv", digest(text), f"the file of sha256 {record['sha256']}")
    return from_csv(text.decode(), record)


def to_csv(dataset: xr.Dataset) -> str:
    """Return the long form: `quantity`, every dimension, `value`; NaN is empty."""
    dims = [str(dim) for dim in dataset.dims]
    frames = []
    for name in _quantities(dataset):
        array = dataset[name].reset_coords(drop=True)
        frame = array.to_dataframe(VALUE) if array.ndim else pd.DataFrame({VALUE: [array.item()]})
        frames.append(frame.reset_index(drop=not array.ndim).map(_text).assign(**{QUANTITY: name}))
    table = pd.concat(frames)[[QUANTITY, *dims, VALUE]]
    return str(table.to_csv(index=False, lineterminator="\n"))


def from_csv(text: str, record: Mapping[str, Any]) -> xr.Dataset:
    """Return the dataset that `to_csv` wrote, with the types and attributes of the record."""
    table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    places = {
        dim: _typed(table.loc[table[dim] != "", dim].unique(), kind)
        for dim, kind in record["dimensions"].items()
    }
    arrays = {}
    for name, form in record["variables"].items():
        values = _typed(table.loc[table[QUANTITY] == name, VALUE].to_numpy(), form["kind"])
        arrays[name] = (form["dims"], values.reshape([len(places[dim]) for dim in form["dims"]]))
    coords = [name for name, form in record["variables"].items() if form["coordinate"]]
    attrs = record["settings"] | record["attributes"]
    return xr.Dataset(arrays, places, attrs).set_coords(coords)


def _typed(texts: np.ndarray, kind: str) -> np.ndarray:
    """Return cells as whole numbers, floats (empty is NaN) or texts."""
    if kind == "f":
        texts = np.where(texts == "", "nan", texts)
    return texts.astype(KINDS[kind])


def code_fingerprint() -> str:
    """Return the hash of all code that makes the numbers."""
    rooms = (fedlora_sim, analysis)
    parts = [source_fingerprint(Path(str(room.__file__)).parent) for room in rooms]
    return digest("".join(parts).encode())[:12]


def _inputs(recipe: Recipe, context: RunContext, sources: Mapping[str, str]) -> dict[str, Any]:
    """Return everything on which the numbers depend."""
    made = {"made_with": {**versions(), "code": code_fingerprint()}}
    seeds = None if recipe.runs is None else context.seeds([recipe.runs[0], recipe.runs[-1]])
    return {
        "name": recipe.name,
        "about": recipe.about,
        "command": f"python -m analysis.paper {recipe.name}",
        "settings": dict(recipe.settings),
        "seeds": seeds,
        "sources": dict(sources),
        **made,
    }


def _form(dataset: xr.Dataset, recipe: Recipe) -> dict[str, Any]:
    """Return a description of the CSV that is sufficient to read it."""
    return {
        "units": {str(name): recipe.units[str(name)] for name in dataset.variables},
        "dimensions": {str(dim): _kind(dataset[dim]) for dim in dataset.dims},
        "variables": {
            name: {
                "dims": [str(dim) for dim in dataset[name].dims],
                "kind": _kind(dataset[name]),
                "coordinate": name in dataset.coords,
            }
            for name in _quantities(dataset)
        },
        "attributes": {str(name): _attribute(value) for name, value in dataset.attrs.items()},
    }


def _sources(recipe: Recipe) -> dict[str, str]:
    return {path: digest((ROOT / path).read_bytes()) for path in recipe.sources}


def _quantities(dataset: xr.Dataset) -> list[str]:
    """Return the variables, and the coordinates that are not dimensions."""
    return [str(name) for name in dataset.variables if name not in dataset.dims]


def _kind(array: xr.DataArray) -> str:
    """Return `integer`, `float` or `text`."""
    kind = array.dtype.kind
    return kind if kind in KINDS else "U"


def _attribute(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.{DIGITS}g}"
    return str(value)


def _sidecar(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
