"""The drift law on runs of clients who follow it exactly, and on runs of those who do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from analysis.closed_form import adam_drift, collapse_threshold
from analysis.ledger import TERMS
from analysis.studies.drift_law import domains as module
from analysis.studies.drift_law.__main__ import main
from analysis.studies.drift_law.domains import (
    diluted_accuracy,
    domain_names,
    load_domain,
    make_runs,
)
from analysis.studies.drift_law.implied import (
    curvature,
    drift_law,
    drift_of,
    early_drift,
    floor_ratio,
    pooled,
    steadiness,
)
from analysis.studies.drift_law.law_claims import (
    BASE,
    FAMILIES,
    FLOW_CLAIMS,
    LAW_CLAIMS,
    RATES,
    SCHEDULED,
    _change,
    _scheduled_power,
    judge_law,
    laws_of,
)
from analysis.studies.drift_law.law_report import law_report, law_rows, to_markdown
from fedlora_sim import Scenario, simulate
from fedlora_sim.errors import InputError
from fedlora_sim.storage import is_signed, write_json
from paper_figs.documents import law_blocks, record_laws

sys.path.append(str(Path(__file__).parents[1] / "finetune"))
from run_cases import TINY, make_tiny_task

DRIFT = {"drift_mean": 0.02}
RANKS = "2x4,3x4,5x4"
WIDTHS = np.array([2, 1, 2])
ROUNDS = 30


def run_of(rule, *, ranks=RANKS, law=DRIFT, seed=0):
    """A run in which all directions start alike, so that X gains `c sqrt(width)` a round."""
    fields = {"rounds": ROUNDS, "cohort_size": 6, "initial_amplitude": 0.01, "spectrum_decay": 1.0}
    run = simulate(Scenario(ranks, **{**fields, **law}), rule=rule, seed=seed, ledger=True)
    accuracy = 0.5 + 0 * run.energy.isel(direction=0, drop=True)
    return run.assign(accuracy=accuracy).assign_attrs(cpu_seconds=0.0)


@pytest.mark.parametrize("rule", ["fedavg", "raflora", "flora", "zero_pad"])
def test_the_drift_of_clients_who_add_a_constant_is_that_constant(rule):
    law = drift_law(run_of(rule))
    known = law.drift
    expected = DRIFT["drift_mean"] * np.sqrt(WIDTHS)
    assert np.isnan(known.sel(round=[0, 1])).all()
    for h, c in enumerate(expected):
        values = known.isel(partition=h).values
        assert np.isfinite(values).sum() > ROUNDS / 2
        np.testing.assert_allclose(values[np.isfinite(values)], c, rtol=1e-9)


def test_the_floor_is_that_of_the_actual_cohorts():
    law = drift_law(run_of("fedavg", seed=3))
    np.testing.assert_allclose(floor_ratio(law)[1:], 1.0, atol=0.02)
    np.testing.assert_allclose(steadiness(law), 1.0, rtol=1e-9)
    assert (floor_ratio(law, np.square)[1:] > 1.5).all()
    assert np.isnan(floor_ratio(law)[0])  # every client carries the shared partition


def test_a_partition_that_no_late_client_carries_has_no_floor():
    law = drift_law(run_of("fedavg", seed=3))
    gone = law.assign(multiplier=law.multiplier.where(law["round"] <= ROUNDS // 2, 0.0))
    assert (floor_ratio(gone)[1:] == np.inf).all()


def test_a_seed_without_a_drift_is_left_out_of_the_median(lawful_seeds):
    laws = [{"fedavg": own["fedavg"]} for own in lawful_seeds[:3]]
    whole = law_rows(laws)
    lacking = laws[0]["fedavg"]
    unknown = lacking.assign(drift=lacking.drift.where(lacking["round"] > ROUNDS // 2))
    rows = law_rows([{"fedavg": unknown}, *laws[1:]])
    for row, known in zip(rows, law_rows(laws[1:]), strict=True):
        assert row["drift"][0] == known["drift"][0]
    assert [row["drift"][2] for row in rows] == [row["drift"][2] for row in whole]


def noisy_law(c=1.0, count=2000, clients=3, share=0.2):
    """Independent runs as partitions: few clients of random weight, and noise after the average."""
    rng = np.random.default_rng(20)
    weight = rng.dirichlet(np.ones(clients), (ROUNDS, count))
    mu = (weight * (rng.random(weight.shape) < share)).sum(-1)
    x, noise = np.zeros((ROUNDS + 1, count)), rng.normal(0.0, 0.1 * c, (ROUNDS, count))
    for t in range(ROUNDS):
        x[t + 1] = np.where(mu[t] > 0, mu[t] * (x[t] + c) + noise[t], x[t])
    with np.errstate(divide="ignore", invalid="ignore"):
        drift = np.where(mu > 0, (x[1:] - mu * x[:-1]) / mu, np.nan)
    dims = ("seed", "round", "layer", "partition")
    data = {"multiplier": mu, "drift": drift}
    return xr.Dataset(
        {name: (dims, values[None, :, None]) for name, values in data.items()},
        {"round": np.arange(1, ROUNDS + 1)},
    )


def test_noise_in_rounds_of_small_coverage_does_not_dominate_the_drift():
    law = noisy_law()
    found, mean = drift_of(law), pooled(law.drift)
    assert abs(found.mean() - 1) < 4 * found.std() / np.sqrt(found.size)

    def error(values):
        return np.sqrt(np.mean((values - 1) ** 2))

    assert error(found) < 0.2 < error(mean) / 3


def test_rounds_without_a_carrier_do_not_count_in_the_drift():
    law = drift_law(run_of("fedavg", ranks="2x10,5x2", seed=2))
    assert (law.coverage.isel(partition=1) == 0).any()
    np.testing.assert_allclose(drift_of(law), DRIFT["drift_mean"] * np.sqrt([2, 3]), rtol=1e-9)


def test_curvature_distinguishes_a_line_from_a_square():
    law = drift_law(run_of("raflora"))
    np.testing.assert_allclose(curvature(law)[0], 0.0, atol=1e-9)
    line = law.assign(amplitude=0 * law.amplitude + law["round"] - 1.0)
    np.testing.assert_allclose(curvature(line, 2.0), 1 / 3, rtol=1e-9)


def test_the_power_of_a_drift_that_is_proportional_to_the_learning_rate_is_one():
    law = {"local_loss": "drift", **DRIFT, "cohort_size": None}
    runs = {BASE: law, SCHEDULED: {**law, "learning_rate_schedule": "linear"}}
    (laws,) = laws_of({role: [run_of("fedavg", law=own)] for role, own in runs.items()})
    np.testing.assert_allclose(laws[SCHEDULED].rate[1:], 1 - np.arange(ROUNDS) / ROUNDS)
    np.testing.assert_allclose(_scheduled_power(laws), 1.0, rtol=1e-9)


def test_runs_without_an_account_are_refused():
    with pytest.raises(InputError, match="ledger=True"):
        drift_law(run_of("fedavg").drop_vars("idle_amplitude"))


# Claims on clients whose truth is known

NOISE = {"gain_std": 0.02, "drift_std": 0.002}


def seeds_of(law=DRIFT, count=20, **roles):
    """Laws of the roles that need no other optimizer."""
    made = {
        "fedavg": ("fedavg", RANKS),
        "few": ("fedavg", "2x6,3x3,5x3"),
        "many": ("fedavg", "2x3,3x3,5x6"),
        "raflora": ("raflora", RANKS),
        **roles,
    }
    runs = {
        role: [run_of(rule, ranks=ranks, law={**law, **NOISE}, seed=s) for s in range(count)]
        for role, (rule, ranks) in made.items()
    }
    return laws_of(runs)


@pytest.fixture(scope="module")
def lawful_seeds():
    return seeds_of()


@pytest.fixture(scope="module")
def lawful(lawful_seeds):
    return judge_law(lawful_seeds)


@pytest.mark.slow
def test_claims_are_supported_where_clients_follow_the_law(lawful):
    judged, left_out = lawful
    assert {claim["id"]: claim["verdict"] for claim in judged} == {
        "drift-constant": "supported",
        "drift-floor": "supported",
        "raflora-linear": "supported",
    }
    assert "sgd-falls" in {claim["id"] for claim in left_out}


def test_near_controls_are_two_to_five_margins_away_and_refuted(lawful):
    for claim in lawful[0]:
        near = claim["near_control"]
        assert near["verdict"] == claim["negative_control"]["verdict"] == "refuted"
        assert 2 <= min(near["distance"]) <= max(near["distance"]) <= 5, claim["id"]


def test_growth_by_a_gain_is_not_linear():
    law = {**DRIFT, **NOISE, "gain_mean": 1.15}
    runs = [run_of("raflora", law=law, seed=seed) for seed in range(12)]
    judged, _ = judge_law(laws_of({"raflora": runs}))
    verdicts = {claim["id"]: claim["verdict"] for claim in judged}
    assert verdicts["raflora-linear"] == "refuted"


def test_a_drift_that_falls_is_not_constant(lawful_seeds):
    seeds = []
    for laws in lawful_seeds:
        law = laws["fedavg"]
        falls = law.assign(drift=law.drift * (1 - 0.5 * law["round"] / ROUNDS))
        seeds.append({"fedavg": falls, "raflora": laws["raflora"]})
    judged, _ = judge_law(seeds)
    verdicts = {claim["id"]: claim["verdict"] for claim in judged}
    assert verdicts["drift-constant"] == "refuted"


@pytest.mark.slow
def test_few_seeds_are_judged_by_their_mean(lawful_seeds):
    judged, _ = judge_law(lawful_seeds[:6])
    floor = next(claim for claim in judged if claim["id"] == "drift-floor")
    assert "mean over seeds" in floor["statistic"]
    assert np.isfinite(floor["interval"]).all()


def test_a_quadratic_law_is_told_from_a_proportional_one():
    def measured(power):
        laws = seeds_of(count=1)[0]
        half = {**DRIFT, "drift_mean": DRIFT["drift_mean"] / 2**power}
        laws["half_rate"] = seeds_of(half, count=1)[0]["fedavg"]
        return early_drift(laws["fedavg"]) / early_drift(laws["half_rate"])

    np.testing.assert_allclose(np.log2(measured(1)), 1, atol=0.2)
    np.testing.assert_allclose(np.log2(measured(2)), 2, atol=0.2)


def test_the_derived_power_is_that_of_the_paths():
    laws, path, persistence = seeds_of(count=1)[0], 0.05, 0.25
    share = pooled(laws["fedavg"].multiplier)

    def at(length):
        drift = adam_drift(length, persistence, share) * np.sqrt(WIDTHS)
        law = laws["fedavg"]
        return law.assign(drift=xr.zeros_like(law.drift) + xr.DataArray(drift, dims="partition"))

    made = {"fedavg": at(path), "half_rate": at(path / 2)}
    derived = next(claim for claim in LAW_CLAIMS if claim.id == "drift-derived-power")
    np.testing.assert_allclose(derived.quantity(made), 0.0, atol=1e-6)
    assert (np.abs(derived.near[1](made)) > 0.3).all()


SMALL = {"rounds": 6, "cohort_size": None, "initial_amplitude": 1e-3}
FLOW = {**SMALL, "local_loss": "quadratic", "target_decay": 1.0}
DRIFTING = {**SMALL, "drift_mean": 0.002}
FEW_LOW, MORE_LOW = "2x1,3x1,5x10", "2x3,3x3,5x6"


def flow_laws(law, step, slow):
    """The laws of one seed whose clients' steps have this name and length in the slow run."""

    def run(factor, rule="fedavg", ranks=FEW_LOW):
        return run_of(rule, ranks=ranks, law={**law, step: factor * slow})

    made = {
        "slow": run(1),
        "double": run(2),
        "fast": run(4),
        "diluted": run(1, ranks=MORE_LOW),
        "kept": run(1, "raflora", MORE_LOW),
        "adam_diluted": run_of("fedavg", ranks=MORE_LOW, law=DRIFTING),
        "adam_kept": run_of("raflora", ranks=MORE_LOW, law=DRIFTING),
    }
    return laws_of({role: [run] for role, run in made.items()})[0]


def test_the_claims_on_the_flow_hold_where_clients_follow_it():
    judged, _ = judge_law([flow_laws(FLOW, "local_time", 0.02)] * 12)
    assert {claim["id"]: claim["verdict"] for claim in judged} == {
        "flow-gain": "supported",
        "flow-proportional": "supported",
        "flow-threshold": "supported",
    }
    for claim in judged:
        assert claim["near_control"]["verdict"] == "refuted", claim["id"]
        assert claim["negative_control"]["verdict"] == "refuted", claim["id"]


def test_the_threshold_is_that_of_the_closed_form():
    critical = collapse_threshold(Scenario(FEW_LOW, **FLOW), "fedavg")[2]
    laws = flow_laws(FLOW, "local_time", critical / 2)
    slow, double, fast = (_change(laws[role], *TERMS)[0] for role in RATES)
    assert slow < 0 < fast
    assert abs(double) < 0.01 * fast
    (threshold,) = (claim for claim in FLOW_CLAIMS if claim.id == "flow-threshold")
    np.testing.assert_allclose(threshold.quantity(laws), 1.0, atol=0.01)


def test_a_constant_drift_is_not_a_flow():
    judged, _ = judge_law([flow_laws(DRIFTING, "drift_mean", 0.002)] * 12)
    assert [claim["verdict"] for claim in judged if claim["id"] == "flow-gain"] == ["refuted"]


# Domains and the command

TOML = """
name = "small"
about = "Made up."
seeds = 3
first_seed = 5

[scenario]
ranks = "2x4,3x4,5x4"
cohort_size = 6
rounds = 30

[runs.fedavg]
[runs.raflora]
rule = "raflora"
"""


@pytest.fixture
def simulated(monkeypatch):
    made = []

    def simulate(scenario, *, rule, seed):
        made.append((rule, seed))
        assert scenario.task_seed == seed
        return run_of(rule, seed=seed).drop_attrs().assign_attrs(**scenario.to_attrs(), rule=rule)

    monkeypatch.setattr(module, "simulate", simulate)
    return made


def test_every_domain_of_the_package_is_readable():
    places = {"agnews": {"model": "m", "data": "d", "test_data": "t"}}
    domains = [load_domain(name, places.get(name)) for name in domain_names()]
    assert {"agnews", "digits", "digits_few", "digits_flow", "digits_schedule"} <= {
        domain.name for domain in domains
    }
    seeds = [set(domain.seeds) for domain in domains]
    assert sum(map(len, seeds)) == len(set.union(*seeds))
    roles = {role for domain in domains for role in domain.runs}
    needed = {role for _, family in FAMILIES for c in family for role in c.roles}
    assert needed <= roles


@pytest.mark.slow
def test_a_stopped_command_goes_on_from_the_stored_runs(tmp_path, simulated, capsys):
    path = tmp_path / "small.toml"
    path.write_text(TOML, encoding="utf-8")
    make_runs(load_domain(str(path)).first(1), tmp_path / "out")
    assert simulated == [("fedavg", 5), ("raflora", 5)]
    main([str(path), "--out", str(tmp_path / "out")])
    assert simulated[2:] == [(rule, seed) for seed in (6, 7) for rule in ("fedavg", "raflora")]
    report = json.loads((tmp_path / "out" / "drift_law.json").read_text(encoding="utf-8"))
    assert report["domain"]["seeds"] == [5, 6, 7]
    assert report["command"] == "python -m analysis.studies.drift_law small.toml --out out"[:-10]
    assert str(tmp_path) not in json.dumps(report)
    assert [row["role"] for row in report["rows"]] == ["fedavg"] * 3 + ["raflora"] * 3
    assert [set(TERMS) <= row.keys() for row in report["account"]] == [True] * 6
    assert "raflora-linear" in capsys.readouterr().out
    text = to_markdown(report)
    assert all(claim["statement"] in text for claim in report["claims"])
    assert "## Accuracy" not in text


@pytest.mark.slow
def test_documents_show_the_recorded_domains(tmp_path, simulated):
    path = tmp_path / "small.toml"
    path.write_text(TOML, encoding="utf-8")
    out = tmp_path / "results" / "drift_law" / "small"
    main([str(path), "--out", str(out)])
    assert law_blocks(tmp_path / "record") == {}
    assert record_laws(tmp_path / "results", tmp_path / "record") == ["small"]
    assert is_signed(tmp_path / "record" / "drift_law" / "drift_law.png")
    blocks = law_blocks(tmp_path / "record")
    report = json.loads((out / "drift_law.json").read_text(encoding="utf-8"))
    assert blocks["law_rows"].count("\n| ") == len(report["rows"]) + 1
    assert blocks["law_claims"].startswith("**small**, 3 seeds, 30 rounds, 0 minutes")
    assert blocks["law_accuracy"] == ""
    report["diluted_accuracy"] = {"raflora": [0.5, 0.75, 0.625]}
    write_json(tmp_path / "record" / "drift_law" / "small.json", report)
    assert "| 0.625 [0.5, 0.75] |" in law_blocks(tmp_path / "record")["law_accuracy"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = 3", "seeds = 0", "seeds=0"),
        ("rounds = 30", "ruonds = 30", "rounds"),
        ('rule = "raflora"', 'rule = "ralfora"', "raflora"),
        ('about = "Made up."', "about = 1", "about=1"),
        ("[runs.fedavg]", "[extra]", "extra"),
    ],
)
def test_bad_domains_are_refused(tmp_path, old, new, message):
    path = tmp_path / "bad.toml"
    path.write_text(TOML.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_domain(str(path))


def test_more_seeds_than_the_domain_has_are_refused(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(TOML, encoding="utf-8")
    with pytest.raises(InputError, match="seeds=4"):
        load_domain(str(path)).first(4)


def test_the_report_of_one_seed_judges_nothing(simulated, tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(TOML, encoding="utf-8")
    domain = load_domain(str(path)).first(1)
    with pytest.raises(InputError, match="at least two runs"):
        law_report(domain, make_runs(domain, tmp_path))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dilution_by_a_coverage_of_one_is_none_and_by_zero_leaves_the_pretrained_model(
    share, tmp_path, monkeypatch
):
    task = make_tiny_task()
    monkeypatch.setattr(module, "load_task", lambda scenario: task)
    scenario = TINY.replace(learning_rate=0.05)
    run = simulate(scenario, rule="raflora", seed=3, task=task, checkpoints=tmp_path)
    run = run.assign_coords(coverage=share * xr.ones_like(run.coverage))
    accuracy = run.accuracy.values[0]
    assert accuracy[0] != accuracy[-1]
    found = diluted_accuracy(run, scenario, tmp_path)
    assert found == pytest.approx(accuracy[-1 if share else 0])


def test_the_drift_of_a_real_run_is_measured():
    run = simulate(TINY, rule="fedavg", seed=3, task=make_tiny_task())
    law = drift_law(run)
    x, mu = law.amplitude, law.multiplier
    np.testing.assert_allclose(
        x.sel(round=3), (mu * (x.shift(round=1) + law.drift)).sel(round=3), rtol=1e-6
    )
