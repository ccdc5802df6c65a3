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

from fedlora_sim.errors import (
    check_choice,
    check_count,
    check_finite,
    check_positive,
    check_positive_int,
    check_seed,
    check_sequence,
    check_share,
    expected,
)
from fedlora_sim.federation import (
    ALLOCATIONS,
    EMPTY_PARTITION,
    HETEROGENEITY,
    Federation,
    parse_ranks,
)
from fedlora_sim.runtime import DEVICES, DTYPES

# What a scenario's fields may be, alone and together

FIDELITIES = ("spectral", "matrix", "training")
LOCAL_LOSSES = ("none", "quadratic")
OPTIMIZERS = ("adam", "adamw", "sgd")
TASKS = ("digits", "text", "vision", "causal", "arithmetic")
SPLITS = ("dirichlet", "pathological", "iid", "quantity", "by_writer")
INITIALIZERS = ("lora", "slora")
NONFINITE = ("error", "drop-client")

CHOICES = {
    "fidelity": FIDELITIES,
    "dtype": DTYPES,
    "device": DEVICES,
    "empty_partition": EMPTY_PARTITION,
    "allocation": ALLOCATIONS,
    "initializer": INITIALIZERS,
    "heterogeneity": HETEROGENEITY,
    "local_loss": LOCAL_LOSSES,
    "task": TASKS,
    "split": SPLITS,
    "optimizer": OPTIMIZERS,
    "nonfinite": NONFINITE,
}
COUNTS = (
    *("rounds", "d_in", "d_out", "batch_size", "local_epochs", "classes_per_client"),
    *("slora_rounds", "max_length", "threads", "evaluate_every"),
)
COUNTS_OR_NONE = ("local_steps", "adapted_layers", "max_train", "max_test", "stack_size")
REALS = ("gain_mean", "drift_mean", "basis_drift", "target_angle")
SPREADS = (
    *("gain_std", "drift_std", "subspace_noise", "momentum", "weight_decay"),
    *("pruning_penalty", "target_amplitude", "target_std", "feature_noise"),
)
POSITIVE = (
    *("initial_amplitude", "dirichlet_alpha", "quantity_alpha", "learning_rate", "local_time"),
)
POSITIVE_OR_NONE = ("lora_alpha", "max_grad_norm", "memory_budget")
LEAST_ALPHA, MOST_ALPHA = 1e-30, 1e30
"""Of `lora_alpha`: what float32 can multiply and divide by."""
MOST_THREADS = 4_096
TEXTS_OR_NONE = ("model", "data", "test_data")
FLAGS = (
    *("use_rslora", "cache_prefix", "gradient_checkpointing", "counterfactuals", "train_head"),
)
SHARES = ("spectrum_decay", "slora_density", "target_decay")

# What a task without a model or data of its own must be told.
FROM_FILES = dict.fromkeys(("text", "vision", "causal"), ("model", "data"))

# What clients do who return `a x + b`, and clients who train by plain steps do not.
UNUSED_BY_TRAINING = {
    "gain_mean": 1.0,
    "gain_std": 0.0,
    "drift_mean": 0.0,
    "drift_std": 0.0,
    "momentum": 0.0,
    "weight_decay": 0.0,
}


def check_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that one check alone decides, each as the scenario keeps it.

    Args:
        given: every field of a scenario, defaults resolved.

    Raises:
        InputError: naming the field, its value and what was expected.
    """
    kept: dict[str, Any] = {
        name: check_choice(name, given[name], choices) for name, choices in CHOICES.items()
    }
    kept |= {name: check_positive_int(name, given[name]) for name in COUNTS}
    for names, check in ((COUNTS_OR_NONE, check_positive_int), (TEXTS_OR_NONE, _check_text)):
        kept |= {name: check(name, given[name]) for name in names if given[name] is not None}
    kept |= {name: check_finite(name, given[name]) for name in REALS}
    kept |= {name: check_finite(name, given[name], minimum=0.0) for name in SPREADS}
    kept["task_seed"] = check_seed("task_seed", given["task_seed"])
    for name in FLAGS:
        if not isinstance(given[name], bool) and not (name == "train_head" and given[name] is None):
            raise expected(name, given[name], "true or false")
    kept |= {name: check_positive(name, given[name]) for name in POSITIVE}
    kept |= {name: check_share(name, given[name]) for name in SHARES}
    if given["client_learning_rates"] is not None:
        rates = check_sequence("client_learning_rates", given["client_learning_rates"], "rates")
        kept["client_learning_rates"] = tuple(
            check_positive("client_learning_rates", rate) for rate in rates
        )
    if given["pruning_decay"] is not None:
        kept["pruning_decay"] = check_finite("pruning_decay", given["pruning_decay"])
        if not 0 < kept["pruning_decay"] < 1:
            raise expected("pruning_decay", kept["pruning_decay"], "a number in (0, 1) or None")
    for name in POSITIVE_OR_NONE:
        if given[name] is not None:
            kept[name] = check_positive(name, given[name], " or None")
    alpha = given["lora_alpha"]
    if alpha is not None and not LEAST_ALPHA <= kept["lora_alpha"] <= MOST_ALPHA:
        raise expected("lora_alpha", alpha, f"a number from {LEAST_ALPHA:g} to {MOST_ALPHA:g}")
    check_count("threads", given["threads"], MOST_THREADS)
    if given["target_modules"] is not None:
        named = check_sequence(
            "target_modules", given["target_modules"], "names of modules", ordered=False
        )
        kept["target_modules"] = tuple(_check_text("target_modules", name) for name in named)
    return kept


def check_training(checked: Mapping[str, Any]) -> None:
    """Refuse training fields that do not fit each other.

    Args:
        checked: every field of a scenario, after `check_fields`.

    Raises:
        InputError: naming the field, its value and what was expected.
    """
    rates = checked["client_learning_rates"]
    if rates is not None and len(rates) != len(checked["ranks"]):
        wanted = f"{len(checked['ranks'])} rates, one per client"
        raise expected("client_learning_rates", list(rates), wanted)
    if checked["fidelity"] == "training" and checked["task"] in FROM_FILES:
        for name in FROM_FILES[checked["task"]]:
            if checked[name] is None:
                raise expected(name, None, f"what task={checked['task']!r} is to load")


def _check_text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise expected(name, value, "text")
    return value


def check_local_loss(checked: Mapping[str, Any]) -> None:
    """Refuse what makes no sense beside a local loss that clients really descend.

    Args:
        checked: every field of a scenario, after `check_fields`.

    Raises:
        InputError: naming the field, its value and what was expected.
    """
    if checked["local_loss"] != "quadratic":
        return
    beside = "with local_loss='quadratic'"
    if checked["fidelity"] == "training":
        other = "none at fidelity='training', where clients train on the task's own loss"
        raise expected("local_loss", "quadratic", other)
    for name, usual in UNUSED_BY_TRAINING.items():
        if checked[name] != usual:
            raise expected(name, checked[name], f"{usual:g} {beside}: clients train by plain steps")
    if checked["optimizer"] == "adamw":
        raise expected("optimizer", "adamw", f"sgd or adam {beside}: no weight decay")
    if checked["fidelity"] == "matrix":
        if checked["local_steps"] is None:
            raise expected("local_steps", None, f"a whole number of at least 1 {beside}")
        return
    if checked["optimizer"] != "sgd":
        flow = "sgd at fidelity='spectral', whose clients follow the gradient flow"
        raise expected("optimizer", checked["optimizer"], flow)
    if checked["target_angle"] != 0:
        basis = "0 at fidelity='spectral', where all share one basis (or choose matrix)"
        raise expected("target_angle", checked["target_angle"], basis)


# The fields of a scenario that real fine-tuning alone looks at


@dataclass(frozen=True, kw_only=True)
class TaskFields:
    """Model and data.

    Args:
        task: `digits` (bundled), `text`, `vision` (pretrained models on files or named data sets),
            `causal` (a language model on questions and answers) or `arithmetic` (a small one that
            is made on the spot).
        task_seed: of what is random in the task: parts, subsets, new heads, small models.
        model: hub name or local folder of a pretrained model.
        data, test_data: a file, a named data set or a hub name; the test part where it is apart.
        max_length: tokens per sample; longer texts are cut, longer completions left out.
        target_modules: ends of the names of the linear maps that carry LoRA, as in PEFT; the
            task's usual ones when None.
        adapted_layers: adapt only the last so many blocks of the model; all when None.
        train_head: whether clients train the classifier as a whole too; where it is new when None.
        max_train, max_test: use so many samples, drawn by `task_seed`; all when None.
    """

    task: str = "digits"
    task_seed: int = 0
    model: str | None = None
    data: str | None = None
    test_data: str | None = None
    max_length: int = 64
    target_modules: tuple[str, ...] | None = None
    adapted_layers: int | None = None
    train_head: bool | None = None
    max_train: int | None = None
    max_test: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingFields(TaskFields):
    """How data is split among clients, and how they train. Model and data: see `TaskFields`.

    Args:
        cache_prefix: compute what comes before the first adapted block once per sample and keep it.

        split: `dirichlet | pathological | iid | quantity | by_writer`; `dirichlet_alpha`,
            `classes_per_client` and `quantity_alpha` shape the first, second and fourth.
        feature_noise: deviation of the noise on the last client's inputs; client k of K has k/K of
            it. For inputs that are numbers, not tokens.

        optimizer: `adam | adamw | sgd`; None takes adam for training, and sgd else. It starts anew
            every round. The quadratic loss knows sgd, and adam at matrix fidelity.
        learning_rate, momentum, weight_decay, batch_size: local training.
        client_learning_rates: one per client, in place of `learning_rate`.
        max_grad_norm: a client's gradient is shortened to this norm; None leaves it.
        local_steps: optimiser steps per round; None runs `local_epochs` epochs instead.
        stack_size: clients trained side by side at most; None for as many as `memory_budget`, in
            GiB of activations, has room for.
        gradient_checkpointing: less memory for a third more time.
        threads: of the CPU; bits of a result may depend on it.

        lora_alpha: client scaling is `lora_alpha / r_k` (`/ sqrt(r_k)` with `use_rslora`); None is
            `alpha = r`, scaling 1 for every client.
        pruning_decay: clients prune their own rank, to this share of it, in (0, 1), whenever local
            training leaves its tail smaller than it was (HetLoRA); None for no pruning.
        pruning_penalty: factor of the penalty on that tail in the local loss.
        initializer: `lora` (A random, B zero) or `slora`: `slora_rounds` rounds of sparse federated
            fine-tuning first, of this `slora_density` of every adapted weight, whose result is
            handed to the adapters by SVD.

        nonfinite: what a client whose update is not finite means: the end (`error`), or a round
            without it (`drop-client`).
        evaluate_every: rounds from one judgement of the global model to the next; the last round
            is always judged.
        counterfactuals: also aggregate every round's cohort by every other rule that trains what
            the run's own trains, and measure.
    """

    cache_prefix: bool = False

    split: str = "dirichlet"
    dirichlet_alpha: float = 0.5
    classes_per_client: int = 2
    quantity_alpha: float = 0.5
    feature_noise: float = 0.0

    optimizer: str | None = None
    learning_rate: float = 1e-3
    client_learning_rates: tuple[float, ...] | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    batch_size: int = 16
    local_steps: int | None = 10
    local_epochs: int = 1
    stack_size: int | None = None
    memory_budget: float | None = None
    gradient_checkpointing: bool = False
    threads: int = 1

    lora_alpha: float | None = None
    use_rslora: bool = False
    pruning_decay: float | None = None
    pruning_penalty: float = 0.0
    initializer: str = "lora"
    slora_rounds: int = 2
    slora_density: float = 0.1

    nonfinite: str = "error"
    evaluate_every: int = 1
    counterfactuals: bool = False


# A scenario: everything that a simulation depends on, except the rule and the seed

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
        InputError: naming the field, its value and what was expected.
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
            InputError: if a field is unknown (with the closest name), missing or wrong.
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
        InputError: if the file cannot be read as TOML.
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
