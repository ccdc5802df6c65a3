"""The grid of a sweep: read its TOML file and check it to the last row before anything is run.

    [scenario]            # fixed fields
    ranks = "4x8,8x6,16x4"
    seed = {start = 0, count = 100}

    [grid]                # all combinations of these lists
    rule = ["fedavg", "raflora"]
    gain_std = [0.0, 0.1]

    [zip]                 # lists that vary together
    d_in = [64, 128]
    d_out = [32, 64]

All lists of `[zip]` have the same length.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import groupby, product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_sim.errors import InputError, check_choice, check_count, check_seed, expected, shown
from fedlora_sim.federation import parse_ranks
from fedlora_sim.rules import get_rule, rule_names
from fedlora_sim.scenario import NONE, Scenario

# Axes of a sweep: varying fields and labels of their values

MOST_RUNS = 10_000_000
"""Maximum number of runs of a sweep, and so of seeds in one list."""
RULE, SEED, ZIP = "rule", "seed", "zip"
FIELDS = (*(field.name for field in fields(Scenario)), RULE, SEED)
LISTS = ("ranks", "num_samples", "client_learning_rates", "target_modules", "drift_levels")
"""Fields whose value may be a list."""


@dataclass(frozen=True)
class Axis:
    """One dimension of a sweep.

    Args:
        name: name of the dimension: that of the field, or `zip` for fields that vary together.
        fields: the fields that vary along it.
        values: one tuple per position, with a value per field.
    """

    name: str
    fields: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]

    def __len__(self) -> int:
        return len(self.values)

    def at(self, position: int) -> dict[str, Any]:
        """Return the fields and their values at a position."""
        return dict(zip(self.fields, self.values[position], strict=True))

    def coordinates(self) -> dict[str, NDArray[Any]]:
        """Return the values of each field along the axis, as numbers if all of them are."""
        columns = zip(self.fields, zip(*self.values, strict=True), strict=True)
        return {name: labels(name, column) for name, column in columns}


def check_field(name: str) -> str:
    """Check and return the name of a field; the error for an unknown one names the closest."""
    if name not in FIELDS:
        check_choice("sweep field", name, FIELDS)
        raise expected("sweep field", name, f"{name.lower()!r}, in lower case")
    return name


def check_values(table: str, name: str, values: object) -> list[Any]:
    """Return the values of a field, at least one.

    Raises:
        InputError: names table and field.
    """
    if name == SEED:
        return list(read_seeds(f"[{table}] seed", values))
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        is_one = not isinstance(values, list)
        one = f" (or {name} = {shown(values)} in [scenario])" if is_one else ""
        raise expected(f"[{table}] {name}", values, f"a list of one value or more{one}")
    return list(values)


def read_seeds(argument: str, value: object) -> tuple[int, ...]:
    """Return the seeds of a number, a list, or `{start = 0, count = 100}`.

    Raises:
        InputError: names the argument.
    """
    if isinstance(value, Mapping):
        for key in value:
            check_choice(f"{argument} field", key, ("start", "count"))
        if "count" not in value:
            raise expected(argument, dict(value), "a count, e.g. {start = 0, count = 100}")
        start = check_seed(f"{argument}.start", value.get("start", 0))
        count = check_count(f"{argument}.count", value["count"], MOST_RUNS)
        check_seed(f"{argument}.start + count", start + count)
        return tuple(range(start, start + count))
    given = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    seeds = tuple(check_seed(argument, seed) for seed in given)
    if not seeds:
        raise expected(argument, value, "one seed or more, e.g. {start = 0, count = 100}")
    return seeds


def label(name: str, value: Any) -> Any:
    """Return a value as a label: ranks as `4x8,8x6`, lists and None as text, numbers unchanged."""
    if name == "ranks":
        runs = ((rank, len(list(same))) for rank, same in groupby(parse_ranks(value)))
        return ",".join(f"{rank}x{count}" for rank, count in runs)
    if value is None:
        return NONE
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def labels(name: str, values: Sequence[Any]) -> NDArray[Any]:
    """Return the labels of several values in one dtype: text unless all are numbers."""
    found = [label(name, value) for value in values]
    for kind in (bool, (int, float)):
        if all(isinstance(x, kind) and (kind is bool or not isinstance(x, bool)) for x in found):
            return np.asarray(found)
    return np.asarray([x if isinstance(x, str) else str(x).lower() for x in found])


def described(values: Mapping[str, Any]) -> str:
    """Return a row's values in one line: `gain_std=0.1, rule='raflora'`."""
    return ", ".join(f"{name}={label(name, v)!r}" for name, v in values.items()) or "the only one"


# Points, rows and the grid

TABLES = ("scenario", "grid", "zip")
MOST_ROWS = 200_000
"""Maximum number of rows of a sweep; each takes a third of a millisecond to check."""
DEFAULT_RULE = "raflora"


@dataclass(frozen=True)
class Point:
    """A scenario under a rule.

    Args:
        scenario: the scenario.
        rule: label of the server rule, as `get_rule` reads it.
    """

    scenario: Scenario
    rule: str

    @cached_property
    def id(self) -> str:
        """Hash of the rule and of all fields that are not at their default."""
        own, usual = self.scenario.to_attrs(), _usual(self.scenario.fidelity)
        changed = {n: own[n] for n in own if own[n] != usual[n] or n in ("ranks", "fidelity")}
        return fingerprint({"rule": self.rule, **changed})


@dataclass(frozen=True)
class GridRow:
    """A row of the grid.

    Args:
        position: position along each axis except seeds.
        values: values of the varying fields except seeds.
        point: scenario and rule.
        seeds: one run each.
    """

    position: tuple[int, ...]
    values: Mapping[str, Any]
    point: Point
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """All rows and seeds of a sweep.

    Args:
        fixed: fields that all rows share, including the rule.
        axes: varying fields in the order of the dimensions, without seeds unless they are zipped.
        seeds: seeds of each row; None if they are zipped, so that each row has its own.
    """

    fixed: Mapping[str, Any]
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis except seeds."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def swept(self) -> tuple[str, ...]:
        """Fields that vary, except seeds."""
        return tuple(name for axis in self.axes for name in axis.fields if name != SEED)

    @cached_property
    def rows(self) -> tuple[GridRow, ...]:
        """All rows in the order of the axes, the last one fastest.

        Raises:
            InputError: names the first row that is invalid, with the reason, or a duplicate.
        """
        rows, seen = [], dict[tuple[object, ...], str]()
        for position in product(*map(range, self.shape)):
            row = self._row(position)
            zipped = {} if self.seeds else {SEED: row.seeds[0]}
            named = described({**row.values, **zipped})
            first = seen.setdefault((row.point.id, *zipped.values()), named)
            if first is not named:
                raise expected("row", named, f"rows that differ; it is the same as {first!r}")
            rows.append(row)
        return tuple(rows)

    @cached_property
    def runs(self) -> dict[str, frozenset[int]]:
        """Seeds of each point by its id."""
        if self.seeds is not None:  # one set for all rows
            return dict.fromkeys((row.point.id for row in self.rows), frozenset(self.seeds))
        found: dict[str, list[int]] = {}
        for row in self.rows:
            found.setdefault(row.point.id, []).extend(row.seeds)
        return {own: frozenset(seeds) for own, seeds in found.items()}

    def tables(self) -> dict[str, Any]:
        """Return the grid as plain data, the inverse of `Grid.of_tables`."""
        axes = [{"name": a.name, "fields": a.fields, "values": a.values} for a in self.axes]
        return {"fixed": dict(self.fixed), "axes": axes, "seeds": self.seeds}

    @classmethod
    def of_tables(cls, tables: Mapping[str, Any]) -> Grid:
        """Return the grid of `tables`, after a round trip through JSON."""
        axes = tuple(
            Axis(a["name"], tuple(a["fields"]), tuple(map(tuple, a["values"])))
            for a in tables["axes"]
        )
        seeds = tables["seeds"]
        return cls(tables["fixed"], axes, None if seeds is None else tuple(seeds))

    def _row(self, position: tuple[int, ...]) -> GridRow:
        values: dict[str, Any] = {}
        for axis, index in zip(self.axes, position, strict=True):
            values |= axis.at(index)
        seeds = self.seeds or (values.pop(SEED),)
        try:
            point = _point({**self.fixed, **values})
        except InputError as error:
            raise InputError(f"row {described(values)}: {error}") from None
        return GridRow(position, values, point, seeds)


def read_grid(source: str | Path | Mapping[str, Any]) -> Grid:
    """Return a grid from its TOML file or from its tables; all rows are checked.

    Args:
        source: path of a TOML file, or a mapping with the tables `scenario`, `grid` and `zip`.

    Raises:
        InputError: names the table, field or row, its value and what was expected.
    """
    tables = dict(source) if isinstance(source, Mapping) else _load(source)
    for name, table in tables.items():
        check_choice("table", name, TABLES)
        if not isinstance(table, Mapping):
            raise expected(name, table, f"a table of fields, [{name}]")
    tables = {name: {n: _plain(v) for n, v in table.items()} for name, table in tables.items()}
    fixed = dict(tables.get("scenario", {}))
    varied, zipped = (
        {
            name: check_values(table, check_field(name), v)
            for name, v in tables.get(table, {}).items()
        }
        for table in ("grid", "zip")
    )
    for name in fixed:
        check_field(name)
    _check_tables(fixed, varied, zipped)
    axes = [Axis(name, (name,), tuple((v,) for v in values)) for name, values in varied.items()]
    axes = [axis for axis in axes if axis.name != SEED]
    if zipped:
        name = ZIP if len(zipped) > 1 else next(iter(zipped))
        axes.append(Axis(name, tuple(zipped), tuple(zip(*zipped.values(), strict=True))))
    given = varied.get(SEED, fixed.pop(SEED, 0))
    seeds = None if SEED in zipped else read_seeds("seed", given)
    if seeds is not None and len(set(seeds)) != len(seeds):
        raise expected("seed", list(seeds), "distinct seeds")
    grid = Grid(fixed, tuple(axes), seeds)
    _check_size(grid)
    _ = grid.rows
    return grid


def listed_grid(runs: Iterable[tuple[Point, int]]) -> Grid:
    """Return the grid of listed points and seeds, which vary together; equal runs once.

    Args:
        runs: the points, of one fidelity, each with a seed.

    Raises:
        InputError: if there are too many runs.
    """
    unique = list({(point.id, seed): (point, seed) for point, seed in runs}.values())
    usual = Scenario((1,), fidelity=unique[0][0].scenario.fidelity)
    kept = {"ranks", "fidelity"} | {
        field.name
        for field in fields(Scenario)
        if any(getattr(p.scenario, field.name) != getattr(usual, field.name) for p, _ in unique)
    }
    columns = {name: [getattr(p.scenario, name) for p, _ in unique] for name in sorted(kept)}
    columns[RULE] = [point.rule for point, _ in unique]
    varied = {name: own for name, own in columns.items() if own != own[:1] * len(own)}
    fixed = {name: own[0] for name, own in columns.items() if name not in varied}
    varied[SEED] = [seed for _, seed in unique]
    grid = Grid(fixed, (Axis(ZIP, tuple(varied), tuple(zip(*varied.values(), strict=True))),), None)
    _check_size(grid)
    return grid


def fingerprint(content: object) -> str:
    """Return twelve hexadecimal digits of the hash of a JSON-serializable value."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def _usual(fidelity: str) -> dict[str, Any]:
    """Return the fields at their defaults.

    Fields that are added later, with the effect of their absence as the default, change no hash.
    """
    return Scenario((1,), fidelity=fidelity).to_attrs()


def _plain(value: Any) -> Any:
    """Return a value as TOML represents it: arrays, ranges and tuples become lists."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if not isinstance(value, range | tuple | list):
        return value
    if len(value) > MOST_RUNS:
        raise expected("grid", value, f"lists of at most {MOST_RUNS:,} values")
    return list(map(_plain, value))


def _load(source: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise expected("grid", str(source), f"a readable TOML file ({error})") from None


def _check_size(grid: Grid) -> None:
    """Refuse sweeps with too many rows or runs to check within a minute."""
    rows, seeds = prod(grid.shape), len(grid.seeds or (0,))
    if rows > MOST_ROWS:
        lengths = " x ".join(map(str, grid.shape))
        raise expected("grid", f"{lengths} = {rows:,} rows", f"at most {MOST_ROWS:,} rows")
    if rows * seeds > MOST_RUNS:
        given = f"{rows:,} rows x {seeds:,} seeds"
        raise expected("grid", given, f"at most {MOST_RUNS:,} runs in one sweep")


def _check_tables(
    fixed: Mapping[str, Any], varied: Mapping[str, list[Any]], zipped: Mapping[str, list[Any]]
) -> None:
    """Refuse duplicate fields, and zipped lists of different lengths."""
    tables = (("scenario", fixed), ("grid", varied), ("zip", zipped))
    seen: dict[str, str] = {}
    for table, content in tables:
        for name in content:
            if name in seen:
                raise expected(f"[{table}] {name}", content[name], f"it in [{seen[name]}] alone")
            seen[name] = table
    lengths = {name: len(values) for name, values in zipped.items()}
    if len(set(lengths.values())) > 1:
        raise expected("zip", lengths, "lists of one length")
    for name, value in fixed.items():
        if isinstance(value, list) and name not in (*LISTS, SEED):
            raise expected(f"[scenario] {name}", value, "one value (or the list in [grid])")


def _point(values: dict[str, Any]) -> Point:
    """Return the scenario and rule of a row, checked together."""
    from fedlora_sim.engines.spectral import refuse_flow
    from fedlora_sim.simulate import check_suits

    rule = values.pop(RULE, DEFAULT_RULE)
    if not isinstance(rule, str):
        raise expected("rule", rule, "the name of a rule")
    if "." in rule.partition(":")[0]:
        known = (
            f"a registered rule, which every worker finds by its name: {', '.join(rule_names())}"
        )
        raise expected("rule", rule, f"{known}; an entry point registers others")
    chosen, scenario = get_rule(rule), Scenario.from_mapping(values)
    check_suits(scenario, chosen)
    if scenario.fidelity == "spectral" and scenario.local_loss == "quadratic":
        refuse_flow(chosen)
    return Point(scenario, chosen.label)
