"""The recorded study: its verdicts follow from the recorded numbers.

The study was recorded before studies stored the end of every run. The record has all runs of the
mixed ranks, and means and intervals per split of the other rank configurations. If the replicates
of a claim cannot be formed from these, the record states the widest interval that is possible.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from analysis.stats import Measurement, judge, mean_interval
from analysis.studies.findings import PAPER_CLAIMS, SHARE, TABLE_ERROR, with_interval
from fedlora_sim.tolerances import relative

RECORD = Path(__file__).parents[2] / "results" / "recorded" / "agnews"
CLOSE = relative("iteration", "float64")
ANGLES = np.linspace(0, 2 * np.pi, 3601)[:, None] + 2 * np.pi * np.arange(3) / 3
MIXED, HIGHEST = "mixed", "equal_highest"
Ends = tuple[float, float]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return dict(json.loads((RECORD / "study.json").read_text()))


@pytest.fixture(scope="module")
def curves() -> xr.Dataset:
    with xr.open_dataset(RECORD / "curves.nc", engine="h5netcdf") as dataset:
        return dataset.load()


def last(curves: xr.Dataset, name: str, rule: str) -> np.ndarray:
    """Return a quantity after the last round, (split, replicate)."""
    return curves[name].sel(rule=rule).isel(round=-1).values


def splits_mean(report: dict[str, Any], configuration: str, rule: str, name: str) -> np.ndarray:
    """Return means of every split, (split,)."""
    rows = {(r["heterogeneity"], r["configuration"], r["rule"]): r for r in report["rows"]}
    splits = report["study"]["heterogeneity"]
    return np.array([rows[split, configuration, rule][name] for split in splits])


def splits_spread(report: dict[str, Any], configuration: str, rule: str, name: str) -> np.ndarray:
    """Return standard deviations of every split's three runs, from their intervals, (split,)."""
    ends = np.array(splits_mean(report, configuration, rule, f"{name}_interval").tolist())
    value = splits_mean(report, configuration, rule, name)
    return np.abs(ends - value[:, None]).max(1) / (stats.t.isf(TABLE_ERROR / 2, 2) / np.sqrt(3))


def half(spread: float, replicates: int = 3) -> float:
    """Return half the length of the interval of replicates of this standard deviation."""
    error = 0.05 / len(PAPER_CLAIMS)
    return float(stats.t.isf(error / 2, replicates - 1) * spread / np.sqrt(replicates))


def exact(samples: np.ndarray) -> Ends:
    """Return the interval of samples (split, replicate)."""
    m = mean_interval(samples.mean(0)[:, None], 0.05 / len(PAPER_CLAIMS))
    return float(m.low[0]), float(m.high[0])


def less_highest(tail: np.ndarray, report: dict[str, Any]) -> Ends:
    """Return widest interval of log tails (split, replicate) over those of equal highest ranks.

    Three numbers of known mean and spread lie on a circle; the deviations of the replicates are at
    most the sum over splits.
    """
    m, s = (
        of(report, HIGHEST, "fedavg", "rho")[:, None, None] for of in (splits_mean, splits_spread)
    )
    highest = np.log10(1 - m - s * np.sqrt(4 / 3) * np.cos(ANGLES))
    spread = tail.mean(0).std(ddof=1) + highest.std(-1, ddof=1).max(1).mean()
    return -half(spread), half(spread)


def within_splits(pooled: Ends, means: np.ndarray) -> Ends:
    """Return widest interval of three replicates whose twelve runs have this pooled interval.

    The part of their sum of squares between the splits' means is known; the rest W is the sum
    within splits. The mean deviation of a replicate over four splits has a variance of at most
    W / 8, which is attained if all splits deviate alike.
    """
    error, runs, splits = 0.05 / len(PAPER_CLAIMS), 12, len(means)
    variance = ((pooled[1] - pooled[0]) / 2 / stats.t.isf(error / 2, runs - 1)) ** 2 * runs
    inside = (runs - 1) * variance - runs / splits * ((means - means.mean()) ** 2).sum()
    spread = np.sqrt(inside / (2 * splits))
    return means.mean() - half(spread), means.mean() + half(spread)


# Intervals of the twelve runs as a sample of one law, with their recorded values.
POOLED_ROBUSTNESS = (-0.016103446902955718, 0.07943678023628906)
POOLED_CONTROL = (-0.6329643888309402, -0.4553689445023932)


def intervals(report: dict[str, Any], curves: xr.Dataset) -> dict[str, tuple[Ends, Ends]]:
    """Return the intervals of every claim and its control from the recorded numbers."""
    accuracy = {rule: last(curves, "accuracy", rule) for rule in ("fedavg", "raflora")}
    tail = {rule: np.log10(1 - last(curves, "rho", rule)) for rule in ("fedavg", "raflora")}
    untrained = curves.accuracy.sel(rule="fedavg").isel(round=0).values
    fall = {
        rule: splits_mean(report, "many high", rule, "accuracy")
        - splits_mean(report, "few high", rule, "accuracy")
        for rule in ("fedavg", "raflora")
    }
    lost = splits_mean(report, "many high", "raflora", "accuracy") - untrained.mean(1)
    measured = {c["id"]: c["measurement"] for c in report["claims"]}
    over = {
        rule: tuple(measured[name] + end for end in less_highest(tail[rule], report))
        for name, rule in (("collapse", "fedavg"), ("prevention", "raflora"))
    }
    return {
        "collapse": (over["fedavg"], over["raflora"]),
        "prevention": (over["raflora"], over["fedavg"]),
        "accuracy": (
            exact(accuracy["raflora"] - accuracy["fedavg"]),
            exact(untrained - accuracy["fedavg"]),
        ),
        "robustness": (
            within_splits(POOLED_ROBUSTNESS, fall["fedavg"] - fall["raflora"]),
            within_splits(POOLED_CONTROL, fall["fedavg"] - lost),
        ),
    }


def test_intervals_are_those_that_the_recorded_numbers_give(
    report: dict[str, Any], curves: xr.Dataset
) -> None:
    wanted = intervals(report, curves)
    for claim in report["claims"]:
        own, control = wanted[claim["id"]]
        np.testing.assert_allclose(claim["interval"], own, rtol=CLOSE)
        np.testing.assert_allclose(claim["negative_control"]["interval"], control, rtol=CLOSE)
        assert (claim["runs"], claim["replicates"]) == (12, 3)


def test_the_gain_in_accuracy_is_that_of_three_replicates(report: dict[str, Any]) -> None:
    (claim,) = (c for c in report["claims"] if c["id"] == "accuracy")
    np.testing.assert_allclose(claim["measurement"], 0.0175)
    np.testing.assert_allclose(claim["interval"], [-0.0933, 0.1283], atol=5e-5)


def test_verdicts_follow_from_the_intervals(report: dict[str, Any]) -> None:
    def verdict(found: dict[str, Any], claim: Any) -> str:
        ends = [np.array([x]) for x in (found["measurement"], *found["interval"])]
        return str(judge(Measurement(*ends, samples=3), claim.prediction))

    for record, claim in zip(report["claims"], PAPER_CLAIMS, strict=True):
        assert record["id"] == claim.id
        assert verdict(record["negative_control"], claim) == record["negative_control"]["verdict"]
        assert verdict(record, claim) == record["verdict"]
        assert record["negative_control"]["verdict"] == "refuted"


def test_preservation_has_the_intervals_of_the_replicates(
    report: dict[str, Any], curves: xr.Dataset
) -> None:
    for row in report["premise"]:
        own = curves.preservation.sel(rule=row["rule"])
        if row["heterogeneity"]:
            own = own.sel(heterogeneity=[row["heterogeneity"]])
        for block in row["preservation"]:
            means = own.sel(round=slice(block["from"], block["to"])).mean("round")
            found = with_interval("mean", means.mean("heterogeneity").values, SHARE)
            np.testing.assert_allclose(block["mean"], found["mean"], rtol=CLOSE)
            np.testing.assert_allclose(block["mean_interval"], found["mean_interval"], rtol=CLOSE)


def test_every_split_has_its_own_seeds(report: dict[str, Any]) -> None:
    seeds = [seed for own in report["study"]["seeds"].values() for seed in own]
    assert len(set(seeds)) == len(seeds) == 12
