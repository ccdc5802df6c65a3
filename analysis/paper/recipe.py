"""Recipes: how the numbers of one figure are made, and what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import xarray as xr

from analysis.claims.base import Claim, RunContext
from fedlora_sim import Scenario
from fedlora_sim.errors import expected

BASE_SEED = 2041
"""Base seed of the paper's simulations, which differs from those of recorded results."""
Units = Mapping[str, str]


@dataclass(frozen=True)
class Recipe:
    """One figure's numbers.

    Args:
        name: name of the file and of the figure.
        about: description in one sentence.
        make: maps a context to a dataset of numbers; its attributes describe the setting for the
            caption.
        settings: everything on which they depend, besides the seed and the code.
        units: unit of each variable and coordinate, "1" if it has none.
        runs: numbers of the runs; run i has seed `base * 1_000_000 + i`. None if all numbers come
            from recorded results.
        base_seed: base seed of these runs.
        sources: recorded files that are used, relative to the project's root.
        claims: claims whose verification also makes the numbers; all if empty, none if None.
    """

    name: str
    about: str
    make: Callable[[RunContext], xr.Dataset]
    settings: Mapping[str, Any]
    units: Units
    runs: range | None = None
    base_seed: int = BASE_SEED
    sources: tuple[str, ...] = ()
    claims: tuple[Claim, ...] | None = None

    def illustrates(self, claims: Collection[Claim]) -> bool:
        """Return True if a verification of these claims makes the numbers."""
        return self.claims is not None and (
            not self.claims or any(claim in claims for claim in self.claims)
        )

    def dataset(self, context: RunContext) -> xr.Dataset:
        """Return the numbers, with the seeds of the runs as attributes.

        Raises:
            InputError: if a variable or a coordinate has no unit.
        """
        found = self.make(context)
        bare = [dim for dim in found.dims if dim not in found.coords]
        found = found.assign_coords({dim: found[dim] for dim in bare})  # numbers from 0
        missing = {str(name) for name in found.variables} - set(self.units)
        if missing:
            raise expected("units", sorted(missing), f"a unit of each in the recipe {self.name}")
        if self.runs is not None:
            first, last = context.seeds([self.runs[0], self.runs[-1]])
            found = found.assign_attrs(first_seed=first, last_seed=last, runs=len(self.runs))
        return found


def described(scenario: Scenario) -> dict[str, Any]:
    """Return the ranks as text, and all fields that are not at their default."""
    usual = Scenario(ranks=scenario.ranks, fidelity=scenario.fidelity)
    told = {
        field.name: getattr(scenario, field.name)
        for field in fields(scenario)
        if field.name not in ("ranks", "device")
        and getattr(scenario, field.name) != getattr(usual, field.name)
    }
    told |= {"ranks": ranks_text(scenario.ranks), "fidelity": scenario.fidelity}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in told.items()}


def ranks_text(ranks: Sequence[int]) -> str:
    """Return client ranks as `parse_ranks` reads them: `4x8,8x6` is 8 of rank 4 and 6 of rank 8."""
    return ",".join(f"{rank}x{list(ranks).count(rank)}" for rank in dict.fromkeys(ranks))


def stacked(parts: Mapping[str, xr.Dataset], dim: str) -> xr.Dataset:
    """Return datasets of the same form along a new labeled dimension."""
    joined = xr.concat(list(parts.values()), dim, combine_attrs="drop", join="override")
    return joined.assign_coords({dim: np.array(list(parts))})
