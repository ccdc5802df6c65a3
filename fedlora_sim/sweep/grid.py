"""The grid of a sweep: its TOML file, checked to the last row before anything is run.

[scenario]            # fixed fields
ranks = "4x8,8x6,16x4"
seed = {start = 0, count = 100}

[grid]                # lists to multiply
rule = ["fedavg", "raflora"]
gain_std = [0.0, 0.1]

[zip]                 # lists to walk together
d_in = [64, 128]
d_out = [32, 64]
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fedlora_sim.engines.spectral import refuse_flow
from fedlora_sim.errors import InputError, check_choice, expected
from fedlora_sim.rules import get_rule, rule_names
from fedlora_sim.scenario import Scenario
from fedlora_sim.simulate import check_suits
from fedlora_sim.sweep.axes import (
    LISTS,
    MOST_RUNS,
    RULE,
    SEED,
    ZIP,
    Axis,
    check_field,
    check_values,
    described,
    read_seeds,
)

TABLES = ("scenario", "grid", "zip")
MOST_ROWS = 200_000
"""Rows of a sweep, each checked before the first is run, in a third of a millisecond."""
DEFAULT_RULE = "raflora"


@dataclass(frozen=True)
class Point:
    """A scenario under a rule.

    Args:
        scenario: what is simulated.
        rule: label of the server rule, as `get_rule` reads it.
    """

    scenario: Scenario
    rule: str

    @cached_property
    def id(self) -> str:
        """Hash of the rule and of every field that is not at its default."""
        own, usual = self.scenario.to_attrs(), _usual(self.scenario.fidelity)
        changed = {n: own[n] for n in own if own[n] != usual[n] or n in ("ranks", "fidelity")}
        return fingerprint({"rule": self.rule, **changed})


@dataclass(frozen=True)
class Row:
    """A row of the grid.

    Args:
        position: along every axis but that of the seeds.
        values: of the fields that vary, seeds apart.
        point: what is simulated.
        seeds: one run each.
    """

    position: tuple[int, ...]
    values: Mapping[str, Any]
    point: Point
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """What a sweep consists of.

    Args:
        fixed: fields that all rows share, the rule among them.
        axes: what varies, in the order of the dimensions; seeds apart unless they are zipped.
        seeds: of every row; None where they are zipped, and a row has one of its own.
    """

    fixed: Mapping[str, Any]
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every axis, seeds apart."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def swept(self) -> tuple[str, ...]:
        """Fields that vary, seeds apart."""
        return tuple(name for axis in self.axes for name in axis.fields if name != SEED)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every row, in the order of the axes, the last one fastest.

        Raises:
            InputError: naming the first row that cannot be run and why, or that is there twice.
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
        """Seeds of every point, by its id."""
        if self.seeds is not None:  # one set for all of them
            return dict.fromkeys((row.point.id for row in self.rows), frozenset(self.seeds))
        found: dict[str, list[int]] = {}
        for row in self.rows:
            found.setdefault(row.point.id, []).extend(row.seeds)
        return {own: frozenset(seeds) for own, seeds in found.items()}

    def tables(self) -> dict[str, Any]:
        """The grid as plain data, from which `Grid.of_tables` makes it again."""
        axes = [{"name": a.name, "fields": a.fields, "values": a.values} for a in self.axes]
        return {"fixed": dict(self.fixed), "axes": axes, "seeds": self.seeds}

    @classmethod
    def of_tables(cls, tables: Mapping[str, Any]) -> Grid:
        """The grid that `tables` described, after JSON."""
        axes = tuple(
            Axis(a["name"], tuple(a["fields"]), tuple(map(tuple, a["values"])))
            for a in tables["axes"]
        )
        seeds = tables["seeds"]
        return cls(tables["fixed"], axes, None if seeds is None else tuple(seeds))

    def _row(self, position: tuple[int, ...]) -> Row:
        values: dict[str, Any] = {}
        for axis, index in zip(self.axes, position, strict=True):
            values |= axis.at(index)
        seeds = self.seeds or (values.pop(SEED),)
        try:
            point = _point({**self.fixed, **values})
        except InputError as error:
            raise InputError(f"row {described(values)}: {error}") from None
        return Row(position, values, point, seeds)


def read_grid(source: str | Path | Mapping[str, Any]) -> Grid:
    """A grid from its TOML file or from the tables of one; every row is checked.

    Args:
        source: path of a TOML file, or a mapping with the tables `scenario`, `grid` and `zip`.

    Raises:
        InputError: naming the table, field or row, its value and what was expected.
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


def fingerprint(content: object) -> str:
    """Twelve hexadecimal digits of the hash of what JSON can say."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def _usual(fidelity: str) -> dict[str, Any]:
    """Fields at their defaults: later ones, with the effect of their absence, change no hash."""
    return Scenario((1,), fidelity=fidelity).to_attrs()


def _plain(value: Any) -> Any:
    """A value as TOML would have it: arrays, ranges and tuples are lists."""
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
    """Refuse sweeps whose rows could not be checked, or runs not be counted, in a minute."""
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
    """Refuse fields that are there twice, and zipped lists that do not go together."""
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
    """Scenario and rule of a row's fields, checked with each other."""
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
