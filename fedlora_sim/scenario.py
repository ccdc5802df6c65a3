"""A scenario: everything that a simulation depends on, except the rule and the seed."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_sim.errors import check_choice, expected
from fedlora_sim.federation import Federation, parse_ranks
from fedlora_sim.scenario_checks import FLAGS, check_fields, check_local_loss, check_training
from fedlora_sim.scenario_checks import OPTIMIZERS as OPTIMIZERS
from fedlora_sim.training_fields import TrainingFields

NONE = "none"


@dataclass(frozen=True)
class Scenario(TrainingFields):
    """What is simulated. Fields that a fidelity does not use are ignored by it.

    The fields of real fine-tuning are those of `TrainingFields`.

    Args:
        ranks: client ranks `r_k`, a sequence or text (`"4x8,8x6,16x4"`: rank 4, 8 clients; ...).
        fidelity: `spectral` (one amplitude per direction, fixed basis), `matrix` (real factors and
            real aggregation) or `training` (real federated fine-tuning).
        rounds: number of rounds T; results hold T + 1 states, the initial one first.
        num_samples: samples `n_k` per client; equal when None. Training takes them from the split.
        cohort_size: clients per round; all when None.
        sampling: see `Federation`.
        empty_partition: `zero | carry | error`, for rules with such a policy.
        allocation: `svd | random | importance`: which directions a client receives. Importance is
            the norm of the client's gradient along each direction when fine-tuning, and how far
            it would move each amplitude at the other fidelities.
        dtype: `float64 | float32`; None takes float64, and float32 for training. Runs whose
            amplitudes leave the range of float32 are computed in float64.
        device: `auto | cpu | cuda | mps`.

        initial_amplitude: amplitude of the first direction at round 0.
        spectrum_decay: each direction starts with this share of the one before, in (0, 1].
        gain_mean, gain_std: mean `g` and deviation `nu` of a client's gain `a_{k,i}`.
        drift_mean, drift_std: mean `c` and deviation `tau` of a client's drift `b_{k,i}`.
        heterogeneity: gains and drifts drawn anew every round (`fresh`) or once per client
            (`persistent`).

        local_loss: what clients do. `none`: they return `a x + b`. `quadratic`: they fit a target,
            `0.5 ||B A + Z - M_k||_F**2` with Z what the base has of the update, by gradient
            descent on their factors (`matrix`) or its limit of small steps, the flow
            (`spectral`). A component whose factors are zero has no gradient and stays zero.
        local_time: total step length of a round, T; a step at matrix fidelity is T / local_steps.
        target_amplitude, target_decay: amplitude of the targets in the first direction, and the
            share of the one before in each further one, in (0, 1].
        target_std: spread of the targets among clients, persistent: client k's are
            `1 + target_std z_k` times the common ones, z_k standard normal.
        target_angle: matrix fidelity; angle in radians by which every singular vector of a
            client's target is turned from the common basis, once per client.

        d_in, d_out: layer shape of the matrix fidelity.
        subspace_noise: matrix fidelity; each local factor is multiplied by `I + eps E`, `E` with
            independent entries of variance 1/r_k: mixes directions within the client's subspace.
        basis_drift: matrix fidelity; angle in radians by which every singular vector of every
            client's update is turned away, each client and round in a random direction.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """

    ranks: tuple[int, ...]
    fidelity: str = "spectral"
    rounds: int = 50
    num_samples: tuple[float, ...] | None = None
    cohort_size: int | None = None
    sampling: str | None = None
    empty_partition: str = "carry"
    allocation: str = "svd"
    dtype: str | None = None
    device: str = "auto"

    initial_amplitude: float = 1.0
    spectrum_decay: float = 0.9
    gain_mean: float = 1.0
    gain_std: float = 0.0
    drift_mean: float = 0.0
    drift_std: float = 0.0
    heterogeneity: str = "fresh"

    local_loss: str = "none"
    local_time: float = 0.5
    target_amplitude: float = 1.0
    target_decay: float = 1.0
    target_std: float = 0.0
    target_angle: float = 0.0

    d_in: int = 64
    d_out: int = 64
    subspace_noise: float = 0.0
    basis_drift: float = 0.0

    def __post_init__(self) -> None:
        self._set("ranks", parse_ranks(self.ranks))
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        # local_loss: attributes and TOML files have None for none
        for name, default in {**_usual(self.fidelity), "local_loss": NONE}.items():
            given[name] = default if given[name] is None else given[name]
        for name, value in check_fields(given).items():
            self._set(name, value)
        checked = {f.name: getattr(self, f.name) for f in fields(self)}
        check_local_loss(checked)
        check_training(checked)
        federation = self.federation
        if self.num_samples is not None:
            self._set("num_samples", federation.num_samples)
        limit = min(self.d_in, self.d_out)
        if self.fidelity == "matrix" and federation.r_max > limit:
            raise expected("ranks", max(self.ranks), f"ranks up to min(d_in, d_out) = {limit}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @cached_property
    def federation(self) -> Federation:
        """The clients and how cohorts are drawn."""
        return Federation(self.ranks, self.num_samples, self.cohort_size, self.sampling)

    @property
    def initial_amplitudes(self) -> NDArray[np.float64]:
        """Amplitudes `sigma_i(0)` of the global update, shape (r_max,), descending."""
        return _geometric(self.initial_amplitude, self.spectrum_decay, max(self.ranks))

    @property
    def target_amplitudes(self) -> NDArray[np.float64]:
        """Amplitudes of the target that clients have in common, shape (r_max,), descending."""
        return _geometric(self.target_amplitude, self.target_decay, max(self.ranks))

    def client_scaling(self, rank: int) -> float:
        """LoRA scaling of a client of this rank: alpha/r, or alpha/sqrt(r) under rsLoRA."""
        if self.lora_alpha is None:
            return 1.0
        return self.lora_alpha / (rank**0.5 if self.use_rslora else rank)

    def replace(self, **changes: Any) -> Scenario:
        """A copy with some fields changed, checked again.

        Where the fidelity changes, what stood at the default of the old one takes that of the new.
        """
        if changes.get("fidelity", self.fidelity) != self.fidelity:
            usual = _usual(self.fidelity)
            kept = {name: None for name, value in usual.items() if getattr(self, name) == value}
            changes = kept | changes
        return dataclasses.replace(self, **changes)

    def to_attrs(self) -> dict[str, Any]:
        """All fields as netCDF-safe attributes; None becomes the word "none"."""
        return {f.name: _to_attr(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Scenario:
        """A scenario from field names and values; "none" reads None.

        Raises:
            ValueError: if a field is unknown (with the closest name), missing or wrong.
        """
        if not isinstance(values, Mapping):
            raise expected("values", values, "scenario fields by name")
        names = [f.name for f in fields(cls)]
        for name in values:
            if name not in names:
                check_choice("scenario field", name, names)
                raise expected("scenario field", name, f"{name.lower()!r}, in lower case")
        if "ranks" not in values:
            raise expected("ranks", None, 'client ranks, e.g. ranks = "4x8,8x6"')
        return cls(**{name: _from_attr(value) for name, value in values.items()})

    @classmethod
    def from_attrs(cls, attrs: Mapping[Any, Any]) -> Scenario:
        """The scenario that a dataset was made with, from its attributes."""
        values = {f.name: _from_attr(attrs[f.name]) for f in fields(cls)}
        # netCDF stores a list of one as a number, and has no booleans.
        for name in ("ranks", "num_samples", "target_modules", "client_learning_rates"):
            if values[name] is not None:
                values[name] = tuple(np.atleast_1d(values[name]).tolist())
        flags = {n: None if values[n] is None else bool(values[n]) for n in FLAGS}
        return cls(**{**values, **flags})


def _usual(fidelity: str) -> dict[str, str]:
    """What None stands for in the fields whose default depends on the fidelity."""
    if isinstance(fidelity, str) and fidelity.strip().lower() == "training":
        return {"dtype": "float32", "optimizer": "adam"}
    return {"dtype": "float64", "optimizer": "sgd"}


def load_toml(path: str | Path) -> dict[str, Any]:
    """Scenario fields of a TOML file, at its top level or in a `[scenario]` table.

    Raises:
        ValueError: if the file cannot be read as TOML.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise expected("scenario", str(path), f"a readable TOML file ({error})") from None
    table = values.pop("scenario", None)
    if table is None:
        return values
    if not isinstance(table, dict):
        raise expected("scenario", table, "a table of scenario fields, [scenario]")
    if values:
        name = next(iter(values))
        raise expected(name, values[name], "no field outside the [scenario] table")
    return table


def _geometric(first: float, decay: float, count: int) -> NDArray[np.float64]:
    return np.asarray(first * decay ** np.arange(count, dtype=np.float64), dtype=np.float64)


def _to_attr(value: object) -> object:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return int(value)
    return list(value) if isinstance(value, tuple) else value


def _from_attr(value: Any) -> Any:
    if isinstance(value, str):
        return None if value.lower() == NONE else value
    if isinstance(value, np.ndarray):
        return tuple(np.atleast_1d(value).tolist())
    if isinstance(value, list | tuple):
        return tuple(item.item() if isinstance(item, np.generic) else item for item in value)
    return value.item() if isinstance(value, np.generic) else value
