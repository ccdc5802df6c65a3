"""The paper's claims on artificial outcomes in which each is true, false or undecidable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from study_cases import small_study

from analysis.stats.intervals import mean_interval
from analysis.stats.verdicts import FAMILY_ERROR
from analysis.studies.findings import PAPER_CLAIMS, claims_left_out, judge_claims, replicate_means
from analysis.studies.study import HIGHEST, MIXED
from fedlora_sim.tolerances import relative

IDS = [claim.id for claim in PAPER_CLAIMS]
TAILS = {"fedavg": 1e-4, "raflora": 0.4, HIGHEST: 0.4}
ACCURACY = {"fedavg": 0.6, "raflora": 0.8}
FEW = {"fedavg": 0.4, "raflora": 0.75}
UNTRAINED = 0.1
NARROW, WIDE = 1e-3, 0.5


@pytest.fixture(scope="module")
def study():
    return small_study(seeds=6)


def table_of(study, tails=None, accuracy=None, few=None, spread=NARROW) -> pd.DataFrame:
    """Return outcomes with this spread around the value of each rule."""
    tail_of, mixed = TAILS | (tails or {}), ACCURACY | (accuracy or {})
    of_few, rng = FEW | (few or {}), np.random.default_rng(0)
    rows = []
    for run in study.runs():
        key = HIGHEST if run.configuration == HIGHEST else run.rule
        level = (of_few if run.configuration == "few" else mixed)[run.rule]
        rows.append(
            {
                "heterogeneity": run.heterogeneity,
                "configuration": run.configuration,
                "rule": run.rule,
                "seed": run.seed,
                "untrained": UNTRAINED,
                "accuracy": level + spread * rng.standard_normal(),
                "rho": 1 - tail_of[key] * 10 ** (10 * spread * rng.standard_normal()),
            }
        )
    return pd.DataFrame(rows)


def verdicts(study, **changes) -> dict[str, str]:
    return {c["id"]: c["verdict"] for c in judge_claims(study, table_of(study, **changes))}


def test_true_claims_are_supported(study):
    claims = judge_claims(study, table_of(study))
    assert [claim["id"] for claim in claims] == IDS
    assert {claim["verdict"] for claim in claims} == {"supported"}
    assert {claim["negative_control"]["verdict"] for claim in claims} == {"refuted"}
    assert claims_left_out(study, table_of(study)) == []
    assert [claim["runs"] for claim in claims] == [12, 12, 12, 12]
    assert [claim["replicates"] for claim in claims] == [6, 6, 6, 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("collapse", {"tails": {"fedavg": 0.3}}),
        ("prevention", {"tails": {"raflora": 0.01}}),
        ("accuracy", {"accuracy": {"raflora": 0.5}}),
        ("robustness", {"few": {"raflora": 0.3}}),
    ],
)
def test_false_claims_are_refuted(study, name, changes):
    assert verdicts(study, **changes)[name] == "refuted"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("collapse", {"tails": {"fedavg": 0.04}}),
        ("prevention", {"tails": {"raflora": 0.2}}),
        ("accuracy", {"accuracy": {"raflora": 0.6}}),
        ("robustness", {"few": {"raflora": 0.6}}),
    ],
)
def test_undecidable_claims_are_undecided(study, name, changes):
    assert verdicts(study, **changes, spread=0.05)[name] == "undecided"


def test_variation_is_not_a_dependence_on_the_ranks(study):
    """FedAvg's runs vary most, and neither rule depends on the ranks; a range would favor one."""
    even = table_of(study, few=ACCURACY)
    rng = np.random.default_rng(1)
    for rule, scatter in (("fedavg", 0.1), ("raflora", 0.01)):
        own = even["rule"] == rule
        even.loc[own, "accuracy"] += scatter * rng.standard_normal(int(own.sum()))
    claims = {c["id"]: c for c in judge_claims(study, even)}
    assert claims["robustness"]["verdict"] == "undecided"
    assert claims["robustness"]["negative_control"]["verdict"] == "refuted"


def test_wide_scatter_decides_nothing(study):
    assert set(verdicts(study, spread=WIDE).values()) == {"undecided"}


def test_a_check_that_refutes_nothing_supports_nothing(study):
    """If raFLoRA collapses too, FedAvg's collapse does not confirm the check."""
    claims = {c["id"]: c for c in judge_claims(study, table_of(study, tails={"raflora": 1e-4}))}
    collapse, prevention = claims["collapse"], claims["prevention"]
    assert collapse["interval"][1] < collapse["prediction"]
    assert collapse["negative_control"]["verdict"] == "supported"
    assert collapse["verdict"] == "undecided"
    assert prevention["verdict"] == "refuted"


def test_measured_values_are_the_means_of_pairs(study):
    table = table_of(study)
    claims = {c["id"]: c for c in judge_claims(study, table)}
    mixed = table[table["configuration"] == MIXED].set_index(["rule", "seed"])["accuracy"]
    gain = (mixed["raflora"] - mixed["fedavg"]).mean()
    exact = relative("reduction", "float64")
    np.testing.assert_allclose(claims["accuracy"]["measurement"], gain, rtol=exact)
    assert claims["accuracy"]["prediction"] == 0


def test_every_claim_has_its_part_of_the_error_whatever_is_left_out(study):
    part = replace(study, rank_configurations={})
    claims = judge_claims(part, table_of(part))
    assert [claim["id"] for claim in claims] == IDS[:-1]
    for claim in claims:
        assert claim["confidence"] == 1 - FAMILY_ERROR / len(IDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "left_out", "reason"),
    [
        ({"heterogeneity": ["harsh"], "seeds": 1}, IDS, "no spread"),
        ({"rules": ["fedavg"]}, IDS, "not in this study"),
        ({"rules": ["raflora"]}, IDS, "not in this study"),
    ],
)
def test_claims_with_missing_runs_are_left_out_and_listed(study, part, left_out, reason):
    smaller = study.part(**part)
    found = claims_left_out(smaller, table_of(smaller))
    assert [claim["id"] for claim in found] == left_out
    assert all(reason in claim["reason"] for claim in found)
    judged = [claim["id"] for claim in judge_claims(smaller, table_of(smaller))]
    assert judged == [name for name in IDS if name not in left_out]


def test_a_study_of_one_rank_configuration_says_nothing_of_robustness():
    study = small_study(rank_configurations={})
    (claim,) = claims_left_out(study, table_of(study))
    assert claim["id"] == "robustness"


ERROR, STUDIES = 0.1, 2_000
SLACK = 4 * (ERROR * (1 - ERROR) / STUDIES) ** 0.5  # four standard errors of a simulated rate


def missed(study, shared: float, spreads: dict[str, float]) -> tuple[float, float]:
    """Return how often intervals over replicates and over pooled runs miss a mean of 0.

    Args:
        study: study with the runs' seeds.
        shared: standard deviation of the part that all splits of a replicate share.
        spreads: standard deviation of a run's own part, by split.
    """
    rng = np.random.default_rng(14)
    keys = [(name, seed) for name, seeds in study.seeds.items() for seed in seeds]
    index = pd.MultiIndex.from_tuples(keys)
    replicate = [study.replicate(*key) for key in keys]
    spread = np.array([spreads[name] for name, _ in keys])
    outside = np.zeros(2)
    for _ in range(STUDIES):
        common = shared * rng.standard_normal(1 + max(replicate))
        samples = pd.Series(common[replicate] + spread * rng.standard_normal(len(keys)), index)
        for i, values in enumerate((replicate_means(study, samples), samples.to_numpy())):
            m = mean_interval(values[:, None], ERROR)
            outside[i] += not m.low <= 0 <= m.high
    return tuple(outside / STUDIES)


@pytest.mark.slow
def test_intervals_over_replicates_cover_where_splits_share_a_part_of_their_seed():
    study = small_study(seeds=3)
    clustered, pooled = missed(study, 1.0, {"mild": 0.5, "harsh": 0.5})
    assert abs(clustered - ERROR) < SLACK
    assert pooled > ERROR + SLACK


@pytest.mark.slow
def test_intervals_over_replicates_cover_where_one_split_spreads_most():
    clustered, _ = missed(small_study(seeds=3), 0.0, {"mild": 0.5, "harsh": 20.0})
    assert abs(clustered - ERROR) < SLACK


def test_a_replicate_without_one_of_its_runs_is_left_out(study):
    table = table_of(study)
    lost = (table["heterogeneity"] == "harsh") & (table["seed"] == study.seeds["harsh"][2])
    claims = judge_claims(study, table[~lost])
    assert [claim["replicates"] for claim in claims] == [5, 5, 5, 5]
    whole = table[~table["seed"].isin([study.seeds[name][2] for name in study.seeds])]
    wanted = {c["id"]: c["interval"] for c in judge_claims(study, whole)}
    assert {c["id"]: c["interval"] for c in claims} == wanted


def test_negative_controls_are_judged_on_the_same_replicates(study):
    """The part shared by all splits of a seed widens the intervals of claim and control."""
    table, rng = table_of(study), np.random.default_rng(2)
    shared = dict(enumerate(rng.standard_normal(6)))
    keys = zip(table["heterogeneity"], table["seed"], strict=True)
    common = np.array([shared[study.replicate(*key)] for key in keys])
    table["untrained"] = UNTRAINED + common
    (control,) = [
        c["negative_control"] for c in judge_claims(study, table) if c["id"] == "accuracy"
    ]
    assert control["interval"][1] - control["interval"][0] > 3 * common.std() / np.sqrt(6)
    assert control["verdict"] == "undecided"
