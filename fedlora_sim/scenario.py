"""`Scenario`: everything that a simulation depends on, except the rule and the seed."""

from __future__ import annotations

import dataclasses
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

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

# What a field may be: its type says it, or a check next to its text

FIDELITIES = ("spectral", "matrix", "training")
LOCAL_LOSSES = ("none", "drift", "quadratic")
SCHEDULES = ("constant", "linear", "cosine")
OPTIMIZERS = ("adam", "adamw", "sgd")
TASKS = ("digits", "text", "vision", "causal", "arithmetic")
SPLITS = ("dirichlet", "pathological", "iid", "quantity", "by_writer")
INITIALIZERS = ("lora", "slora")
NONFINITE = ("error", "drop-client")
LEAST_ALPHA, MOST_ALPHA = 1e-30, 1e30
"""Range of `lora_alpha` with which float32 can multiply and divide."""
MOST_THREADS = 4_096

T = TypeVar("T")
Check = Callable[[str, Any], Any]
"""Returns the value of a field as the scenario stores it, or raises `InputError`."""


def _one_of(choices: Iterable[str]) -> Check:
    return partial(check_choice, choices=choices)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise expected(name, value, "text")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise expected(name, value, "true or false")
    return value


def _rates(name: str, value: object) -> tuple[float, ...]:
    return tuple(check_positive(name, rate) for rate in check_sequence(name, value, "rates"))


def _numbers(name: str, value: object) -> tuple[float, ...]:
    return tuple(check_finite(name, one) for one in check_sequence(name, value, "numbers"))


def _modules(name: str, value: object) -> tuple[str, ...]:
    named = check_sequence(name, value, "names of modules", ordered=False)
    return tuple(_text(name, module) for module in named)


def _proper_share(name: str, value: object) -> float:
    number = check_finite(name, value)
    if not 0 < number < 1:
        raise expected(name, number, "a number in (0, 1) or None")
    return number


def _alpha(name: str, value: object) -> float:
    number = check_positive(name, value, " or None")
    if not LEAST_ALPHA <= number <= MOST_ALPHA:
        raise expected(name, value, f"a number from {LEAST_ALPHA:g} to {MOST_ALPHA:g}")
    return number


def _by_federation(_: str, value: object) -> object:
    """Leave the check to `Federation`, which compares these fields with each other."""
    return value


AT_LEAST_0 = partial(check_finite, minimum=0.0)
POSITIVE_OR_NONE = partial(check_positive, otherwise=" or None")
BY_TYPE: dict[object, Check] = {
    str: _text,
    int: check_positive_int,
    float: check_finite,
    bool: _flag,
}


class FieldInfo(NamedTuple):
    """The description of a field; `kind` is its type without None, which `optional` fields keep."""

    text: str
    kind: object
    optional: bool
    check: Check


def describe(cls: type) -> dict[str, FieldInfo]:
    """Return the description of each field of a class, in order.

    Args:
        cls: a dataclass whose fields are `Annotated[type, text]`. A check is the third argument if
            the type alone does not determine it: a text, a whole number of at least 1, a finite
            number, or true or false.
    """
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for field in fields(cls):
        hint, text, *check = get_args(hints[field.name])
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        kind, *none = kinds
        found[field.name] = FieldInfo(text, kind, bool(none), check[0] if check else BY_TYPE[kind])
    return found


def documented(cls: type[T]) -> type[T]:
    """Add the text of each field to the docstring of a described dataclass."""
    wrapper = textwrap.TextWrapper(100, " " * 8, " " * 12, break_on_hyphens=False)
    own_first = sorted(describe(cls).items(), key=lambda item: item[0] not in cls.__annotations__)
    lines = [wrapper.fill(f"{name}: {info.text}.") for name, info in own_first]
    head, _, rest = (cls.__doc__ or "").partition("\n\n    Raises:")
    tail = f"\n\n    Raises:{rest}" if rest else "\n    "
    cls.__doc__ = "\n".join([f"{head.rstrip()}\n\n    Args:", *lines]) + tail
    return cls


# The fields of a scenario that real fine-tuning alone uses


@documented
@dataclass(frozen=True, kw_only=True)
class TaskFields:
    """Model and data of real fine-tuning."""

    task: Annotated[
        str,
        "`digits` (bundled), `text`, `vision` (pretrained models on files or named data sets), "
        "`causal` (a language model on questions and answers) or `arithmetic` (a small one, made "
        "on the spot)",
        _one_of(TASKS),
    ] = "digits"
    task_seed: Annotated[
        int,
        "seed of the random parts of the task: splits, subsets, new heads, small models",
        check_seed,
    ] = 0
    model: Annotated[str | None, "hub name or local folder of a pretrained model"] = None
    data: Annotated[str | None, "a file, a named data set or a hub name"] = None
    test_data: Annotated[str | None, "the test part, where it is separate from `data`"] = None
    max_length: Annotated[
        int, "tokens per sample; longer texts are cut, longer completions are left out"
    ] = 64
    target_modules: Annotated[
        tuple[str, ...] | None,
        "name suffixes of the linear maps that carry LoRA, as in PEFT; None takes the task's",
        _modules,
    ] = None
    adapted_layers: Annotated[
        int | None, "adapt only the last blocks of the model, as many as this; None adapts all"
    ] = None
    train_head: Annotated[
        bool | None,
        "whether clients also train the whole classifier; None: where it is new",
    ] = None
    max_train: Annotated[
        int | None, "number of training samples, drawn by `task_seed`; None uses all"
    ] = None
    max_test: Annotated[
        int | None, "number of test samples, drawn by `task_seed`; None uses all"
    ] = None


@documented
@dataclass(frozen=True, kw_only=True)
class TrainingFields(TaskFields):
    """Model and data, their split among clients, and local training."""

    cache_prefix: Annotated[
        bool, "compute what precedes the first adapted block once per sample and keep it"
    ] = False

    split: Annotated[
        str, "`dirichlet`, `pathological`, `iid`, `quantity` or `by_writer`", _one_of(SPLITS)
    ] = "dirichlet"
    dirichlet_alpha: Annotated[float, "concentration of the Dirichlet split", check_positive] = 0.5
    classes_per_client: Annotated[int, "classes of a client in the pathological split"] = 2
    quantity_alpha: Annotated[float, "concentration of the quantity split", check_positive] = 0.5
    feature_noise: Annotated[
        float,
        "standard deviation of the noise on the last client's inputs; client k of K has k/K of it. "
        "For inputs that are numbers, not tokens",
        AT_LEAST_0,
    ] = 0.0

    optimizer: Annotated[
        str | None,
        "`adam`, `adamw` or `sgd`, restarted every round; None takes adam for training and sgd "
        "otherwise. The quadratic loss takes sgd, and adam at matrix fidelity",
        _one_of(OPTIMIZERS),
    ] = None
    learning_rate: Annotated[
        float,
        "of the first round, see `learning_rate_schedule`; constant over a round",
        check_positive,
    ] = 1e-3
    client_learning_rates: Annotated[
        tuple[float, ...] | None, "one per client, in place of `learning_rate`", _rates
    ] = None
    momentum: Annotated[float, "momentum of `sgd`", AT_LEAST_0] = 0.0
    weight_decay: Annotated[
        float,
        "of LoRA factors and heads: added to the gradient (`adam`, `sgd`) or decoupled (`adamw`)",
        AT_LEAST_0,
    ] = 0.0
    max_grad_norm: Annotated[
        float | None,
        "a client's gradient, over everything that it trains, is clipped to this norm; None "
        "does not clip",
        POSITIVE_OR_NONE,
    ] = None
    batch_size: Annotated[int, "samples per step; the last batch of an epoch may be shorter"] = 16
    local_steps: Annotated[
        int | None, "optimizer steps per round; None runs `local_epochs` epochs instead"
    ] = 10
    local_epochs: Annotated[int, "passes over a client's samples, if `local_steps` is None"] = 1
    stack_size: Annotated[
        int | None,
        "most clients trained at the same time; None for as many as `memory_budget` allows. "
        "Adapters do not depend on it, up to rounding",
    ] = None
    memory_budget: Annotated[
        float | None,
        "GiB for the activations of such a stack, as measured on one client; None sets no bound",
        POSITIVE_OR_NONE,
    ] = None
    gradient_checkpointing: Annotated[bool, "use less memory for a third more time"] = False
    threads: Annotated[
        int,
        "threads of the CPU; bits of a result may depend on it",
        partial(check_count, most=MOST_THREADS),
    ] = 1

    lora_alpha: Annotated[
        float | None,
        "client scaling is `lora_alpha / r_k` (`/ sqrt(r_k)` with `use_rslora`); None is "
        "`alpha = r`, scaling 1 for every client",
        _alpha,
    ] = None
    use_rslora: Annotated[bool, "scale by `lora_alpha / sqrt(r_k)`"] = False
    pruning_decay: Annotated[
        float | None,
        "clients prune their rank to this share of it, in (0, 1), whenever local training has made "
        "its tail smaller (HetLoRA); None for no pruning",
        _proper_share,
    ] = None
    pruning_penalty: Annotated[
        float, "factor of the penalty on that tail in the local loss", AT_LEAST_0
    ] = 0.0
    initializer: Annotated[
        str,
        "`lora` (A random, B zero) or `slora`: rounds of sparse federated fine-tuning first, whose "
        "result starts the adapters, by SVD",
        _one_of(INITIALIZERS),
    ] = "lora"
    slora_rounds: Annotated[int, "sparse rounds of `slora`"] = 2
    slora_density: Annotated[
        float, "share of every adapted weight that they train, in (0, 1]", check_share
    ] = 0.1

    nonfinite: Annotated[
        str,
        "what happens if a client's update is not finite: `error` ends the run, `drop-client` "
        "leaves the client out of the round",
        _one_of(NONFINITE),
    ] = "error"
    evaluate_every: Annotated[
        int, "rounds between evaluations of the global model; the last round always has one"
    ] = 1
    counterfactuals: Annotated[
        bool,
        "also aggregate every round's cohort by every other rule that trains the same parameters, "
        "and measure the results",
    ] = False


# The scenario

NONE = "none"

# Fields that a task without its own model or data requires.
FROM_FILES = dict.fromkeys(("text", "vision", "causal"), ("model", "data"))

# Fields of clients that return `a x + b`; clients that train by plain steps do not use them.
UNUSED_BY_TRAINING = {
    "gain_mean": 1.0,
    "gain_std": 0.0,
    "drift_mean": 0.0,
    "drift_std": 0.0,
    "momentum": 0.0,
    "weight_decay": 0.0,
}


@documented
@dataclass(frozen=True)
class Scenario(TrainingFields):
    """A federation, its clients' behavior and the simulation fidelity.

    A fidelity ignores the fields that it does not use.

    Raises:
        InputError: if a field is invalid; names the field, its value and what was expected.
    """

    ranks: Annotated[
        tuple[int, ...],
        'client ranks `r_k`, a sequence or text; "4x8,8x6" is rank 4, 8 clients; rank 8, 6 clients',
        _by_federation,
    ]
    fidelity: Annotated[
        str,
        "`spectral` (one amplitude per direction, fixed basis), `matrix` (real factors and real "
        "aggregation) or `training` (real federated fine-tuning)",
        _one_of(FIDELITIES),
    ] = "spectral"
    rounds: Annotated[
        int, "number of rounds T; results hold T + 1 states, the initial one first"
    ] = 50
    num_samples: Annotated[
        tuple[float, ...] | None,
        "sample count `n_k` per client; equal when None. Training counts the samples of the split",
        _by_federation,
    ] = None
    cohort_size: Annotated[int | None, "clients per round; all by default", _by_federation] = None
    sampling: Annotated[str | None, "cohort law, see `Federation`", _by_federation] = None
    empty_partition: Annotated[
        str, "`zero`, `carry` or `error`, for rules with such a policy", _one_of(EMPTY_PARTITION)
    ] = "carry"
    allocation: Annotated[
        str,
        "`svd`, `random` or `importance`: which directions a client receives. Importance is the "
        "norm of the client's gradient along each direction when fine-tuning, and how far it would "
        "move each amplitude at the other fidelities",
        _one_of(ALLOCATIONS),
    ] = "svd"
    dtype: Annotated[
        str | None,
        "`float64` or `float32`; None takes float64, and float32 for training. Runs whose "
        "amplitudes leave the range of float32 are computed in float64",
        _one_of(DTYPES),
    ] = None
    device: Annotated[str, "`auto`, `cpu`, `cuda` or `mps`", _one_of(DEVICES)] = "auto"

    initial_amplitude: Annotated[
        float, "amplitude of the first direction at round 0", check_positive
    ] = 1.0
    spectrum_decay: Annotated[
        float, "each direction starts with this share of the previous one, in (0, 1]", check_share
    ] = 0.9
    gain_mean: Annotated[float, "mean `g` of a client's gain `a_{k,i}`"] = 1.0
    gain_std: Annotated[float, "standard deviation `nu` of a client's gain", AT_LEAST_0] = 0.0
    drift_mean: Annotated[float, "mean `c` of a client's drift `b_{k,i}`"] = 0.0
    drift_std: Annotated[float, "standard deviation `tau` of a client's drift", AT_LEAST_0] = 0.0
    heterogeneity: Annotated[
        str,
        "gains and drifts are drawn every round (`fresh`) or once per client (`persistent`)",
        _one_of(HETEROGENEITY),
    ] = "fresh"

    local_loss: Annotated[
        str,
        "local training of the clients. `none`: they return `a x + b`, the same in all rounds. "
        "`drift`: the drift law of Adam, `x + s_t ((a - 1) x + b)`, with a mean drift per "
        "partition (`drift_levels`) and a learning-rate schedule s_t (`learning_rate_schedule`). "
        "`quadratic`: they fit a target, `0.5 ||B A + Z - M_k||_F**2` with Z the part of the "
        "update in the base, by gradient descent on their factors (`matrix`) or its limit of small "
        "steps, the flow (`spectral`). A component whose factors are zero has no gradient and "
        "stays zero",
        _one_of(LOCAL_LOSSES),
    ] = "none"
    drift_levels: Annotated[
        tuple[float, ...] | None,
        "with `local_loss='drift'`: mean drift `c_h` of every direction in each partition, one per "
        "rank level, in place of `drift_mean`; None takes `drift_mean` everywhere",
        _numbers,
    ] = None
    learning_rate_schedule: Annotated[
        str,
        "learning rate of round t of T relative to the first, counted from t = 0: `constant` (1), "
        "`linear` (`1 - t/T`) or `cosine` (`(1 + cos(pi t/T)) / 2`). With `local_loss='drift'` it "
        "scales all that training changes, `(a - 1) x + b`; at `training` fidelity the learning "
        "rates of the clients",
        _one_of(SCHEDULES),
    ] = "constant"
    local_time: Annotated[
        float,
        "total step length of a round, T, 0 for none; a step at matrix fidelity is T / local_steps",
        AT_LEAST_0,
    ] = 0.5
    target_amplitude: Annotated[
        float, "amplitude of the targets in the first direction", AT_LEAST_0
    ] = 1.0
    target_decay: Annotated[
        float,
        "each further direction of the targets has this share of the previous one, in (0, 1]",
        check_share,
    ] = 1.0
    target_std: Annotated[
        float,
        "spread of the targets among clients, persistent: client k's are `1 + target_std z_k` "
        "times the common ones, z_k standard normal",
        AT_LEAST_0,
    ] = 0.0
    target_angle: Annotated[
        float,
        "matrix fidelity; angle in radians by which every singular vector of a client's target is "
        "turned from the common basis, once per client",
    ] = 0.0

    d_in: Annotated[int, "input width of the layer at matrix fidelity"] = 64
    d_out: Annotated[int, "output width of the layer at matrix fidelity"] = 64
    subspace_noise: Annotated[
        float,
        "matrix fidelity; each local factor is multiplied by `I + eps E`, `E` with independent "
        "entries of variance 1/r_k: mixes directions within the client's subspace",
        AT_LEAST_0,
    ] = 0.0
    basis_drift: Annotated[
        float,
        "matrix fidelity; angle in radians by which every singular vector of every client's update "
        "is turned away, each client and round in a random direction",
    ] = 0.0

    def __post_init__(self) -> None:
        self._set("ranks", parse_ranks(self.ranks))
        # local_loss: attributes and TOML files use None for "none"
        for name, default in {**_usual(self.fidelity), "local_loss": NONE}.items():
            if getattr(self, name) is None:
                self._set(name, default)
        for name, info in FIELDS.items():
            value = getattr(self, name)
            if value is not None or not info.optional:
                self._set(name, info.check(name, value))
        self._check_drift_law()
        self._check_quadratic_loss()
        self._check_training()
        federation = self.federation
        if self.num_samples is not None:
            self._set("num_samples", federation.num_samples)
        limit = min(self.d_in, self.d_out)
        if self.fidelity == "matrix" and federation.r_max > limit:
            raise expected("ranks", max(self.ranks), f"ranks up to min(d_in, d_out) = {limit}")

    def _check_training(self) -> None:
        """Refuse training fields that do not fit each other."""
        rates = self.client_learning_rates
        if rates is not None and len(rates) != len(self.ranks):
            wanted = f"{len(self.ranks)} rates, one per client"
            raise expected("client_learning_rates", list(rates), wanted)
        if self.fidelity != "training":
            return
        for name in FROM_FILES.get(self.task, ()):
            if getattr(self, name) is None:
                raise expected(name, None, f"what task={self.task!r} is to load")
        if self.momentum and self.optimizer != "sgd":
            raise expected("momentum", self.momentum, f"0 with optimizer={self.optimizer!r}")

    def _check_drift_law(self) -> None:
        """Refuse fields of the drift law without it, and a mean drift that is given twice."""
        if self.fidelity == "training" and self.local_loss != "none":
            other = "none at fidelity='training', where clients train on the task's own loss"
            raise expected("local_loss", self.local_loss, other)
        levels = self.drift_levels
        if self.local_loss != "drift":
            law = f"with local_loss={self.local_loss!r} (or choose local_loss='drift')"
            if levels is not None:
                raise expected("drift_levels", list(levels), f"None {law}")
            schedule = self.learning_rate_schedule
            if schedule != "constant" and self.fidelity != "training":
                raise expected("learning_rate_schedule", schedule, f"constant {law}")
            return
        if levels is None:
            return
        known = self.federation.levels
        if len(levels) != len(known):
            wanted = f"{len(known)} numbers, one per rank level {list(known)}"
            raise expected("drift_levels", list(levels), wanted)
        if self.drift_mean != 0:
            raise expected("drift_mean", self.drift_mean, "0 where drift_levels gives the means")

    def _check_quadratic_loss(self) -> None:
        """Refuse fields that clients who descend the quadratic loss do not use."""
        if self.local_loss != "quadratic":
            return
        also = "with local_loss='quadratic'"
        for name, usual in UNUSED_BY_TRAINING.items():
            if getattr(self, name) != usual:
                wanted = f"{usual:g} {also}: clients train by plain steps"
                raise expected(name, getattr(self, name), wanted)
        if self.optimizer == "adamw":
            raise expected("optimizer", "adamw", f"sgd or adam {also}: no weight decay")
        if self.fidelity == "matrix":
            if self.local_steps is None:
                raise expected("local_steps", None, f"a whole number of at least 1 {also}")
            return
        if self.optimizer != "sgd":
            flow = "sgd at fidelity='spectral', whose clients follow the gradient flow"
            raise expected("optimizer", self.optimizer, flow)
        if self.target_angle != 0:
            basis = "0 at fidelity='spectral', where all share one basis (or choose matrix)"
            raise expected("target_angle", self.target_angle, basis)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @cached_property
    def federation(self) -> Federation:
        """The clients and the sampling of cohorts."""
        return Federation(self.ranks, self.num_samples, self.cohort_size, self.sampling)

    @property
    def initial_amplitudes(self) -> NDArray[np.float64]:
        """Amplitudes `sigma_i(0)` of the global update, shape (r_max,), descending."""
        return _geometric(self.initial_amplitude, self.spectrum_decay, max(self.ranks))

    @property
    def target_amplitudes(self) -> NDArray[np.float64]:
        """Amplitudes of the common target of the clients, shape (r_max,), descending."""
        return _geometric(self.target_amplitude, self.target_decay, max(self.ranks))

    @property
    def drift_means(self) -> NDArray[np.float64]:
        """Mean drift of each direction, before the schedule, shape (r_max,)."""
        if self.drift_levels is None:
            return np.full(max(self.ranks), self.drift_mean)
        return np.repeat(self.drift_levels, np.diff((0, *self.federation.levels)))

    @property
    def training_scales(self) -> NDArray[np.float64]:
        """Learning rate of each round relative to the first one, shape (rounds,)."""
        passed = np.arange(self.rounds) / self.rounds
        if self.learning_rate_schedule == "linear":
            return np.asarray(1 - passed, dtype=np.float64)
        if self.learning_rate_schedule == "cosine":
            return np.asarray((1 + np.cos(np.pi * passed)) / 2, dtype=np.float64)
        return np.ones(self.rounds)

    def at_round(self, t: int) -> Scenario:
        """Return the scenario with the learning rates of round t, counted from 0."""
        scale = float(self.training_scales[t])
        if scale == 1:
            return self
        rates = self.client_learning_rates
        return self.replace(
            learning_rate=scale * self.learning_rate,
            client_learning_rates=None if rates is None else tuple(scale * x for x in rates),
        )

    def client_scaling(self, rank: int) -> float:
        """Return LoRA scaling of a client of this rank: alpha/r, or alpha/sqrt(r) under rsLoRA."""
        if self.lora_alpha is None:
            return 1.0
        return self.lora_alpha / (rank**0.5 if self.use_rslora else rank)

    def replace(self, **changes: Any) -> Scenario:
        """Return a copy with some fields changed and checked.

        If the fidelity changes, fields at the default of the old fidelity take the default of the
        new one.
        """
        if changes.get("fidelity", self.fidelity) != self.fidelity:
            usual = _usual(self.fidelity)
            kept = {name: None for name, value in usual.items() if getattr(self, name) == value}
            changes = kept | changes
        return dataclasses.replace(self, **changes)

    def to_attrs(self) -> dict[str, Any]:
        """Return all fields as netCDF-safe attributes; None becomes the word "none"."""
        return {f.name: _to_attr(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Scenario:
        """Return a scenario from field names and values; the text "none" means None.

        Raises:
            InputError: if a field is unknown (names the closest one), missing or invalid.
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
        """Return the scenario of a dataset from its attributes."""
        values = {f.name: _from_attr(attrs[f.name]) for f in fields(cls)}
        # netCDF stores a list of one item as a number, and has no booleans.
        for name, info in FIELDS.items():
            if values[name] is not None and get_origin(info.kind) is tuple:
                values[name] = tuple(np.atleast_1d(values[name]).tolist())
            if values[name] is not None and info.kind is bool:
                values[name] = bool(values[name])
        return cls(**values)


FIELDS = describe(Scenario)
"""Descriptions of all fields, for the checks, the documentation and the command line."""


def _usual(fidelity: str) -> dict[str, str]:
    """Return the values that None stands for in fields whose default depends on the fidelity."""
    if isinstance(fidelity, str) and fidelity.strip().lower() == "training":
        return {"dtype": "float32", "optimizer": "adam"}
    return {"dtype": "float64", "optimizer": "sgd"}


def load_toml(path: str | Path) -> dict[str, Any]:
    """Return the scenario fields of a TOML file, at its top level or in a `[scenario]` table.

    Raises:
        InputError: if the file is not valid TOML.
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
