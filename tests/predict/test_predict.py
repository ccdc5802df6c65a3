"""`predict` puts the closed forms side by side and adds nothing of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from analysis import closed_form
from analysis.closed_form.setting import RULES
from analysis.predict import (
    HARMONIC,
    LATE,
    TRAINED,
    Case,
    Prediction,
    RulePrediction,
    left_of_the_start,
    predict,
)
from analysis.prediction_record import to_record
from fedlora_sim.tolerances import relative

EXAMPLE = Case(
    "8x10,16x6,64x4",
    cohort_size=5,
    gain_mean=0.98,
    gain_std=0.1,
    drift_std=0.02,
    rounds=30,
    local_time=0.5,
)
FULL = Case("2x4,4x2,8x2", rounds=20, num_samples=(1, 2, 3, 4, 1, 2, 3, 4))
SAMPLED = Case("2x3,4x3", cohort_size=2, sampling="bernoulli", allocation="random", rounds=5)


@pytest.fixture(scope="module")
def predicted() -> Prediction:
    return predict(EXAMPLE)


def row(prediction: Prediction, label: str) -> RulePrediction:
    (found,) = [one for one in prediction.rules if one.label == label]
    return found


def test_every_rule_is_there_with_each_of_its_policies(predicted: Prediction) -> None:
    assert {found.rule for found in predicted.rules} == set(RULES)
    labels = [found.label for found in predicted.rules]
    assert len(set(labels)) == len(labels)
    assert {"raflora, zero", "raflora, carry", "fedavg"} <= set(labels)


def test_every_quantity_has_values_or_a_reason(predicted: Prediction) -> None:
    for found in predicted.rules:
        assert not set(found.values) & set(found.reasons)
        assert set(found.values) | set(found.reasons) == {
            *("energy_rate", "energy_half_life", "typical_rate", "typical_half_life"),
            *("survival", "relative_energy", "energy_floor", "energy"),
            *("collapse_threshold", "flow_floor", "flow_rate"),
        }
        for name, values in found.values.items():
            assert values.shape == ((31, 3) if name == "energy" else (3,))
            assert not np.isnan(values).any()
        assert all(reason for reason in found.reasons.values())


def test_numbers_are_those_of_the_closed_forms(predicted: Prediction) -> None:
    asked: dict[str, Any] = {"cohort_size": 5, "gain_mean": 0.98, "gain_std": 0.1}
    first = [0, 8, 16]
    for rule in ("fedavg", "flora"):
        values = row(predicted, rule).values
        rate = closed_form.energy_rate(rule, EXAMPLE.ranks, **asked)
        np.testing.assert_array_equal(values["energy_rate"], rate[first])
        floor = closed_form.energy_floor(rule, EXAMPLE.ranks, drift_std=0.02, **asked)
        np.testing.assert_allclose(values["energy_floor"], floor[first], relative("reduction"))
        assert "drift_std=0.02" in row(predicted, rule).reasons["energy_half_life"]
        still = row(predict(replace(EXAMPLE, drift_std=0.0), [rule]), rule).values
        np.testing.assert_allclose(
            still["energy_half_life"], np.log(0.5) / np.log(rate[first]), relative("reduction")
        )
    prediction = predict(replace(EXAMPLE, drift_std=0.0), ["raflora"])
    zero, carry = row(prediction, "raflora, zero"), row(prediction, "raflora, carry")
    empty = predicted.empty_probability
    np.testing.assert_allclose(zero.values["survival"], (1 - empty) ** 30, relative("reduction"))
    assert (carry.values["survival"] == 1).all()


def test_energies_are_means_over_the_directions_of_a_partition(predicted: Prediction) -> None:
    start = EXAMPLE.initial_amplitudes
    for part, h in zip(EXAMPLE.partitions, range(3), strict=True):
        mean = float(np.mean(start[part] ** 2))
        energy = row(predicted, "fedavg").values["energy"]
        assert energy[0, h] == pytest.approx(mean, rel=relative("reduction"))
    values = row(predicted, "fedavg").values
    np.testing.assert_array_equal(values["relative_energy"], energy[-1] / energy[0])


def test_rules_without_a_closed_form_say_why(predicted: Prediction) -> None:
    reason = row(predicted, "zero_pad").reasons["energy_rate"]
    assert "gain_std=0.1" in reason
    assert "no closed form" in reason
    assert "energy" not in row(predicted, "zero_pad").values


def test_what_ignores_drift_or_the_spread_of_gains_has_no_value() -> None:
    case = Case("2x12,8x3", cohort_size=3, rounds=60)
    spread = {"gain_std": 0.6}
    for change, missing in (
        ({"drift_mean": 0.1}, {"survival", "typical_rate", "typical_half_life"}),
        ({"drift_std": 0.1}, {"survival", "typical_rate", "typical_half_life"}),
        (spread, {"typical_rate", "typical_half_life"}),
        ({"gain_mean": 0.0}, {"survival"}),
    ):
        prediction = predict(replace(case, **change), ["fedavg"])
        written = to_record(prediction)["rules"][0]
        (found,) = prediction.rules
        name = next(iter(change))
        for quantity in ("survival", "typical_rate", "typical_half_life"):
            assert (quantity in found.values) == (quantity not in missing)
            if quantity in missing:
                assert f"{name}={change[name]}" in found.reasons[quantity]
                assert written[quantity] == {"values": None, "reason": found.reasons[quantity]}
    start = left_of_the_start(replace(case, drift_std=0.1), "fedavg", None).values
    for name, values in start.items():
        np.testing.assert_array_equal(values, predict(case, ["fedavg"]).rules[0].values[name])


def test_a_federation_without_differences_keeps_everything() -> None:
    prediction = predict(Case("4x3", rounds=4))
    for found in prediction.rules:
        if found.rule != "fedex":  # its fresh adapters hold what its base does not
            assert found.values["relative_energy"] == pytest.approx(1.0)
        assert found.values["survival"] == 1
        if found.rule in ("fedex", "hetlora"):
            assert "no half-life" in found.reasons["energy_half_life"]
            assert LATE in prediction.notes
        else:
            assert np.isposinf(found.values["energy_half_life"]).all()


@pytest.mark.parametrize("case", [EXAMPLE, FULL, SAMPLED], ids=["example", "full", "random"])
def test_the_record_is_plain_and_whole(case: Case) -> None:
    prediction = predict(case)
    record = json.loads(json.dumps(to_record(prediction), allow_nan=False))
    assert record["case"]["ranks"] == list(case.federation.ranks)
    assert [part["coverage"] for part in record["partitions"]] == prediction.coverage.tolist()
    assert len(record["rules"]) == len(prediction.rules)
    for written, found in zip(record["rules"], prediction.rules, strict=True):
        for name, values in found.values.items():
            again = np.array(written[name]["values"], dtype=np.float64)
            finite = np.isfinite(values)
            np.testing.assert_array_equal(again[finite], values[finite])
            assert np.isnan(again[~finite]).all()
            assert (written[name]["reason"] is None) == bool(finite.all())
        for name, reason in found.reasons.items():
            assert written[name] == {"values": None, "reason": reason}


def test_estimated_laws_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.cohorts.shares.ENUMERATION_LIMIT", 1)
    samples = tuple(1 + k / 7 for k in range(8))
    case = Case("2x4,4x4", num_samples=samples, cohort_size=3, rounds=2)
    (note,) = predict(case, rules=["fedavg"]).notes
    assert "random cohorts" in note


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ranks", "4x"),
        ("rounds", 0),
        ("cohort_size", 30),
        ("gain_mean", float("nan")),
        ("gain_std", -0.1),
        ("drift_std", -1.0),
        ("initial_amplitude", 0.0),
        ("spectrum_decay", 1.5),
        ("target", -1.0),
        ("local_time", 0.0),
        ("allocation", "importance"),
        ("sampling", "often"),
        ("num_samples", (1, 2)),
        ("num_samples", 3),
        ("num_samples", "123456"),
        ("initial_amplitude", 1e-200),
        ("initial_amplitude", 1e200),
        ("spectrum_decay", 1e-100),
    ],
)
def test_bad_cases_are_refused(field: str, value: object) -> None:
    given: dict[str, Any] = {"ranks": "2x4,4x2"} | {field: value}
    with pytest.raises(ValueError, match=f"^{field}="):
        Case(**given)


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'fedavg'"):
        predict(FULL, rules=["fedavgg"])


def test_energies_beyond_all_numbers_are_infinite_and_said_to_be() -> None:
    prediction = predict(Case("2x2,4x2", gain_mean=3.0, rounds=400), rules=["fedavg"])
    assert prediction.notes == (TRAINED,)
    assert np.isposinf(prediction.rules[0].values["relative_energy"][0])
    written = to_record(prediction)["rules"][0]["relative_energy"]
    assert written["values"][0] is None
    assert "range of numbers" in written["reason"]


def test_nothing_outgrows_all_numbers_with_a_noise() -> None:
    for gain, rounds in ((2.0, 2000), (1e200, 5)):
        prediction = predict(Case("2x3,8x2", gain_mean=gain, rounds=rounds))
        assert set(prediction.notes) <= {LATE, TRAINED}
        for row in prediction.rules:
            assert set(row.reasons) <= {"energy_half_life", "typical_half_life"}
            assert not any(np.isnan(values).any() for values in row.values.values())


def test_numbers_of_other_libraries_and_iterators_are_as_good() -> None:
    plain = Case("2x2,4x1", 3, num_samples=[1, 2, 3], gain_mean=0.5)
    other = Case(
        iter([2, 2, 4]),  # type: ignore[arg-type]
        np.int64(3),
        num_samples=iter([1, 2, 3]),  # type: ignore[arg-type]
        gain_mean=np.float32(0.5),  # type: ignore[arg-type]
    )
    records = [json.dumps(to_record(predict(case, ["fedavg"]))) for case in (plain, other)]
    assert records[0] == records[1]


def test_what_floors_of_training_are_means_of_is_noted() -> None:
    assert HARMONIC in predict(Case("2x4,4x4", cohort_size=3, local_time=1.0), ["fedavg"]).notes
    assert predict(Case("2x4,4x4", local_time=1.0), ["fedavg"]).notes == ()
