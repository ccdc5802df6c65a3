"""`predict` labels the closed forms' values as a simulation, and adds nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import xarray as xr
from designs import each_value

from analysis import closed_form
from analysis.closed_form.setting import RULES
from analysis.predict import (
    DRIFT,
    HARMONIC,
    LATE,
    PROJECTED,
    QUANTITIES,
    TRAINED,
    VARIABLES,
    RulePrediction,
    compare,
    comparison_notes,
    comparison_record,
    left_of_the_start,
    predict,
    reasons,
    with_training,
)
from fedlora_sim import InputError, Scenario, simulate
from fedlora_sim.metrics import effective_rank, energy_ratio
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.rules.fedavg import FedAvg
from fedlora_sim.tolerances import relative

EXAMPLE = Scenario(
    "8x10,16x6,64x4", cohort_size=5, gain_mean=0.98, gain_std=0.1, drift_std=0.02, rounds=30
)
STILL = EXAMPLE.replace(drift_std=0.0)
FULL = Scenario("2x4,4x2,8x2", rounds=20, num_samples=(1, 2, 3, 4, 1, 2, 3, 4))
SAMPLED = Scenario("2x3,4x3", cohort_size=2, sampling="bernoulli", allocation="random", rounds=5)
TRAINING = Scenario("2x4,4x2", local_loss="quadratic", local_time=0.6, rounds=8)
SCENARIOS = {"example": EXAMPLE, "full": FULL, "sampled": SAMPLED, "training": TRAINING}
FIRST = [0, 8, 16]


# One scenario and one rule: the dataset


@pytest.mark.parametrize("fidelity", ["spectral", "matrix"])
def test_names_coordinates_and_attributes_are_those_of_a_simulation(fidelity: str) -> None:
    scenario = FULL.replace(fidelity=fidelity, rounds=4)
    theory, run = predict(scenario, "zero_pad"), simulate(scenario, rule="zero_pad")
    assert set(run.data_vars) <= set(theory.data_vars)
    for name in run.data_vars:
        mean = run[name].mean("seed")
        assert theory[name].dims == mean.dims
        assert theory[name].units == run[name].units
        np.testing.assert_allclose(theory[name], mean, rtol=relative("iteration"))
        assert set(theory[name].coords) == set(mean.coords)
    for name in ("round", "direction", "partition", "coverage"):
        xr.testing.assert_identical(theory[name], run[name].drop_vars("seed", errors="ignore"))
    shared = {name for name in run.attrs if name not in ("torch_version", "draws_version")}
    assert {name: theory.attrs[name] for name in shared} == {n: run.attrs[n] for n in shared}
    assert Scenario.from_attrs(theory.attrs) == scenario


def test_the_ratio_of_a_simulation_and_its_prediction_is_one_line() -> None:
    scenario = Scenario("2x3,4x3", rounds=5)
    ratio = (
        simulate(scenario, rule="fedavg").energy.mean("seed") / predict(scenario, "fedavg").energy
    )
    np.testing.assert_allclose(ratio, 1.0, rtol=relative("iteration"))


@pytest.mark.slow
@each_value(name=SCENARIOS, rule=RULES)
def test_every_variable_has_numbers_or_a_reason(name: str, rule: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    theory = predict(scenario, rule)
    sizes = {"round": scenario.rounds + 1, "direction": max(scenario.ranks)}
    assert set(theory.data_vars) == set(VARIABLES)
    why = reasons(theory)
    assert json.loads(theory.attrs["reasons"]) == why
    for key, (dims, _, _) in VARIABLES.items():
        assert theory[key].shape == tuple(sizes[dim] for dim in dims)
        missing = np.isnan(theory[key].values)
        assert missing.all() if key in why else not missing.any()
    assert all(why.values())
    theory.to_netcdf(tmp_path / "theory.nc")
    with xr.open_dataset(tmp_path / "theory.nc") as again:
        again.load()
    xr.testing.assert_equal(again, theory)
    assert Scenario.from_attrs(again.attrs) == scenario
    assert json.loads(again.attrs["reasons"]) == why


def test_numbers_are_those_of_the_closed_forms() -> None:
    for rule in ("fedavg", "flora"):
        theory = predict(EXAMPLE, rule)
        rate = closed_form.energy_rate(EXAMPLE, rule)
        np.testing.assert_array_equal(theory.energy_rate, rate)
        np.testing.assert_array_equal(theory.energy_floor, closed_form.energy_floor(EXAMPLE, rule))
        energy, mean = theory.energy.values, theory.mean_amplitude.values
        np.testing.assert_array_equal(energy, closed_form.energy_trajectory(EXAMPLE, rule))
        np.testing.assert_array_equal(mean, closed_form.mean_trajectory(EXAMPLE, rule))
        np.testing.assert_array_equal(theory.rho, energy_ratio(energy, 8))
        np.testing.assert_array_equal(theory.effective_rank, effective_rank(energy))
        assert "drift_std=0.02" in reasons(theory)["half_life"]
        halves = predict(STILL, rule).half_life
        np.testing.assert_array_equal(halves, closed_form.half_life(rate))
    empty = closed_form.extinction_probability(STILL)
    for policy, wanted in (("zero", (1 - empty) ** 30), ("carry", np.ones(64))):
        theory = predict(STILL.replace(empty_partition=policy), "raflora")
        np.testing.assert_array_equal(theory.extinction_probability, empty)
        np.testing.assert_allclose(theory.survival, wanted, rtol=relative("reduction"))


def test_training_is_the_flow_where_all_runs_are_alike() -> None:
    theory = predict(TRAINING, "fedavg")
    path = closed_form.flow_trajectory(TRAINING, "fedavg")
    for name, wanted in (("flow_amplitude", path), ("mean_amplitude", path), ("energy", path**2)):
        np.testing.assert_array_equal(theory[name], wanted)
    for name in ("flow_floor", "flow_rate", "collapse_threshold"):
        form = getattr(closed_form, name)
        np.testing.assert_array_equal(theory[name], form(TRAINING, "fedavg"))
    for name in ("energy_rate", "typical_rate", "energy_floor"):
        assert reasons(theory)[name].startswith("local_loss='quadratic'")
    assert (theory.survival == 1).all()
    cohorts = TRAINING.replace(cohort_size=4)
    drawn = predict(cohorts, "fedavg")
    np.testing.assert_array_equal(
        drawn.flow_amplitude, closed_form.flow_trajectory(cohorts, "fedavg")
    )
    for name in ("energy", "mean_amplitude", "rho", "effective_rank"):
        assert "only 1/E[1/x] is known" in reasons(drawn)[name]
    assert HARMONIC in json.loads(drawn.attrs["notes"])
    assert "energy" not in reasons(predict(cohorts.replace(ranks="2x6"), "raflora"))


def test_rules_without_a_closed_form_state_the_reason() -> None:
    theory = predict(EXAMPLE, "zero_pad")
    assert "gain_std=0.1" in reasons(theory)["energy_rate"]
    assert "no closed form" in reasons(theory)["energy_rate"]
    assert np.isnan(theory.energy).all()


def test_forms_that_ignore_drift_or_the_spread_of_gains_have_no_value() -> None:
    scenario = Scenario("2x12,8x3", cohort_size=3, rounds=60)
    for change, missing in (
        ({"drift_mean": 0.1}, {"survival", "typical_rate", "typical_half_life"}),
        ({"drift_std": 0.1}, {"survival", "typical_rate", "typical_half_life"}),
        ({"gain_std": 0.6}, {"typical_rate", "typical_half_life"}),
        ({"gain_mean": 0.0}, {"survival"}),
    ):
        why = reasons(predict(scenario.replace(**change), "fedavg"))
        name = next(iter(change))
        for quantity in ("survival", "typical_rate", "typical_half_life"):
            assert (quantity in why) == (quantity in missing)
            if quantity in missing:
                assert why[quantity].startswith(f"{name}=")
    start = left_of_the_start(scenario.replace(drift_std=0.1), "fedavg")
    for name, values in start.items():
        np.testing.assert_array_equal(values, predict(scenario, "fedavg")[name])


# Which rules


@dataclass(frozen=True)
class Unknown(FedAvg):
    """A rule of another package."""

    name: ClassVar[str] = "unknown_to_theory"


@pytest.mark.parametrize(
    ("rule", "label"),
    [
        ("FedAvg", "fedavg"),
        ("flexlora", "fedavg"),
        ("raflora:canonicalize=false", "raflora"),
        (get_rule("rbla"), "rbla"),
    ],
    ids=str,
)
def test_a_rule_is_named_as_in_a_simulation(rule: str | AggregationRule, label: str) -> None:
    theory = predict(FULL, rule)
    assert theory.attrs["rule"] == label == simulate(FULL, rule=rule).attrs["rule"]
    xr.testing.assert_identical(theory, predict(FULL, label))


@pytest.mark.parametrize("rule", ["hetlora:data_weighted=true", Unknown()], ids=str)
def test_other_rules_and_options_have_the_federation_alone(rule: str | AggregationRule) -> None:
    theory = predict(FULL, rule)
    assert set(theory.data_vars) - set(reasons(theory)) == {"extinction_probability"}
    assert "no closed form" in reasons(theory)["energy"]
    assert theory.attrs["rule"] == get_rule(rule).label


@pytest.mark.parametrize(
    ("scenario", "rule", "message"),
    [
        (FULL, "fedavgg", r"^rule='fedavgg': .*did you mean 'fedavg'"),
        (FULL, "raflora:canonicalise=true", "did you mean 'canonicalize'"),
        ("2x4", "fedavg", r"^scenario='2x4': expected a Scenario"),
        (FULL.replace(rounds=10**8), "fedavg", r"^rounds=100000000: expected at most"),
    ],
    ids=str,
)
def test_bad_questions_are_refused(scenario: object, rule: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict(scenario, rule)


# Several rules side by side


@pytest.fixture(scope="module")
def compared() -> tuple[RulePrediction, ...]:
    return compare(EXAMPLE, local_time=0.5)


def row(rows: tuple[RulePrediction, ...], label: str) -> RulePrediction:
    (found,) = [one for one in rows if one.label == label]
    return found


def test_every_rule_is_there_with_each_of_its_policies(compared) -> None:
    assert {found.rule for found in compared} == set(RULES)
    labels = [found.label for found in compared]
    assert len(set(labels)) == len(labels)
    assert {"raflora, zero", "raflora, carry", "fedavg"} <= set(labels)


def test_a_comparison_is_a_loop_of_predictions(compared) -> None:
    training = Scenario(EXAMPLE.ranks, cohort_size=5, local_loss="quadratic", rounds=30)
    for found in compared:
        own = {"empty_partition": found.empty_partition or "carry"}
        theory = predict(EXAMPLE.replace(**own), found.rule)
        trained = predict(training.replace(**own, local_time=0.5), found.rule)
        for name in VARIABLES:
            of = trained if name in ("collapse_threshold", "flow_floor", "flow_rate") else theory
            if name not in (*DRIFT, "flow_amplitude"):
                xr.testing.assert_identical(found.theory[name].variable, of[name].variable)


def test_values_are_those_of_first_directions_and_energies_are_means(compared) -> None:
    found = row(compared, "fedavg")
    theory = predict(EXAMPLE, "fedavg")
    np.testing.assert_array_equal(found.of("energy_rate"), theory.energy_rate[FIRST])
    energy = found.of("energy")
    for h, part in enumerate(EXAMPLE.federation.partitions):
        np.testing.assert_array_equal(energy[:, h], theory.energy.values[:, part].mean(axis=-1))
    np.testing.assert_array_equal(found.of("relative_energy"), energy[-1] / energy[0])
    assert found.of("typical_rate") is None
    assert found.reasons["typical_rate"].startswith("gain_std=0.1")


def test_floor_and_rate_of_training_need_a_local_time(compared) -> None:
    assert set(row(compared, "fedavg").quantities) == set(QUANTITIES)
    without = with_training(EXAMPLE, "fedavg").quantities
    assert set(QUANTITIES) - set(without) == {"flow_floor", "flow_rate"}
    assert TRAINED in comparison_notes(compared)
    assert HARMONIC in comparison_notes(compared)
    assert HARMONIC not in comparison_notes(compare(EXAMPLE, ["fedavg"]))


def test_a_federation_without_differences_keeps_everything() -> None:
    rows = compare(Scenario("4x3", rounds=4))
    for found in rows:
        if found.rule != "fedex":  # its new adapters hold the part that is not in the base
            assert found.of("relative_energy") == pytest.approx(1.0)
        assert found.of("survival") == 1
        if found.rule in ("fedex", "hetlora"):
            assert "no half-life" in found.reasons["half_life"]
        else:
            assert np.isposinf(found.of("half_life")).all()
    assert LATE in comparison_notes(rows)
    assert TRAINED not in comparison_notes(rows)


@pytest.mark.parametrize("scenario", [EXAMPLE, FULL, SAMPLED], ids="esr")
def test_the_record_is_plain_and_whole(scenario: Scenario) -> None:
    rows = compare(scenario)
    record = json.loads(json.dumps(comparison_record(rows), allow_nan=False))
    assert record["scenario"]["ranks"] == list(scenario.ranks)
    covered = closed_form.coverage(scenario)
    assert [part["coverage"] for part in record["partitions"]] == [
        covered[part["first"] - 1] for part in record["partitions"]
    ]
    assert record["notes"] == comparison_notes(rows)
    assert len(record["rules"]) == len(rows)
    for written, found in zip(record["rules"], rows, strict=True):
        for name in found.quantities:
            values = found.of(name)
            if values is None:
                assert written[name] == {"values": None, "reason": found.reasons[name]}
                continue
            again = np.array(written[name]["values"], dtype=np.float64)
            finite = np.isfinite(values)
            np.testing.assert_array_equal(again[finite], values[finite])
            assert np.isnan(again[~finite]).all()
            assert (written[name]["reason"] is None) == bool(finite.all())


def test_an_energy_out_of_range_is_infinite_with_a_reason() -> None:
    (found,) = compare(Scenario("2x2", rounds=600, gain_mean=10.0), ["fedavg"])
    assert np.isposinf(found.of("energy")[-1]).all()
    (written,) = comparison_record([found])["rules"]
    assert written["energy"]["reason"] == "infinite: beyond the range of numbers"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial_amplitude": 1e-200}, "^initial_amplitude=1e-200"),
        ({"spectrum_decay": 1e-200}, "^spectrum_decay=1e-200"),
        ({"allocation": "importance"}, "^allocation='importance'"),
    ],
    ids=str,
)
def test_invalid_comparisons_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare(EXAMPLE.replace(**changes))


def test_the_projected_energy_is_described() -> None:
    assert PROJECTED[0] == VARIABLES["energy"][0]
    theory = predict(FULL.replace(fidelity="matrix"), "fedavg")
    np.testing.assert_array_equal(theory.projected_energy, predict(FULL, "fedavg").energy)
