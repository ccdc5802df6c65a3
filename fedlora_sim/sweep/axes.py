"""The axes of a sweep: what varies, and how its values are written as labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_sim.errors import check_choice, check_count, check_seed, expected, shown
from fedlora_sim.federation import parse_ranks
from fedlora_sim.scenario import NONE, Scenario

MOST_RUNS = 10_000_000
"""Runs of a sweep, hence seeds of one list."""
RULE, SEED, ZIP = "rule", "seed", "zip"
FIELDS = (*(field.name for field in fields(Scenario)), RULE, SEED)
LISTS = ("ranks", "num_samples", "client_learning_rates", "target_modules")
"""Fields whose one value may be a list."""


@dataclass(frozen=True)
class Axis:
    """One dimension of a sweep.

    Args:
        name: of the dimension: the field's, or `zip` where several walk together.
        fields: what changes along it.
        values: one tuple per position, a value per field.
    """

    name: str
    fields: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]

    def __len__(self) -> int:
        return len(self.values)

    def at(self, position: int) -> dict[str, Any]:
        """Fields and their values at a position."""
        return dict(zip(self.fields, self.values[position], strict=True))

    def coordinates(self) -> dict[str, NDArray[Any]]:
        """Values of every field along the axis, numbers where all of them are."""
        columns = zip(self.fields, zip(*self.values, strict=True), strict=True)
        return {name: labels(name, column) for name, column in columns}


def check_field(name: str) -> str:
    """A field that a sweep may fix or vary; unknown ones are refused with the closest."""
    if name not in FIELDS:
        check_choice("sweep field", name, FIELDS)
        raise expected("sweep field", name, f"{name.lower()!r}, in lower case")
    return name


def check_values(table: str, name: str, values: object) -> list[Any]:
    """The values of a field, at least one.

    Raises:
        InputError: naming table and field.
    """
    if name == SEED:
        return list(read_seeds(f"[{table}] seed", values))
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        is_one = not isinstance(values, list)
        one = f" (or {name} = {shown(values)} in [scenario])" if is_one else ""
        raise expected(f"[{table}] {name}", values, f"a list of one value or more{one}")
    return list(values)


def read_seeds(argument: str, value: object) -> tuple[int, ...]:
    """Seeds from a number, a list, or `{start = 0, count = 100}`.

    Raises:
        InputError: naming the argument.
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
    """A value as a label: ranks as `4x8,8x6`, lists and None as text, numbers as they are."""
    if name == "ranks":
        runs = ((rank, len(list(same))) for rank, same in groupby(parse_ranks(value)))
        return ",".join(f"{rank}x{count}" for rank, count in runs)
    if value is None:
        return NONE
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def labels(name: str, values: Sequence[Any]) -> NDArray[Any]:
    """Labels of several values, in one dtype: text where not all are numbers."""
    found = [label(name, value) for value in values]
    for kind in (bool, (int, float)):
        if all(isinstance(x, kind) and (kind is bool or not isinstance(x, bool)) for x in found):
            return np.asarray(found)
    return np.asarray([x if isinstance(x, str) else str(x).lower() for x in found])


def described(values: Mapping[str, Any]) -> str:
    """A row's values in a line: `gain_std=0.1, rule='raflora'`."""
    return ", ".join(f"{name}={label(name, v)!r}" for name, v in values.items()) or "the only one"
