"""Running a claim, on claims small enough to see through."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from analysis.claim import Claim, Context, Experiment, NegativeControl, root_of_mean
from analysis.inference.verdict import ERROR, Prediction
from analysis.verify import LIBRARIES, claim_record, environment, holds, run_claim
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
    assert record["confidence"] == 1 - ERROR


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


def test_root_of_mean_carries_the_interval_over() -> None:
    samples = 0.5**3 * np.random.default_rng(0).uniform(0.9, 1.1, (50, 2))
    m = root_of_mean(3)(samples, 0.01)
    assert (m.low < m.value).all()
    assert (m.value < m.high).all()
    np.testing.assert_allclose(m.value**3, samples.mean(0), rtol=1e-12)


def test_root_of_mean_stays_a_rate_where_the_interval_passes_zero() -> None:
    m = root_of_mean(4)(np.array([[0.0], [0.0], [1.0]]), 0.01)
    assert m.low == 0.0
    assert np.isfinite(m.high)


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
