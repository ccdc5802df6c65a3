"""Forecasts by drift laws: right where a drift law is true, and blind to later rounds."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from real_cases import linear_run, scenario_of

from analysis import forecasting
from analysis.studies.amplitude_laws import BASELINES, LAWS, OTHER_LAWS, Past, continued
from analysis.studies.forecast import (
    FIRST_ORIGIN,
    LEAST_CALIBRATION,
    calibrate,
    combined_errors,
    conformity_scores,
    forecast,
    forecast_by_law,
    law_weights,
    log_energy,
    past_of,
    rolling_errors,
)
from fedlora_sim.errors import InputError
from fedlora_sim.tolerances import relative

ITERATED = relative("iteration")
FIRST, LATER = 10, 8
START = np.full(6, 0.3)
DRIFT = {"gain_mean": 1.0, "gain_std": 0.0, "drift_mean": 0.04, "drift_std": 0.02}
CERTAIN = {**DRIFT, "drift_std": 0.0}
EVERY_LAW = {**LAWS, **OTHER_LAWS}


def drift_run(rule: str = "fedavg", *, law=DRIFT, **options) -> xr.Dataset:
    scenario = scenario_of("2x4,6x4", rounds=FIRST + LATER, cohort_size=options.pop("cohort", None))
    return linear_run(rule, scenario, law=law, start=START, layers=3, **options)


def measured(run: xr.Dataset) -> np.ndarray:
    """Return log10 of the later energies, (seed, horizon, layer, partition)."""
    pasts = [past_of(run.sel(seed=[seed]), FIRST + LATER) for seed in run.seed.values]
    return np.stack([log_energy(past.amplitude[FIRST + 1 :]) for past in pasts])


def predicted(told: xr.Dataset, statistic: str = "median") -> np.ndarray:
    energy = told.energy.sel(statistic=statistic)
    return np.log10(energy.transpose("seed", "horizon", "layer", "partition").values)


def a_past(rounds: int = FIRST, *, in_base: bool = False, layers: int = 2, seed: int = 0) -> Past:
    """Rounds of the drift law itself, one drift and coverage per partition."""
    rng = np.random.default_rng(seed)
    mu = np.broadcast_to([1.0, 0.6], (rounds, layers, 2)) * rng.uniform(0.8, 1.0, (rounds, 1, 1))
    drift = np.array([0.03, 0.02])
    x = [np.full((layers, 2), 0.1)]
    for m in mu:
        x.append(x[-1] + m * drift if in_base else m * (x[-1] + drift))
    return Past(np.stack(x), np.asarray(mu), in_base)


@pytest.mark.parametrize("in_base", [False, True])
@pytest.mark.parametrize("law", [name for name in LAWS if "decay" not in name] + ["moments"])
def test_laws_continue_a_constant_drift_exactly(law: str, in_base: bool) -> None:
    whole = a_past(FIRST + LATER, in_base=in_base)
    past = whole.until(FIRST)
    drift = EVERY_LAW[law](past)
    path = continued(drift, past.amplitude[-1], whole.multiplier[None, FIRST:], past.round)
    np.testing.assert_allclose(path[0], whole.amplitude[FIRST + 1 :], rtol=ITERATED)


def test_a_decaying_drift_falls_by_its_factor() -> None:
    past = a_past()
    falls = LAWS["decaying drift"](past)
    now, then = (falls(t, past.amplitude[-1], past.multiplier[-1]) for t in (0, 3))
    np.testing.assert_allclose(then, now * 0.94**3)


def test_the_flow_continues_a_saturating_gain_exactly() -> None:
    x = [np.full((1, 1), 0.1)]
    for _ in range(FIRST + LATER):
        x.append(0.9 / (0.5 / x[-1] + 0.4))
    whole = Past(np.stack(x), np.full((FIRST + LATER, 1, 1), 0.9))
    past = whole.until(FIRST)
    later = whole.multiplier[None, FIRST:]
    path = continued(OTHER_LAWS["flow"](past), past.amplitude[-1], later, past.round)
    np.testing.assert_allclose(path[0], whole.amplitude[FIRST + 1 :], rtol=1e-6)


def test_the_ledger_continues_a_recursion_of_energies_exactly() -> None:
    x = [np.full((1, 1), 0.5)]
    for _ in range(FIRST + LATER):
        x.append(np.sqrt(0.7 * (0.8 * x[-1]) ** 2 + 0.01))
    whole = Past(np.stack(x), np.full((FIRST + LATER, 1, 1), 0.8))
    past = whole.until(FIRST)
    later = whole.multiplier[None, FIRST:]
    path = continued(OTHER_LAWS["ledger"](past), past.amplitude[-1], later, past.round)
    np.testing.assert_allclose(path[0], whole.amplitude[FIRST + 1 :], rtol=1e-6)


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
@pytest.mark.parametrize("name", [*EVERY_LAW, *BASELINES])
def test_every_candidate_continues_a_few_rounds(name: str, rounds: int) -> None:
    past = a_past(rounds)
    if name in BASELINES:
        path = BASELINES[name](past, LATER)[None]
    else:
        later = np.ones((1, LATER, *past.amplitude.shape[1:]))
        path = continued(EVERY_LAW[name](past), past.amplitude[-1], later, past.round)
    assert path.shape == (1, LATER, 2, 2)
    assert (np.isfinite(path) & (path > 0)).all()


def test_baselines_continue_what_they_assume() -> None:
    t = np.arange(FIRST + LATER + 1)[:, None, None]
    no_multiplier = np.ones((FIRST + LATER, 1, 1))
    for name, x in {
        "persistence": 0.3 + 0.0 * t,
        "local trend": 0.1 + 0.02 * t,
        "power of the round": 0.1 * np.maximum(t, 1) ** 0.7,
    }.items():
        past = Past(x, no_multiplier).until(FIRST)
        np.testing.assert_allclose(BASELINES[name](past, LATER), x[FIRST + 1 :], rtol=ITERATED)


def test_a_round_without_a_contributor_keeps_or_leaks() -> None:
    past = a_past()
    multiplier = past.multiplier.copy()
    multiplier[5, :, 1] = 0.0
    amplitude = past.amplitude.copy()
    amplitude[6, :, 1] = 0.25 * amplitude[5, :, 1]
    for carried, kept in ((True, 1.0), (False, 0.25)):
        own = Past(amplitude, multiplier, carried=carried)
        empty = np.zeros((1, 1, 2, 2))
        path = continued(LAWS["constant drift"](own), amplitude[-1], empty, own.round)
        np.testing.assert_allclose(path[0, 0], kept * amplitude[-1])


def test_weights_prefer_the_law_that_was_right() -> None:
    rng = np.random.default_rng(1)
    errors = np.full((2, 6, 6, 3, 2), np.nan)
    seen = np.add.outer(np.arange(6), np.arange(1, 7)) <= 6
    errors[0, seen] = 0.01 * rng.standard_normal((seen.sum(), 3, 2))
    errors[1, seen] = 0.3 * rng.standard_normal((seen.sum(), 3, 2))
    weights = law_weights(errors)
    np.testing.assert_allclose(weights.sum(0), 1.0)
    assert (weights[0] > 0.9).all()
    np.testing.assert_array_equal(law_weights(errors, known=0), 0.5)  # nothing is known yet


def test_errors_of_the_combination_use_weights_of_their_time() -> None:
    errors = rolling_errors(a_past(seed=3), LAWS)
    early = combined_errors(errors)
    later = errors.copy()
    later[:, -1] += 1.0  # the last origin is not known at the others
    changed = combined_errors(later)
    np.testing.assert_array_equal(changed[:-1], early[:-1])
    assert conformity_scores(early).shape[1] == 2


@pytest.mark.parametrize("rule", ["fedavg", "raflora", "flora"])
def test_a_forecast_without_noise_is_exact(rule: str) -> None:
    run = drift_run(rule, law=CERTAIN)
    told = forecast(calibrate(run, FIRST), run, LATER, samples=50)
    # directions of a partition that start alike stay alike
    np.testing.assert_allclose(predicted(told), measured(run), atol=0.05)


def test_a_forecast_does_not_see_the_rounds_that_it_predicts() -> None:
    run = drift_run(seeds=2, cohort=5)
    later = run["round"] > FIRST
    other = run.assign(
        layer_energy=run.layer_energy.where(~later, 7.0),
        update_energy=run.update_energy.where(~later, 3.0),
        client_weight=run.client_weight.where(~later, 0.1),
        cohort=run.cohort.where(~later, 0),
        dropped=run.dropped.where(~later, True),
        client_rank=run.client_rank.where(~later, 1),
    )
    for rule in ("fedavg", "hetlora"):
        told = []
        for one in (run, other, run.sel(round=slice(0, FIRST))):
            given = one.assign_attrs(rule=rule)
            told.append(forecast(calibrate(given, FIRST), given, LATER, samples=20))
        xr.testing.assert_identical(told[0], told[1])
        xr.testing.assert_identical(told[0], told[2])


@pytest.mark.slow
def test_drift_laws_beat_the_baselines_where_they_are_true() -> None:
    scores = forecasting.score(drift_run(seeds=5, cohort=5, base=2), LATER)
    errors = abs(scores.error).median(["seed", "layer", "horizon"])
    own = errors.sel(forecast=forecasting.DRIFT)
    assert (own < 0.5 * errors.sel(forecast="persistence")).sel(partition=1)
    # where cohorts dilute, no baseline knows of them
    for baseline in BASELINES:
        assert (own < errors.sel(forecast=baseline)).sel(partition=2)


def test_shuffled_drifts_lose() -> None:
    """A near control: partitions get each other's drift."""
    run = drift_run("raflora", seeds=4, base=1)
    run = run.assign(layer_energy=run.layer_energy * xr.where(run.partition == 2, 4.0, 1.0))
    past = past_of(run.isel(seed=[0]), FIRST)
    shuffled = Past(past.amplitude[..., ::-1], past.multiplier[..., ::-1])
    later = np.ones((1, LATER, 3, 2))
    fact = measured(run.isel(seed=[0]))[0]
    right, wrong = (
        abs(
            log_energy(
                continued(LAWS["constant drift"](source), past.amplitude[-1], later, past.round)[0]
            )
            - fact
        ).mean()
        for source in (past, shuffled)
    )
    assert right < 0.5 * wrong


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "cohort"), [("fedavg", None), ("raflora", None), ("fedavg", 5)])
def test_intervals_hold_about_as_many_measurements_as_they_say(
    rule: str, cohort: int | None
) -> None:
    run = drift_run(rule, seeds=25, cohort=cohort)
    told = forecast(calibrate(run, FIRST), run, LATER, samples=200)
    low, high = (predicted(told, name) for name in ("low", "high"))
    fact = measured(run)
    inside = (fact >= low) & (fact <= high)
    share = inside.mean((1, 2))  # seed, partition
    error = 3 * share.std(0, ddof=1) / len(share) ** 0.5
    assert (share.mean(0) > 0.8 - error).all()
    assert (share.mean(0) < 1.0).all()


def test_another_rule_is_forecast_from_this_calibration() -> None:
    fedavg, raflora = (drift_run(rule, law=CERTAIN) for rule in ("fedavg", "raflora"))
    told = forecast(calibrate(fedavg, FIRST), raflora, LATER, samples=20)
    np.testing.assert_allclose(predicted(told), measured(raflora), atol=0.05)
    single = forecast_by_law(calibrate(fedavg, FIRST), raflora, LATER, LAWS["constant drift"])
    np.testing.assert_allclose(single, measured(raflora), atol=0.05)


def test_refusals_name_the_argument() -> None:
    run = drift_run()
    with pytest.raises(InputError, match=rf"rounds.*{LEAST_CALIBRATION - 1}"):
        calibrate(run, LEAST_CALIBRATION - 1)
    with pytest.raises(InputError, match="dataset"):
        calibrate(run.drop_vars("update_energy"), FIRST)
    with pytest.raises(InputError, match=r"allocation.*random"):
        calibrate(run.assign_attrs(allocation="random"), FIRST)
    calibration = calibrate(run, FIRST)
    with pytest.raises(InputError, match="dataset"):
        forecast(calibration, run.isel(layer=[0]), LATER)
    with pytest.raises(InputError, match=r"dataset.*8 rounds"):
        forecast(calibration, run.sel(round=slice(0, 8)), LATER)
    assert calibration.weights.sizes["law"] == len(LAWS)
    assert calibration.scores.sizes["score"] > FIRST - FIRST_ORIGIN


@pytest.mark.slow
def test_summary_and_bars_of_a_record() -> None:
    run = drift_run(seeds=3, cohort=5)
    scores = {rule: forecasting.score(run, LATER) for rule in ("a", "b")}
    rows = [{"rule": rule, **forecasting.summary(of)} for rule, of in scores.items()]
    size = abs(scores["a"].error.sel(forecast="persistence"))
    assert rows[0]["errors"]["persistence"]["error"] == float(size.median())
    ratio = rows[0]["ratios"]["persistence"]
    assert ratio["low"] < ratio["value"] < ratio["high"]
    partitions = forecasting.coverage_by_partition(scores)
    assert [row["partition"] for row in partitions] == [1, 2]
    found = forecasting.bars(rows, partitions, [])
    assert not found[0]["met"]  # two rules are fewer than seven
    assert [bar["met"] for bar in found[3:]] == [0.85 <= p["value"] <= 0.95 for p in partitions]
    assert forecasting.over_seeds(np.array([0.5]))["low"] is None
