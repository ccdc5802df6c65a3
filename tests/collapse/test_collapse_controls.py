"""A report whose controls fail states it and is not to be trusted."""

from __future__ import annotations

import json

import pytest
from collapse_cases import Halving, Impostor, Momentum

from analysis.collapse import Collapse, collapse_report, report
from analysis.collapse.report import UNTRUSTED
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.rules.fedavg import FedAvg


class _Disguised(Halving):
    """A rule that halves the update, under raFLoRA's name."""

    @property
    def label(self) -> str:
        return "raflora"


def test_a_failed_control_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = report.predict

    def disguised(rule: object) -> AggregationRule:
        return _Disguised() if rule == "raflora" else get_rule(rule)

    monkeypatch.setattr(report, "get_rule", disguised)
    raflora = get_rule("raflora")
    monkeypatch.setattr(
        report, "predict", lambda s, rule: real(s, raflora if rule.label == "raflora" else rule)
    )
    found = collapse_report("zero_pad", seeds=100, scenarios=("full",))
    wrong = "raflora, full participation: theory says keeps its rank, measured collapses"
    assert found.failed_controls == (wrong,)
    assert found.sentence.startswith(UNTRUSTED)
    assert f"Control failed: {wrong}." in str(found)
    assert found.to_json()["failed_controls"] == [wrong]


def test_a_rule_does_not_take_the_place_of_a_control() -> None:
    with pytest.raises(ValueError, match="rule='fedavg': expected a rule with a name of its own"):
        collapse_report(Impostor(), scenarios=("full",))
    found = collapse_report(FedAvg(), scenarios=("full",))
    assert found.verdict is Collapse.COLLAPSES
    assert list(found.scenarios[0].rules) == ["fedavg", "raflora"]


def test_two_random_runs_are_too_few() -> None:
    found = collapse_report("fedavg", seeds=2, scenarios=("gains",))
    assert any("raflora" in text and "undecided" in text for text in found.failed_controls)


def test_controls_use_the_same_runs_as_the_rule() -> None:
    found = collapse_report("fedavg", seeds=20, scenarios=("cohorts", "drift"))
    for part in found.scenarios:
        assert list(part.rules) == ["fedavg", "raflora"]
        versus = part.rules["fedavg"].numbers["versus_fedavg"]
        assert (versus.value == 1).all()


@pytest.mark.slow
def test_fedavg_collapses_and_raflora_does_not_next_to_any_rule() -> None:
    found = collapse_report(Momentum(), seeds=32, scenarios=("gains", "flow_below"))
    verdicts = [[part.verdict(name) for name in ("fedavg", "raflora")] for part in found.scenarios]
    c, k = Collapse.COLLAPSES, Collapse.KEEPS
    assert verdicts == [[c, k], [c, k]]
    assert found.failed_controls == ()
    json.dumps(found.to_json(), allow_nan=False)
