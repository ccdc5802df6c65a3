"""The project's claims as data: each can fail, and is predicted before anything is simulated."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import fedlora_sim
from analysis.claims import CLAIMS, THEMES, select, theme_of
from analysis.claims.base import NEAR, Claim, RunContext
from analysis.claims.verify import KINDS, run_claim
from analysis.formats import FORMULA, plain
from analysis.stats.verdicts import Prediction
from fedlora_sim.errors import InputError

SIMULATORS = ("simulate", "simulate_many", "aggregate", "run_spectral", "run_matrix", "descend")
# Conjectures that the measurements refute; they are kept as results.
REFUTED = {
    "review-participation-mean",
    "review-participation-typical-tiny",
    "review-random-removes-loss",
    "review-random-slows-loss",
    "breakdown-adam",
}
LONG = {
    *("collapse-bound", "trajectory-fedavg", "trajectory-raflora", "log-normal", "extinction-law"),
    *("participation-mean-milder", "participation-median", "declared-multipliers"),
    *("canonical-gauge", "heterogeneity-critical", "persistent-cohorts", "raflora-floor-ratio"),
    *("signal-to-noise-cohorts", "flow-floor-fedavg", "flow-floor-raflora"),
    *("flow-rate-below-fedavg", "flow-critical-fedavg", "flow-threshold-fedavg"),
    *("flow-raflora-no-threshold", "flow-cohorts-fedavg", "flow-cohorts-zero-pad"),
    *("breakdown-drift", "breakdown-steps", "adam-floor", "review-settling-fractions"),
    *("review-settling-speed", "flow-rate-above-fedavg", "flow-rate-above-raflora"),
    *("independent-runs", "zero-pad-cohort-rate", "heterogeneity-slows", "log-energy-spread"),
    *("cohort-rate", "flora-cohort-growth", "hetlora-uniform-cohorts", "typical-rate-zero-pad"),
    *("raflora-zero-cohort", "persistent-full", "equal-signal-to-noise", "typical-rate-fedavg"),
    *("adam-identity", "review-participation-mean", "review-participation-typical-moderate"),
    *("review-participation-typical-tiny", "random-allocation-variance", "noise-gain"),
    *("review-random-concentration", "floor-raflora", "fedex-settles"),
    *("persistent-outgrows-fresh", "raflora-noise-amplification"),
}
TWINS = {
    *(
        "flow-threshold-fedavg",
        "flow-floor-raflora",
        "flow-rate-below-fedavg",
        "flow-cohorts-zero-pad",
    ),
    *(
        "review-settling-fractions",
        "zero-pad-cohort-rate",
        "trajectory-fedavg",
        "persistent-cohorts",
    ),
    *("signal-to-noise-cohorts", "typical-rate-zero-pad"),
    *("flow-rate-above-raflora", "flow-rate-above-fedavg", "breakdown-steps"),
    *("log-energy-spread", "heterogeneity-slows", "trajectory-raflora", "review-settling-speed"),
}
"""Claims that run the code of a faster claim, on another rule or quantity."""
KEYS = {
    "id": str,
    "statement": str,
    "source": str,
    "prediction": list,
    "measurement": list,
    "interval": list,
    "verdict": str,
    "negative_control": dict,
}

# On a busy machine small matrices spend most of the time waiting for a second thread.
pytestmark = pytest.mark.usefixtures("one_thread")


def by_id(name: str) -> Claim:
    (claim,) = select([name])
    return claim


def check_record(record: dict[str, Any], claim: Claim) -> None:
    for key, kind in KEYS.items():
        assert isinstance(record[key], kind), key
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    size = len(claim.quantities)
    assert len(record["prediction"]) == len(record["measurement"]) == size
    assert np.shape(record["interval"]) == (size, 2)
    assert all(
        low <= m <= high
        for m, (low, high) in zip(record["measurement"], record["interval"], strict=True)
    )


def test_ids_are_unique_and_fit_a_command_line() -> None:
    ids = [claim.id for claim in CLAIMS]
    assert len(set(ids)) == len(ids)
    assert all(name.replace("-", "").isalnum() and name == name.lower() for name in ids)


def test_every_claim_belongs_to_one_theme() -> None:
    assert sum(len(claims) for claims in THEMES.values()) == len(CLAIMS)
    for name, claims in THEMES.items():
        assert {theme_of(claim) for claim in claims} == {name}


def test_refuted_claims_are_conjectures() -> None:
    assert {by_id(name).kind for name in REFUTED} == {"conjecture"}


def test_select_keeps_report_order_and_drops_repeats() -> None:
    first, second = CLAIMS[0], CLAIMS[3]
    assert select([second.id, first.id, second.id]) == (first, second)
    assert select(None) == select([]) == CLAIMS


def test_quick_leaves_out_slow_claims() -> None:
    left_out = [claim.id for claim in CLAIMS if claim not in select(None, quick=True)]
    assert left_out == [claim.id for claim in CLAIMS if not claim.in_quick]
    for claims in THEMES.values():
        assert any(claim.in_quick for claim in claims), "a theme that quick runs do not hold"
    for name in left_out:
        with pytest.raises(InputError, match=f"claim='{name}'.*a full run"):
            select([name], quick=True)


def test_select_names_the_closest_claim() -> None:
    with pytest.raises(InputError, match=r"claim='stair-case'.*'staircase'"):
        select(["stair-case"])


def test_every_claim_has_all_its_texts() -> None:
    for claim in CLAIMS:
        for text in (claim.id, *claim.all_texts()):
            assert text.strip(), claim.id
            assert "\n" not in text, claim.id
        assert claim.statement.endswith("."), claim.id
        assert claim.quantities, claim.id
        assert claim.kind in KINDS, claim.id
        assert claim.fidelity in {"spectral", "matrix", "training"}, claim.id
        for first, cap in map(claim.runs, (False, True)):
            assert 2 <= first <= cap, claim.id  # an interval needs two runs


def test_formulas_of_claims_are_latex_that_github_shows_in_a_table() -> None:
    for claim in CLAIMS:
        for text in claim.all_texts():
            prose, formulas = FORMULA.sub("", text), "".join(FORMULA.findall(text))
            # Markdown reads bars, HTML and escaped signs before it reads formulas.
            assert not re.search(r"[|<>&*]|\\[^a-z]", formulas), text
            assert not re.search(r"[$_^=|*<>\\]", prose.replace("zero_pad", "")), text
            assert not re.search(r"[$\\{}]", plain(text)), text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (r"$1 - \rho_{l_1}(t) \le C \gamma^t$, always", "1 - rho_l_1(t) <= C gamma^t, always"),
        (r"$\sqrt{t \mathrm{Var}[W \mid W \gt 0]}$", "sqrt(t Var[W | W > 0])"),
        (r"$\sum_{k \in C} x^{-1}$", "sum_(k in C) x^-1"),
        ("costs $5", "costs $5"),
    ],
)
def test_formulas_have_a_plain_form(text: str, written: str) -> None:
    assert plain(text) == written


def test_every_claim_has_a_control_that_differs_from_it() -> None:
    for claim in CLAIMS:
        control = claim.control
        if control.experiment is None:
            assert control.predict is not None, claim.id
            wrong, right = control.predict(), claim.predict()
            differs = (wrong.low != right.low).any() or (wrong.high != right.high).any()
            assert differs, claim.id
        else:
            assert control.experiment is not claim.experiment, claim.id


@pytest.fixture
def no_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all calls of the simulator raise an error."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("simulated")

    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in {"analysis", "fedlora_sim"} and module is not None:
            for function in SIMULATORS:
                if callable(getattr(module, function, None)):
                    monkeypatch.setattr(module, function, refuse)
    assert fedlora_sim.simulate is refuse


@pytest.mark.usefixtures("no_simulator")
def test_predictions_need_no_simulation() -> None:
    for claim in CLAIMS:
        for predict in (claim.predict, claim.control.predict or claim.predict):
            prediction = predict()
            assert prediction.value.shape == (len(claim.quantities),), claim.id
            assert prediction.low.shape == prediction.high.shape == prediction.value.shape
            assert np.isfinite(prediction.value).all(), claim.id
            assert (prediction.low <= prediction.value).all(), claim.id
            assert (prediction.value <= prediction.high).all(), claim.id
        with pytest.raises(AssertionError, match="simulated"):
            claim.experiment(range(2), RunContext())


def marks(claim: Claim) -> list[pytest.MarkDecorator]:
    """Leave full runs, and claims whose code a faster claim runs, to the deep tests."""
    if not claim.in_quick or claim.id in TWINS:
        return [pytest.mark.slow, pytest.mark.deep]
    return [pytest.mark.slow] if claim.id in LONG else []


@pytest.mark.slow
@pytest.mark.design
@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(claim, id=claim.id, marks=marks(claim))
        for claim in CLAIMS
        if claim.fidelity != "training"
    ],
)
def test_claim_is_settled_and_its_control_refuted(claim: Claim) -> None:
    record = run_claim(claim, RunContext(quick=claim.in_quick))
    assert record["verdict"] == ("refuted" if claim.id in REFUTED else "supported")
    assert record["negative_control"]["verdict"] == "refuted"
    if claim.near is not None:
        near = record["near_control"]
        assert near["verdict"] == "refuted"
        assert min(near["distance"]) >= NEAR[0]
        assert max(near["distance"]) <= NEAR[1]
    assert record["reason"] == ""
    check_record(record, claim)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("raflora-carry-flat", partial(Prediction.within, [0.999, 0.999], 1e-6)),
        ("raflora-zero-cohort", partial(Prediction.within, [1.0, 1.0], 0.02)),
        ("equal-ranks-identity", partial(Prediction.at_least, 1e-3)),
        ("floor-fedavg", partial(Prediction.within, [0.0896, 0.025, 0.011], 0.03)),
    ],
)
def test_a_wrong_prediction_of_a_real_claim_is_refuted(name: str, wrong: Any) -> None:
    record = run_claim(replace(by_id(name), predict=wrong), RunContext(quick=True))
    assert record["verdict"] == "refuted"


def test_a_real_claim_with_a_vacuous_control_stays_undecided() -> None:
    claim = by_id("raflora-carry-flat")
    vacuous = replace(claim.control, experiment=None, predict=claim.predict)
    record = run_claim(replace(claim, control=vacuous), RunContext(quick=True))
    assert record["negative_control"]["verdict"] == "supported"
    assert record["verdict"] == "undecided"
    assert "negative control" in record["reason"]


@pytest.mark.slow
def test_another_base_seed_measures_again_and_agrees() -> None:
    claim = replace(by_id("floor-fedavg"), quick=(400, 400))
    first, again, other = (run_claim(claim, RunContext(quick=True, seed=s)) for s in (0, 0, 7))
    assert first["measurement"] == again["measurement"]
    assert first["measurement"] != other["measurement"]
    assert "refuted" not in {first["verdict"], other["verdict"]}
