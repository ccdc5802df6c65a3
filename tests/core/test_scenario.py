"""Scenarios: fields, attributes there and back, TOML, bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from simulator_cases import assert_close

from fedlora_sim import Scenario
from fedlora_sim.errors import InputError
from fedlora_sim.scenario import FIELDS, load_toml

FULL = Scenario(
    "2x2,3x1",
    fidelity="matrix",
    rounds=7,
    num_samples=(5, 1, 2),
    cohort_size=2,
    sampling="with_replacement",
    empty_partition="zero",
    dtype="float32",
    gain_std=0.5,
    heterogeneity="persistent",
    d_in=5,
    d_out=4,
    local_steps=None,
    lora_alpha=16.0,
    use_rslora=True,
    allocation="importance",
    pruning_decay=0.5,
    pruning_penalty=0.1,
    initializer="slora",
)

FITTING = Scenario(
    "2x2,3x1",
    fidelity="matrix",
    local_loss="quadratic",
    local_time=0.7,
    target_amplitude=1.5,
    target_decay=0.5,
    target_std=0.2,
    target_angle=-0.1,
    optimizer="adam",
    local_steps=3,
)

DRIFTING = Scenario(
    "2x2,3x1", local_loss="drift", drift_levels=(0.2, 1), learning_rate_schedule="cosine"
)


@pytest.mark.parametrize(
    "scenario",
    [FULL, FITTING, DRIFTING, Scenario("4x8,8x6"), Scenario([3]), Scenario([2], num_samples=[7])],
)
def test_attributes_lead_back(scenario):
    attrs = scenario.to_attrs()
    assert set(attrs) == {field.name for field in dataclasses.fields(Scenario)}
    assert Scenario.from_attrs({**attrs, "rule": "raflora"}) == scenario
    assert hash(Scenario.from_attrs(attrs)) == hash(scenario)


def test_text_and_sequences_are_one_scenario():
    assert Scenario("2x2,3x1") == Scenario([2, 2, 3]) == Scenario(np.array([2, 2, 3]))
    assert Scenario("4x2", fidelity="MATRIX").fidelity == "matrix"
    assert (Scenario("4").dtype, Scenario("4", fidelity="training").dtype) == ("float64", "float32")


def test_the_initial_spectrum_is_geometric():
    scenario = Scenario("1x2,4x1", initial_amplitude=2.0, spectrum_decay=0.5)
    assert_close(scenario.initial_amplitudes, [2.0, 1.0, 0.5, 0.25])


def test_the_targets_are_geometric():
    scenario = Scenario("1x2,4x1", target_amplitude=2.0, target_decay=0.5)
    assert_close(scenario.target_amplitudes, [2.0, 1.0, 0.5, 0.25])


def test_drifts_are_those_of_the_partitions():
    assert_close(DRIFTING.drift_means, [0.2, 0.2, 1.0])
    assert_close(Scenario("2x2,3x1", drift_mean=0.3).drift_means, [0.3, 0.3, 0.3])


def test_the_optimizer_is_that_of_the_fidelity():
    assert [Scenario("4", fidelity=f).optimizer for f in ("spectral", "matrix", "training")] == [
        "sgd",
        "sgd",
        "adam",
    ]
    assert Scenario("4", fidelity="training", optimizer="sgd").optimizer == "sgd"


def test_another_fidelity_takes_its_own_defaults() -> None:
    trained = Scenario("4").replace(fidelity="training")
    assert (trained.optimizer, trained.dtype) == ("adam", "float32")
    assert trained.replace(fidelity="matrix") == Scenario("4", fidelity="matrix")
    assert Scenario("4", dtype="float32").replace(fidelity="matrix").dtype == "float32"
    assert Scenario("4").replace(fidelity="training", optimizer="sgd").optimizer == "sgd"


def test_no_local_loss_has_a_name(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text('ranks = "4"\nlocal_loss = "none"\noptimizer = "none"\n')
    assert Scenario.from_mapping(load_toml(path)) == Scenario("4", local_loss="NONE")
    assert Scenario("4").local_loss == "none"
    path.write_text('ranks = "4"\nlocal_loss = "quadratic"\ntarget_std = 0.5\nlocal_time = 2\n')
    wanted = Scenario("4", local_loss="quadratic", target_std=0.5, local_time=2.0)
    assert Scenario.from_mapping(load_toml(path)) == wanted


def test_client_scaling():
    assert Scenario("4").client_scaling(4) == 1.0
    assert Scenario("4", lora_alpha=16).client_scaling(4) == 4.0
    assert Scenario("4", lora_alpha=16, use_rslora=True).client_scaling(4) == 8.0


def test_replace_checks_again():
    assert FULL.replace(rounds=3).rounds == 3
    assert FULL.replace(rounds=3).ranks == FULL.ranks
    with pytest.raises(InputError, match="rounds=0"):
        FULL.replace(rounds=0)


@pytest.mark.parametrize("table", ["", "[scenario]\n"])
def test_toml_at_the_top_or_in_its_table(tmp_path, table):
    path = tmp_path / "scenario.toml"
    path.write_text(
        table
        + 'ranks = "2x2,3x1"\nnum_samples = [5, 1, 2]\nlocal_steps = "none"\nuse_rslora = true\n'
    )
    wanted = Scenario("2x2,3x1", num_samples=(5, 1, 2), local_steps=None, use_rslora=True)
    assert Scenario.from_mapping(load_toml(path)) == wanted


@pytest.mark.parametrize("text", ["ranks = ", "ranks = [1,", b"\xff\xfe", "scenario = 3\n"])
def test_toml_that_cannot_be_read_is_named(tmp_path, text):
    path = tmp_path / "broken.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"broken\.toml|scenario=3"):
        load_toml(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.toml"):
        load_toml(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ranks": "4", "round": 3}, "'round'.*did you mean 'rounds'"),
        ({"ranks": "4", "Rounds": 3}, "'Rounds'"),
        ({"ranks": "4", "color": "red"}, "'color'.*expected one of"),
        ({"rounds": 3}, "ranks=None"),
        ({}, "ranks=None"),
    ],
)
def test_unknown_or_missing_fields_are_named(values, message):
    with pytest.raises(InputError, match=message):
        Scenario.from_mapping(values)


BAD = [
    {"ranks": "4x0"},
    {"ranks": ()},
    {"fidelity": "spectrall"},
    {"rounds": 0},
    {"rounds": 1.5},
    {"num_samples": (1, 2)},
    {"cohort_size": 4},
    {"cohort_size": 0},
    {"sampling": "poisson"},
    {"empty_partition": "keep"},
    {"dtype": "float16"},
    {"dtype": ""},
    {"device": "tpu"},
    {"initial_amplitude": 0.0},
    {"initial_amplitude": -1.0},
    {"spectrum_decay": 1.5},
    {"spectrum_decay": 0.0},
    {"gain_mean": float("nan")},
    {"gain_mean": None},
    {"gain_std": -0.1},
    {"drift_mean": float("inf")},
    {"drift_std": -0.1},
    {"heterogeneity": "stale"},
    {"d_in": 0},
    {"d_out": -3},
    {"subspace_noise": -0.1},
    {"basis_drift": float("nan")},
    {"task": "mnist"},
    {"task_seed": -1},
    {"task_seed": 1.5},
    {"split": "random"},
    {"dirichlet_alpha": 0.0},
    {"classes_per_client": 0},
    {"optimizer": "lion"},
    {"learning_rate": 0.0},
    {"momentum": -0.1},
    {"weight_decay": -1e-3},
    {"batch_size": 0},
    {"local_steps": 0},
    {"local_epochs": 0},
    {"lora_alpha": 0.0},
    {"use_rslora": "false"},
    {"allocation": "svds"},
    {"initializer": "pissa"},
    {"local_loss": "cubic"},
    {"learning_rate_schedule": "step"},
    {"learning_rate_schedule": "cosine"},
    {"drift_levels": (0.1, 0.2)},
    {"drift_levels": 0.1},
    {"local_time": -1.0},
    {"local_time": float("inf")},
    {"target_amplitude": -1.0},
    {"target_decay": 0.0},
    {"target_decay": 1.1},
    {"target_std": -0.1},
    {"target_angle": float("nan")},
    {"slora_rounds": 0},
    {"slora_density": 0.0},
    {"slora_density": 1.5},
    {"slora_density": float("nan")},
    {"pruning_decay": 0.0},
    {"pruning_decay": 1.0},
    {"pruning_decay": "often"},
    {"pruning_penalty": -0.1},
    {"pruning_penalty": float("inf")},
]


@pytest.mark.parametrize("change", BAD, ids=str)
def test_bad_fields_are_named(change):
    (name,) = change
    with pytest.raises(InputError, match=f"{name}="):
        Scenario(**{"ranks": "2x2,3x1", **change})


@pytest.mark.parametrize(
    ("name", "value", "fidelity"),
    [
        ("local_loss", "quadratic", "training"),
        *[(name, 0.5, "spectral") for name in ("gain_mean", "gain_std", "momentum")],
        *[(name, 0.5, "matrix") for name in ("drift_mean", "drift_std", "weight_decay")],
        ("optimizer", "adamw", "matrix"),
        ("optimizer", "adam", "spectral"),
        ("local_steps", None, "matrix"),
        ("target_angle", 0.1, "spectral"),
    ],
)
def test_fields_without_meaning_for_the_quadratic_loss_are_named(name, value, fidelity):
    fields = {"ranks": "2x2,3x1", "fidelity": fidelity, name: value}
    with pytest.raises(InputError, match=f"{name}={value!r}: expected .*(quadratic|spectral|own)"):
        Scenario(**{**fields, "local_loss": "quadratic"})
    if name != "local_loss":
        assert getattr(Scenario(**fields), name) == value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"drift_levels": (0.1,)}, r"drift_levels=.*one per rank level \[2, 3\]"),
        ({"drift_levels": (0.1, float("nan"))}, r"drift_levels="),
        ({"drift_levels": (0.1, 0.2), "drift_mean": 0.1}, r"drift_mean=0\.1: expected 0 where"),
        ({"fidelity": "training"}, r"local_loss='drift': expected none at fidelity='training'"),
    ],
)
def test_what_makes_no_sense_beside_the_drift_law_is_named(fields, message):
    with pytest.raises(InputError, match=message):
        Scenario(**{"ranks": "2x2,3x1", "local_loss": "drift", **fields})


@pytest.mark.parametrize(
    "name",
    ["initial_amplitude", "spectrum_decay", "dirichlet_alpha", "learning_rate", "lora_alpha"],
)
def test_numbers_are_kept_as_numbers(name):
    assert type(getattr(Scenario("4", **{name: 1}), name)) is float


def test_matrices_must_hold_the_ranks():
    assert Scenario("8x2", d_in=4).ranks == (8, 8)
    with pytest.raises(InputError, match=r"ranks=8.*= 4"):
        Scenario("8x2", fidelity="matrix", d_in=4)


def test_a_scenario_makes_its_federation_once_and_a_copy_its_own() -> None:
    other = FULL.replace(cohort_size=1)
    assert FULL.federation is FULL.federation
    assert (FULL.federation.cohort_size, other.federation.cohort_size) == (2, 1)
    assert FULL.replace() == FULL
    assert hash(FULL) == hash(FULL.replace())


def test_every_field_is_described_and_documented() -> None:
    assert list(FIELDS) == [field.name for field in dataclasses.fields(Scenario)]
    documented = " ".join((Scenario.__doc__ or "").split())
    for name, info in FIELDS.items():
        assert f"{name}: {info.text}." in documented


@pytest.mark.parametrize("name", [name for name, info in FIELDS.items() if not info.optional])
def test_a_field_that_is_not_optional_refuses_none(name: str) -> None:
    if name == "local_loss":  # None reads "none"
        assert Scenario("4", local_loss=None).local_loss == "none"
        return
    with pytest.raises(ValueError, match=f"{name}=None"):
        Scenario(**{"ranks": "4", name: None})
