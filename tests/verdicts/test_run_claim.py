"""Running a claim, on claims small enough to see through."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from analysis.claim import Claim, Context, Experiment, NegativeControl
from analysis.claims import CLAIMS
from analysis.inference import (
    FAMILY_ERROR,
    QUICK_MARGIN,
    Measurement,
    Prediction,
    mean_interval,
)
from analysis.report import to_markdown
from analysis.verify import (
    LIBRARIES,
    assemble,
    claim_record,
    environment,
    family_size,
    holds,
    run_claim,
)
from fedlora_sim.run_store import RunStore


def normal(mean: float, std: float = 0.1) -> Experiment:
    """Runs whose one quantity is normal; run i depends on its seed alone."""

    def experiment(numbers: Sequence[int], context: Context) -> np.ndarray:
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
    control=NegativeControl("three", predict=one(3.0)),
)


@pytest.mark.parametrize(
    "control",
    [
        NegativeControl("three predicted", predict=one(3.0)),
        NegativeControl("three simulated", experiment=normal(3.0)),
        NegativeControl("both wrong, unlike", predict=one(9.0), experiment=normal(3.0)),
    ],
    ids=lambda control: control.description,
)
def test_supported_with_a_refuted_control(control: NegativeControl) -> None:
    record = run_claim(replace(TOY, control=control), Context())
    assert (record["verdict"], record["reason"]) == ("supported", "")
    assert record["negative_control"]["verdict"] == "refuted"
    assert record["negative_control"]["description"] == control.description
    assert record["confidence"] == 1 - FAMILY_ERROR / family_size("theorem")
    assert 0 < record["p_value"] <= 1 - record["confidence"]


@pytest.mark.parametrize(
    ("control", "outcome"),
    [
        (NegativeControl("nothing wrong", predict=one()), "supported"),
        (NegativeControl("same simulation", experiment=normal(1.0)), "supported"),
        (NegativeControl("on the edge", experiment=normal(1.5, 1.0)), "undecided"),
    ],
    ids=lambda value: getattr(value, "description", value),
)
def test_a_control_that_is_not_refuted_leaves_the_claim_undecided(
    control: NegativeControl, outcome: str
) -> None:
    record = run_claim(replace(TOY, control=control), Context())
    assert record["negative_control"]["verdict"] == outcome
    assert record["verdict"] == "undecided"
    assert "control" in record["reason"]
    assert record["p_value"] == 1.0


def test_a_wrong_claim_is_refuted_even_if_its_control_is_vacuous() -> None:
    wrong = replace(TOY, predict=one(3.0), control=NegativeControl("the same", predict=one(1.0)))
    assert run_claim(wrong, Context())["verdict"] == "refuted"


def test_samples_that_are_not_finite_decide_nothing() -> None:
    def broken(numbers: Sequence[int], context: Context) -> np.ndarray:
        return np.full((len(numbers), 1), np.nan)

    assert run_claim(replace(TOY, experiment=broken), Context())["verdict"] == "undecided"
    control = NegativeControl("a simulation that blows up", experiment=broken)
    record = run_claim(replace(TOY, control=control), Context())
    assert record["verdict"] == "undecided", "a control that was not measured was not refuted"


def test_the_prediction_comes_before_the_first_run() -> None:
    order = []

    def predict() -> Prediction:
        order.append("predict")
        return one()()

    def experiment(numbers: Sequence[int], context: Context) -> np.ndarray:
        order.append("simulate")
        return normal(1.0)(numbers, context)

    run_claim(replace(TOY, predict=predict, experiment=experiment), Context())
    assert order[0] == "predict"
    assert "simulate" in order


def test_quick_and_full_runs_look_as_often_as_they_say() -> None:
    claim = replace(TOY, first=16, cap=16, quick=(4, 4))
    assert run_claim(claim, Context())["runs"] == 16
    assert run_claim(claim, Context(quick=True))["runs"] == 4


def test_the_error_of_a_claim_follows_from_the_registry_and_nothing_else() -> None:
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
            record = run_claim(claim, Context(quick=quick))
            assert asked[0] == FAMILY_ERROR / size / 2  # two looks
            assert record["confidence"] == 1 - FAMILY_ERROR / size


def test_an_error_can_be_asked_for() -> None:
    loose, strict = (run_claim(replace(TOY, cap=8), Context(), error) for error in (0.2, 1e-5))
    assert (loose["confidence"], strict["confidence"]) == (0.8, 1 - 1e-5)
    widths = [np.ptp(record["interval"]) for record in (loose, strict)]
    assert widths[0] < widths[1]


@pytest.mark.parametrize("quick", [False, True])
def test_quick_runs_widen_margins_of_claim_and_control_and_say_so(quick: bool) -> None:
    margin = 0.1
    narrow = replace(
        TOY,
        predict=partial(Prediction.within, 1.0, margin),
        control=NegativeControl("three", predict=partial(Prediction.within, 3.0, margin)),
    )
    for off, expected in ((1.5, "supported" if quick else "refuted"), (2.5, "refuted")):
        claim = replace(narrow, experiment=normal(1 + off * margin, 1e-6))
        record = run_claim(claim, Context(quick=quick))
        assert record["verdict"] == expected
        assert record["margin"] == ("±20%" if quick else "±10%")
    # A control that only the narrow margin tells from the truth tests nothing in a quick run.
    control = NegativeControl("a bit more", predict=partial(Prediction.within, 1.17, margin))
    exact = replace(narrow, experiment=normal(1.0, 1e-6), control=control)
    record = run_claim(exact, Context(quick=quick))
    assert record["verdict"] == ("undecided" if quick else "supported")
    factor = assemble([record], Context(quick=quick))["quick_margin"]
    assert factor == (QUICK_MARGIN if quick else 1.0)


def test_a_report_adjusts_p_values_within_each_family() -> None:
    claims = [
        TOY,
        replace(TOY, id="guess", kind="conjecture"),
        replace(TOY, id="wrong", predict=one(3.0)),
        replace(TOY, id="open", experiment=normal(1.5, 1.0)),
    ]
    records = [run_claim(claim, Context()) for claim in claims]
    report = assemble(records, Context())
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
def test_what_is_not_finite_is_null_in_the_report_and_named(bad: float) -> None:
    def diverged(numbers: Sequence[int], context: Context) -> np.ndarray:
        return np.full((len(numbers), 1), bad)

    for error, broken in (
        ("claim", replace(TOY, experiment=diverged)),
        ("control", replace(TOY, control=NegativeControl("diverged", experiment=diverged))),
    ):
        with np.errstate(invalid="ignore"):
            record = run_claim(broken, Context())
        part = record if error == "claim" else record["negative_control"]
        assert part["interval"] == [[None, None]]
        assert record["verdict"] == "undecided"
        assert ("no finite interval of one" in record["reason"]) is (error == "claim")
        report = json.loads(json.dumps(assemble([record], Context()), allow_nan=False))
        assert "not finite" in to_markdown(report) or error == "control"


def test_an_undecided_claim_says_why() -> None:
    record = run_claim(replace(TOY, experiment=normal(1.5, 1.0)), Context())
    assert record["verdict"] == "undecided"
    assert "crosses the end of its margin" in record["reason"]


def test_seeds_of_different_bases_never_meet() -> None:
    numbers = range(64_000)
    seeds = [Context(seed=seed).seeds(numbers) for seed in (0, 1)]
    assert not set(seeds[0]) & set(seeds[1])
    assert len(set(seeds[0])) == len(numbers)


def test_a_stored_record_is_not_measured_again(tmp_path: Path) -> None:
    context = Context(store=RunStore(tmp_path / "store", {"seed": 0}))
    record = claim_record(TOY, context)

    def refuse(numbers: Sequence[int], context: Context) -> np.ndarray:
        raise AssertionError("measured again")

    assert claim_record(replace(TOY, experiment=refuse), context) == json.loads(json.dumps(record))


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
def test_holds_asks_every_theorem(report: dict[str, object], expected: bool) -> None:
    assert holds(report) is expected


def test_environment_names_what_the_results_depend_on() -> None:
    described = environment(Context(seed=3, quick=True, device="cpu"))
    assert (described["seed"], described["quick"], described["device"]) == (3, True, "cpu")
    for name in (*LIBRARIES, "torch", "python", "fedlora_sim"):
        assert described[f"{name}_version"]
    json.dumps(described)
