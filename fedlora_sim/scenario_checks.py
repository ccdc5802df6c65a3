"""What a scenario's fields may be, alone and together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora_sim.devices import DEVICES, DTYPES
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
from fedlora_sim.federation import ALLOCATIONS, EMPTY_PARTITION, HETEROGENEITY

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
        ValueError: naming the field, its value and what was expected.
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
        ValueError: naming the field, its value and what was expected.
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
        ValueError: naming the field, its value and what was expected.
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
