"""Verdicts on rules with known results and on rules that try to deceive the report."""

from __future__ import annotations

import numpy as np
import pytest
from collapse_cases import (
    Boasting,
    ByNorms,
    Declaring,
    Explosive,
    Halving,
    Honest,
    Momentum,
    Nothing,
    Raised,
    Reports,
    Shrinking,
    Small,
    Turning,
)

from analysis.closed_form.setting import RULES
from analysis.collapse import SCENARIOS, Collapse, CollapseReport, collapse_report
from analysis.collapse.outcome import Agreement
from analysis.collapse.predict import predict
from analysis.collapse.scenarios import standards
from fedlora_sim.rules import Aggregator, get_rule

C, K = Collapse.COLLAPSES, Collapse.KEEPS
# In the order of `SCENARIOS`: above FedAvg's threshold training compensates one dilution.
FATES = {
    "fedavg": (C, C, C, C, C, K),
    "ffa": (C, C, C, C, K, K),
    "zero_pad": (C,) * 6,
    "hetlora": (C,) * 6,
    "raflora": (K,) * 6,
    "rbla": (K,) * 6,
    "flora": (K,) * 6,
    "fedex": (K,) * 6,
}


def agreements(report: CollapseReport) -> dict[Agreement, list[tuple[str, str]]]:
    """Return scenario and kind of every compared number of the report's rule."""
    found: dict[Agreement, list[tuple[str, str]]] = {a: [] for a in Agreement}
    for part in report.scenarios:
        for kind, each in part.rules[report.rule].agreement.items():
            for agreement in each:
                found[agreement].append((part.standard.name, kind))
    return found


def test_every_rule_with_closed_forms_is_among_them() -> None:
    assert sorted(FATES) == sorted(RULES)


@pytest.mark.parametrize("rule", FATES)
def test_every_rule_has_its_known_verdict(rule: str, reports: Reports) -> None:
    report = reports(rule)
    assert tuple(part.verdict(rule) for part in report.scenarios) == FATES[rule]
    assert report.verdict == (K if set(FATES[rule]) == {K} else C)
    assert report.failed_controls == ()


@pytest.mark.parametrize("rule", FATES)
def test_predictions_agree_with_measurements(rule: str, reports: Reports) -> None:
    report = reports(rule)
    found = agreements(report)
    assert found[Agreement.DISAGREES] == []
    assert len(found[Agreement.UNDECIDED]) <= 1
    assert len(found[Agreement.AGREES]) >= 10
    for part in report.scenarios:
        prediction = part.rules[rule].prediction
        assert prediction.verdict in (None, part.verdict(rule))


def test_fedavg_and_raflora_are_predicted_everywhere(reports: Reports) -> None:
    for rule in ("fedavg", "raflora"):
        for part in reports(rule).scenarios:
            assert "rate" in part.rules[rule].prediction.values, part.standard.name


def test_rates_at_full_participation_are_those_of_the_paper(reports: Reports) -> None:
    (part,) = reports("zero_pad", "full").scenarios
    for rule, power in (("fedavg", 2), ("zero_pad", 4), ("raflora", 0)):
        rate = part.rules[rule].numbers["rate"]
        np.testing.assert_allclose(rate.value, np.array([1.0, 0.6, 0.3]) ** power, rtol=1e-9)
        np.testing.assert_array_equal(rate.low, rate.high)  # nothing is drawn: no interval


def test_a_rule_that_halves_high_partitions_collapses_as_it_declares() -> None:
    report = collapse_report(Halving(), seeds=400, scenarios=("full", "cohorts"))
    assert report.verdict is C
    (full, _) = report.scenarios
    np.testing.assert_allclose(full.rules["halving"].numbers["rate"].value[1:], 0.25, rtol=1e-9)
    assert agreements(report)[Agreement.DISAGREES] == []
    assert ("full", "rate") in agreements(report)[Agreement.AGREES]


def test_a_wrong_declaration_is_caught() -> None:
    report = collapse_report(Boasting(), seeds=400, scenarios=("full", "cohorts", "gains"))
    assert report.verdict is C
    for name in ("full", "cohorts"):
        assert (name, "rate") in agreements(report)[Agreement.DISAGREES]
    assert all(part.rules["boasting"].prediction.verdict is K for part in report.scenarios[:2])
    gains = report.scenarios[2].rules["boasting"].prediction
    assert gains.values == {}
    assert "alike" in gains.source


@pytest.mark.slow
def test_a_right_declaration_agrees_and_equals_the_closed_form() -> None:
    report = collapse_report(Honest(), seeds=2_000, scenarios=("full", "cohorts"))
    assert agreements(report)[Agreement.DISAGREES] == []
    for part in report.scenarios:
        own, known = (part.rules[name].prediction for name in ("honest", "fedavg"))
        for kind in ("rate", "extinct", "rho"):
            np.testing.assert_allclose(own.values[kind], known.values[kind], rtol=1e-9)
        versus = part.rules["honest"].numbers["versus_fedavg"]
        np.testing.assert_array_equal([versus.value, versus.low, versus.high], 1.0)


def test_a_carrying_rule_is_predicted_to_carry() -> None:
    report = collapse_report(Raised(), seeds=50, scenarios=("cohorts",))
    prediction = report.scenarios[0].rules["raised"].prediction
    assert prediction.source == "declared multiplier"
    np.testing.assert_array_equal(prediction.values["rate"], 1.0)
    np.testing.assert_array_equal(prediction.values["extinct"], 0.0)
    assert report.verdict is K


@pytest.mark.slow
def test_a_foreign_rule_with_state_runs_at_matrix_fidelity() -> None:
    report = collapse_report(Momentum(), seeds=16, scenarios=("full", "cohorts"))
    assert {part.fidelity for part in report.scenarios} == {"matrix"}
    assert report.verdict is C
    assert report.failed_controls == ()
    (full, cohorts) = report.scenarios
    assert full.rules["momentum"].prediction.source == "no closed form declared"
    versus = cohorts.rules["momentum"].numbers["versus_raflora"]
    assert (versus.high[1:] < 1).all()
    assert report.sentence.startswith("momentum collapses in all 2 scenarios")
    assert "[" in cohorts.sentence("momentum")
    assert "FedAvg" in cohorts.sentence("momentum")
    assert "raFLoRA" in cohorts.sentence("momentum")


@pytest.mark.slow
def test_a_rule_that_is_more_than_weights_keeps_its_rank() -> None:
    report = collapse_report("raflora:canonicalize=true", seeds=32, scenarios=("full", "drift"))
    assert report.verdict is K
    assert report.scenarios[1].fidelity == "matrix"


@pytest.mark.slow
def test_energy_that_turns_away_is_not_called_lost() -> None:
    report = collapse_report(Turning(), seeds=8, scenarios=("full",))
    own = report.scenarios[0].rules["turning"]
    assert own.verdict is Collapse.UNDECIDED
    assert "left the initial directions" in own.notes[0]
    assert own.notes[0] in str(report).replace("\n    ", " ")


@pytest.mark.slow
def test_the_multiplier_of_a_protocol_rule_is_a_prediction() -> None:
    report = collapse_report(Declaring(), seeds=16, scenarios=("full", "cohorts", "gains"))
    full, cohorts, gains = (part.rules["declaring"] for part in report.scenarios)
    for own in (full, cohorts):
        assert own.prediction.source == "declared multiplier"
        assert own.prediction.verdict is C
    np.testing.assert_allclose(full.prediction.values["rate"], [1.0, 0.36, 0.09])
    assert set(full.agreement["rate"]) == {Agreement.AGREES}
    assert agreements(report)[Agreement.DISAGREES] == []
    assert gains.prediction.values == {}
    assert "not applicable here: it speaks of clients that return alike" in gains.prediction.source


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (ByNorms(), "not applicable here: it is not one of shares of the clients' weights"),
        ("raflora:canonicalize=true", "not applicable here: the rule is more than weights"),
        (Momentum(), "no closed form declared"),
    ],
)
def test_reasons_for_no_prediction_are_distinguished(rule: str | Aggregator, why: str) -> None:
    prediction = predict(standards()["full"], get_rule(rule))
    assert why in prediction.source
    assert prediction.values == {}


def test_a_factor_for_all_directions_is_not_predicted_to_collapse() -> None:
    report = collapse_report(Shrinking(), seeds=200, scenarios=("full", "cohorts"))
    assert agreements(report)[Agreement.DISAGREES] == []
    for part in report.scenarios:
        assert part.rules["shrinking"].prediction.verdict is K
        assert part.verdict("shrinking") is K
    told = report.scenarios[0].rules["shrinking"].prediction
    assert told.path is not None
    np.testing.assert_allclose(told.values["rate"], 0.25)
    np.testing.assert_allclose(told.path[2], 0.25**2)


def test_a_rule_that_shrinks_everything_to_rounding_loses_everything() -> None:
    report = collapse_report(Shrinking(factor=0.1), scenarios=("full",))
    own = report.scenarios[0].rules[report.rule]
    assert own.verdict is C
    assert own.prediction.verdict is C
    np.testing.assert_array_equal(own.numbers["extinct"].value, 1.0)
    assert agreements(report)[Agreement.DISAGREES] == []
    assert "it loses everything, the shared directions too" in report.sentence


def test_a_multiplier_of_zero_is_predicted_to_lose_everything() -> None:
    prediction = predict(standards()["full"], Shrinking(factor=0.0))
    assert prediction.verdict is C
    np.testing.assert_array_equal(prediction.values["rate"], 0.0)
    assert np.isnan(prediction.values["rho"]).all()


@pytest.mark.slow
def test_a_rule_that_loses_everything_is_not_said_to_lose_its_rank_alone() -> None:
    report = collapse_report(Nothing(), seeds=8, scenarios=("full",))
    own = report.scenarios[0].rules["nothing"]
    assert report.verdict is C
    np.testing.assert_array_equal(own.numbers["extinct"].value, 1.0)
    assert own.extinct_rounds == (1, 1, 1)
    assert np.isnan(own.numbers["relative_rate"].value[1:]).all()
    np.testing.assert_array_equal(own.numbers["rate"].value, 0.0)
    assert "shared partition is lost too, in 100%" in own.notes[0]
    assert "it loses everything, the shared directions too" in report.sentence


@pytest.mark.slow
def test_a_diverging_rule_is_undecided() -> None:
    report = collapse_report(Explosive(), seeds=2, scenarios=("full",))
    assert report.verdict is Collapse.UNDECIDED
    part = report.scenarios[0]
    told = part.failure or part.rules["explosive"].notes[0]
    assert "expected energies below 1.8e308" in told


@pytest.mark.slow
def test_a_rule_that_fails_in_one_scenario_is_judged_in_the_others() -> None:
    report = collapse_report(Small(), seeds=32, scenarios=("full", "cohorts"))
    full, cohorts = report.scenarios
    assert full.verdict("small") is C
    assert cohorts.verdict("small") is Collapse.UNDECIDED
    assert cohorts.failure == "RuntimeError: too few clients"
    assert "could not be run (RuntimeError: too few clients)" in cohorts.sentence("small")
    assert report.verdict is C
    assert report.failed_controls == ()
    assert report.table().row_count == 4


def test_the_standard_scenarios_have_three_levels_and_a_threshold_between_the_flows() -> None:
    from analysis import closed_form

    known = standards()
    assert tuple(known) == SCENARIOS
    assert all(standard.levels == (2, 4, 8) for standard in known.values())
    threshold = closed_form.collapse_threshold(known["flow_below"].scenario, "fedavg")
    times = [known[name].scenario.local_time for name in ("flow_below", "flow_above")]
    assert times[0] < threshold[2:].min() <= threshold[2:].max() < times[1]
    cohorts = known["cohorts"].scenario.federation
    assert cohorts.cohort_size == cohorts.num_clients / 10
    assert len(set(known["gains"].scenario.num_samples or ())) > 10
