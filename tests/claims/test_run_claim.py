"""Running a claim, tested on small claims with known results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analysis.claims import CLAIMS, base, select
from analysis.claims.base import Claim, Control, Experiment, RunContext
from analysis.claims.report import to_markdown
from analysis.claims.verify import (
    LIBRARIES,
    assemble,
    claim_record,
    claim_records,
    environment,
    family_size,
    holds,
    run_claim,
)
from analysis.stats import FAMILY_ERROR, Measurement, Prediction, every_run, mean_interval
from fedlora_sim import Scenario
from fedlora_sim.run_store import RunStore


def normal(mean: float, std: float = 0.1) -> Experiment:
    """Return runs whose one quantity is normal; run i depends on its seed alone."""

    def experiment(numbers: Sequence[int], context: RunContext) -> np.ndarray:
        return np.array(
            [[np.random.default_rng(s).normal(mean, std)] for s in context.seeds(numbers)]
        )

    return experiment


def one(value: float = 1.0) -> Callable[[], Prediction]:
    return partial(Prediction.within, value, 0.5)


TOY = Claim(
    id="toy",
    statement="One is one.",
    source="ours",
    assumptions="none",
    fidelity="spectral",
    statistic="mean of the runs",
    quantities=("one",),
    predict=one(),
    experiment=normal(1.0),
    control=Control("three", predict=one(3.0)),
)


@pytest.mark.parametrize(
    "control",
    [
        Control("three predicted", predict=one(3.0)),
        Control("three simulated", experiment=normal(3.0)),
        Control("both wrong, unlike", predict=one(9.0), experiment=normal(3.0)),
    ],
    ids=lambda control: control.description,
)
def test_supported_with_a_refuted_control(control: Control) -> None:
    record = run_claim(replace(TOY, control=control), RunContext())
    assert (record["verdict"], record["reason"]) == ("supported", "")
    assert record["negative_control"]["verdict"] == "refuted"
    assert record["negative_control"]["description"] == control.description
    assert record["confidence"] == 1 - FAMILY_ERROR / family_size("theorem")
    assert 0 < record["p_value"] <= 1 - record["confidence"]


@pytest.mark.parametrize(
    ("control", "outcome"),
    [
        (Control("nothing wrong", predict=one()), "supported"),
        (Control("same simulation", experiment=normal(1.0)), "supported"),
        (Control("on the edge", experiment=normal(1.5, 1.0)), "undecided"),
    ],
    ids=lambda value: getattr(value, "description", value),
)
def test_a_control_that_is_not_refuted_leaves_the_claim_undecided(
    control: Control, outcome: str
) -> None:
    record = run_claim(replace(TOY, control=control), RunContext())
    assert record["negative_control"]["verdict"] == outcome
    assert record["verdict"] == "undecided"
    assert "control" in record["reason"]
    assert record["p_value"] == 1.0


def test_a_wrong_claim_is_refuted_even_if_its_control_is_vacuous() -> None:
    wrong = replace(TOY, predict=one(3.0), control=Control("the same", predict=one(1.0)))
    assert run_claim(wrong, RunContext())["verdict"] == "refuted"


def test_samples_that_are_not_finite_decide_nothing() -> None:
    def broken(numbers: Sequence[int], context: RunContext) -> np.ndarray:
        return np.full((len(numbers), 1), np.nan)

    assert run_claim(replace(TOY, experiment=broken), RunContext())["verdict"] == "undecided"
    control = Control("a simulation that blows up", experiment=broken)
    record = run_claim(replace(TOY, control=control), RunContext())
    assert record["verdict"] == "undecided", "a control that was not measured was not refuted"


def test_the_prediction_comes_before_the_first_run() -> None:
    order = []

    def predict() -> Prediction:
        order.append("predict")
        return one()()

    def experiment(numbers: Sequence[int], context: RunContext) -> np.ndarray:
        order.append("simulate")
        return normal(1.0)(numbers, context)

    run_claim(replace(TOY, predict=predict, experiment=experiment), RunContext())
    assert order[0] == "predict"
    assert "simulate" in order


def test_quick_and_full_runs_have_the_stated_number_of_looks() -> None:
    claim = replace(TOY, first=16, cap=16, quick=(4, 4))
    assert run_claim(claim, RunContext())["runs"] == 16
    assert run_claim(claim, RunContext(quick=True))["runs"] == 4


def test_the_error_of_a_claim_depends_on_the_registry_only() -> None:
    asked = []

    def estimator(samples: np.ndarray, error: float) -> Measurement:
        asked.append(error)
        return mean_interval(samples, error)

    for kind in ("theorem", "conjecture"):
        size = sum(claim.kind == kind for claim in CLAIMS)
        assert family_size(kind) == size
        for quick in (False, True):
            asked.clear()
            claim = replace(TOY, kind=kind, estimator=estimator, first=4, cap=8, quick=(4, 8))
            record = run_claim(claim, RunContext(quick=quick))
            assert asked[0] == FAMILY_ERROR / size / 2  # two looks
            assert record["confidence"] == 1 - FAMILY_ERROR / size


def test_the_error_can_be_given() -> None:
    loose, strict = (run_claim(replace(TOY, cap=8), RunContext(), error) for error in (0.2, 1e-5))
    assert (loose["confidence"], strict["confidence"]) == (0.8, 1 - 1e-5)
    widths = [np.ptp(record["interval"]) for record in (loose, strict)]
    assert widths[0] < widths[1]


@pytest.mark.parametrize("quick", [False, True])
def test_quick_runs_have_the_same_margins(quick: bool) -> None:
    narrow = replace(TOY, predict=partial(Prediction.within, 1.0, 0.1))
    for value, expected in ((1.09, "supported"), (1.11, "refuted")):
        record = run_claim(replace(narrow, experiment=normal(value, 1e-6)), RunContext(quick=quick))
        assert (record["verdict"], record["margin"]) == (expected, "±10%")


NEAR = Control("four margins more", predict=one(2.999))
TWO = replace(TOY, quantities=("one", "two"), predict=partial(Prediction.within, [1.0, 2.0], 0.5))


def pair(first: float, second: float) -> Experiment:
    """Return two quantities."""

    def experiment(numbers: Sequence[int], context: RunContext) -> np.ndarray:
        columns = [normal(mean)(numbers, context) for mean in (first, second)]
        return np.concatenate(columns, axis=1)

    return experiment


def test_a_near_control_has_its_distance_in_margins() -> None:
    record = run_claim(replace(TOY, near=NEAR), RunContext())
    assert record["verdict"] == "supported"
    near = record["near_control"]
    assert near["verdict"] == "refuted"
    (measured,) = near["measurement"]
    assert near["distance"] == pytest.approx([(2.999 - measured) / (0.5 * 2.999)])


@pytest.mark.parametrize(
    ("second", "outcome", "verdict"),
    [
        (6.0, "refuted", "supported"),
        (2.1, "supported", "undecided"),
        (3.0, "undecided", "undecided"),
    ],
)
def test_a_near_control_must_be_refuted_in_every_quantity(
    second: float, outcome: str, verdict: str
) -> None:
    near = Control("both off", experiment=pair(3.0, second))
    claim = replace(TWO, experiment=pair(1.0, 2.0), near=near, cap=8)
    record = run_claim(claim, RunContext())
    assert record["near_control"]["verdict"] == outcome
    assert record["verdict"] == verdict
    assert ("near control in every quantity" in record["reason"]) is (verdict == "undecided")


def test_a_near_control_runs_until_every_quantity_is_refuted() -> None:
    near = Control("one far off, the other less", experiment=pair(30.0, 3.15))
    claim = replace(TWO, experiment=pair(1.0, 2.0), near=near, first=4, cap=512)
    record = run_claim(claim, RunContext())
    assert record["near_control"]["verdict"] == "refuted"
    assert record["near_control"]["runs"] > record["negative_control"]["runs"]


@pytest.mark.parametrize(
    ("positive", "verdict"),
    [
        (Control("three", predict=one(3.0)), "refuted"),
        (Control("nine", predict=one(9.0)), "undecided"),
        (Control("on the edge", predict=one(6.0)), "undecided"),
    ],
    ids=lambda value: getattr(value, "description", value),
)
def test_a_refuted_claim_needs_a_check_that_can_support(positive: Control, verdict: str) -> None:
    claim = replace(TOY, kind="conjecture", experiment=normal(3.0), positive=positive)
    record = run_claim(claim, RunContext())
    assert record["verdict"] == verdict
    assert ("support its positive control" in record["reason"]) is (verdict == "undecided")


def all_but(run: int, value: float) -> Experiment:
    """Return one in all runs, `value` in one of them."""

    def experiment(numbers: Sequence[int], context: RunContext) -> np.ndarray:
        return np.array([[value if number == run else 1.0] for number in numbers])

    return experiment


def test_one_counterexample_refutes_a_statement_on_every_run_and_is_shown() -> None:
    claim = replace(
        TOY,
        estimator=every_run,
        first=400,
        cap=400,
        scenario=lambda seed: Scenario(ranks=(2, 4), spectrum_decay=0.5),
    )
    held = run_claim(replace(claim, experiment=all_but(-1, 0.0)), RunContext(seed=3))
    assert (held["verdict"], held["p_value"]) == ("supported", None)
    assert held["every_run"]["counterexamples"] == 0
    assert (1 - held["every_run"]["rarer_than"]) ** 400 == pytest.approx(1 - held["confidence"])
    failed = run_claim(replace(claim, experiment=all_but(123, 9.0)), RunContext(seed=3))
    assert failed["verdict"] == "refuted"
    code = "Scenario(ranks=(2, 4), fidelity='spectral', spectrum_decay=0.5)"
    first = {"run": 123, "seed": 3_000_123, "measured": [9.0], "scenario": code}
    assert failed["every_run"] == {"counterexamples": 1, "first": first}
    assert eval(code) == claim.scenario(0)
    report = assemble([held, failed], RunContext(seed=3))
    assert [record["p_holm"] for record in report["claims"]] == [None, None]
    text = to_markdown(report)
    assert f"Counterexamples: 1 of 400 runs; the first is run 123, seed 3000123, `{code}`" in text
    assert "No counterexample in 400 runs" in text


def test_a_report_adjusts_p_values_within_each_family() -> None:
    claims = [
        TOY,
        replace(TOY, id="guess", kind="conjecture"),
        replace(TOY, id="wrong", predict=one(3.0)),
        replace(TOY, id="open", experiment=normal(1.5, 1.0)),
    ]
    records = [run_claim(claim, RunContext()) for claim in claims]
    report = assemble(records, RunContext())
    assert [c["id"] for c in report["claims"]] == [c.id for c in claims]
    for kind, run in (("theorem", 3), ("conjecture", 1)):
        family = report["families"][kind]
        assert family == {"claims": family_size(kind), "run": run, "error": FAMILY_ERROR}
    for record in report["claims"]:
        decided = record["verdict"] != "undecided"
        assert (record["p_holm"] <= FAMILY_ERROR) is decided
        assert record["p_value"] <= record["p_holm"] <= 1.0
    guess = report["claims"][1]
    assert guess["p_holm"] == pytest.approx(family_size("conjecture") * guess["p_value"])
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_null_in_the_report_and_named(bad: float) -> None:
    def diverged(numbers: Sequence[int], context: RunContext) -> np.ndarray:
        return np.full((len(numbers), 1), bad)

    for error, broken in (
        ("claim", replace(TOY, experiment=diverged)),
        ("control", replace(TOY, control=Control("diverged", experiment=diverged))),
    ):
        with np.errstate(invalid="ignore"):
            record = run_claim(broken, RunContext())
        part = record if error == "claim" else record["negative_control"]
        assert part["interval"] == [[None, None]]
        assert record["verdict"] == "undecided"
        assert ("no finite interval of one" in record["reason"]) is (error == "claim")
        report = json.loads(json.dumps(assemble([record], RunContext()), allow_nan=False))
        assert "not finite" in to_markdown(report) or error == "control"


def test_an_undecided_claim_states_the_reason() -> None:
    record = run_claim(replace(TOY, experiment=normal(1.5, 1.0)), RunContext())
    assert record["verdict"] == "undecided"
    assert "crosses the end of its margin" in record["reason"]


def test_seeds_of_different_bases_are_disjoint() -> None:
    numbers = range(64_000)
    seeds = [RunContext(seed=seed).seeds(numbers) for seed in (0, 1)]
    assert not set(seeds[0]) & set(seeds[1])
    assert len(set(seeds[0])) == len(numbers)


def test_a_stored_record_is_not_measured_again(tmp_path: Path) -> None:
    context = RunContext(store=RunStore(tmp_path / "store", {"seed": 0}))
    record = claim_record(TOY, context)

    def refuse(numbers: Sequence[int], context: RunContext) -> np.ndarray:
        raise AssertionError("measured again")

    assert claim_record(replace(TOY, experiment=refuse), context) == json.loads(json.dumps(record))


@pytest.mark.slow
def test_other_processes_give_the_same_records(tmp_path: Path) -> None:
    chosen = select(["staircase", "floor-drift-mean", "fedex-approach"])
    done: list[float] = []
    kept = RunContext(quick=True, store=RunStore(tmp_path / "store", {"seed": 0}))
    kept.on_progress = done.append
    apart = {record["id"]: record for record in claim_records(chosen, kept, processes=2)}
    assert done == [record["runs"] for record in apart.values()]
    for record in claim_records(chosen, RunContext(quick=True)):
        stored = kept.store.get_record(record["id"])
        assert stored == apart[record["id"]]
        assert {**stored, "seconds": 0} == {**record, "seconds": 0}


def claims(*pairs: tuple[str, str]) -> dict[str, object]:
    return {"claims": [{"kind": kind, "verdict": verdict} for kind, verdict in pairs]}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (claims(("theorem", "supported"), ("theorem", "supported")), True),
        (claims(("theorem", "supported"), ("theorem", "undecided")), False),
        (claims(("theorem", "refuted")), False),
        (claims(("theorem", "supported"), ("conjecture", "refuted")), True),
    ],
)
def test_holds_requires_every_theorem(report: dict[str, object], expected: bool) -> None:
    assert holds(report) is expected


def test_environment_names_what_the_results_depend_on() -> None:
    described = environment(RunContext(seed=3, quick=True, device="cpu"))
    assert (described["seed"], described["quick"], described["device"]) == (3, True, "cpu")
    for name in (*LIBRARIES, "torch", "python", "fedlora_sim"):
        assert described[f"{name}_version"]
    json.dumps(described)


@pytest.mark.slow
def test_runs_are_added_until_the_near_control_is_refuted() -> None:
    """The mean is clear after the first look; a control next to it needs more runs."""
    wide = replace(
        TOY,
        predict=partial(Prediction.at_least, 1.0, 0.2),
        experiment=normal(1.4, std=1.0),
        near=Control("1.45", predict=partial(Prediction.at_least, 1.45, 0.02)),
        first=400,
        cap=25_600,
    )
    without = run_claim(replace(wide, near=None), RunContext())
    record = run_claim(wide, RunContext())
    assert without["verdict"] == record["verdict"] == "supported"
    assert record["near_control"]["verdict"] == "refuted"
    assert without["runs"] < record["runs"]


def test_the_last_cohort_may_leave_a_direction_out() -> None:
    """With base seed 5 no client of the highest rank is in the last cohort of some run."""
    (claim,) = select(["drift-known-cohorts"], quick=True)
    record = run_claim(claim, RunContext(5, True))
    assert np.isfinite(np.array(record["interval"])).all()
    assert record["verdict"] == "supported"


def test_the_last_runs_are_simulated_once_while_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    simulate = base.simulate

    def counted(scenario: Scenario, rule: str, **options: Any) -> xr.Dataset:
        calls.append(rule)
        return simulate(scenario, rule, **options)

    monkeypatch.setattr(base, "simulate", counted)
    finished: list[float] = []
    context = RunContext(on_progress=finished.append)
    run = partial(base.simulated, Scenario("1x1,2x1", rounds=2), numbers=range(3), context=context)
    first = run(rule="fedavg")
    xr.testing.assert_identical(run(rule="fedavg"), first)
    assert calls == ["fedavg"]
    assert sum(finished) == 2 * 3  # a control that needs no new runs makes progress too
    monkeypatch.setattr(base, "MOST_KEPT", first.nbytes)
    run(rule="raflora")  # takes the place of the older ones
    run(rule="raflora")
    run(rule="fedavg")
    assert calls == ["fedavg", "raflora", "fedavg"]
