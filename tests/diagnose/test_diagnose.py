"""Verdicts, measures and remedies of a diagnosis."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from diagnose_cases import ALPHA, WRITERS, state, toy

from analysis import diagnose
from analysis.collapse.measure import Collapse
from analysis.diagnose.spectra import drift_line, geometric_rate, half_life, settling
from analysis.ledger import TERMS
from fedlora_sim import Scenario, simulate
from fedlora_sim.errors import InputError

FEDERATION = {"ranks": "2x2,4x2", "cohort": 4, "alpha": ALPHA}


def states(rule: str) -> list:
    return [state(adapter) for adapter in toy(rule).adapters]


def rules(found) -> dict:
    return {rule.rule: rule.consistent for rule in found.rules}


def test_a_diluting_rule_collapses() -> None:
    found = diagnose(states("fedavg"), **FEDERATION)
    assert found.collapses
    assert found.levels == (2, 4)
    part = found.partitions[1]
    assert part.verdict == Collapse.COLLAPSES
    assert part.rate.low < 0.25 < part.rate.high  # W**2 with W = 1/2
    assert part.half_life.low < 0.5 < part.half_life.high
    assert rules(found)["fedavg"] is True
    assert rules(found)["raflora"] is False
    assert "energy share above rank 2" in found.sentence
    assert "raflora" in found.remedy
    assert not found.missing


def test_a_healthy_rule_keeps_its_rank() -> None:
    found = diagnose(states("raflora"), **FEDERATION)
    assert found.verdict == Collapse.KEEPS
    assert rules(found)["raflora"] is True
    assert found.remedy == "No change is needed."
    assert found.partitions[1].rate.high > 0.98


def test_missing_information_is_named() -> None:
    found = diagnose(states("fedavg"))
    assert [one.name for one in found.missing] == ["ranks", "cohort", "alpha"]
    assert found.verdict == Collapse.UNDECIDED
    assert "ranks" in found.remedy
    assert found.effective_rank[0] > 1
    assert "ranks is missing (--ranks)" in str(found)


def test_the_order_of_rounds_does_not_matter() -> None:
    by_round = dict(enumerate(states("fedavg")))
    shuffled = {t: by_round[t] for t in (3, 0, 8, 1, 7, 2, 6, 4, 5)}
    one, other = diagnose(by_round, **FEDERATION), diagnose(shuffled, **FEDERATION)
    assert one.to_json() == other.to_json()


@pytest.mark.slow
def test_client_files_name_the_rule(tmp_path: Path) -> None:
    for rule in ("fedavg", "raflora"):
        WRITERS["flora"](tmp_path / rule, toy(rule))
        found = diagnose(tmp_path / rule, alpha=ALPHA)
        clients = found.clients
        assert clients is not None
        assert rule in clients.made_by
        assert ("raflora" in clients.made_by) == (rule == "raflora")
        assert clients.kept["raflora"][0] > clients.kept["fedavg"][0]
        assert clients.actual == pytest.approx(clients.kept[rule], rel=1e-3)
        # the ledger: dilution is the multiplier, in decades of energy
        dilution = 2 * np.log10(0.5) if rule == "fedavg" else 0.0
        assert found.terms["dilution"][1] == pytest.approx(dilution, abs=1e-6)
        total = sum(found.terms[name][1] for name in TERMS)
        energy = found.energy[:, 2:].sum(1)
        assert total == pytest.approx(np.log10(energy[-1] / energy[0]) / 8, abs=0.05)
        # clients of rank 2 scale by 4, the global adapter of rank 4 by 2
        assert "clients of rank 2 scale by 4, the global adapter by 2" in found.scalings[0]
        assert "multiplies the update by 2" in found.scalings[0]


@pytest.mark.slow
def test_the_remedy_names_the_rules_that_files_and_rounds_agree_on(tmp_path: Path) -> None:
    WRITERS["flora"](tmp_path / "run", toy("fedavg"))
    found = diagnose(tmp_path / "run", **FEDERATION)
    assert found.clients is not None
    assert set(found.clients.made_by) > {"fedavg"}  # the clients of this run share their basis
    assert found.remedy.startswith("fedavg averages a direction over clients that do not carry it")


def test_client_files_without_alpha_ask_for_it(tmp_path: Path) -> None:
    WRITERS["flora"](tmp_path / "run", toy("fedavg"))
    found = diagnose(tmp_path / "run")
    assert "alpha" in [one.name for one in found.missing]


def test_an_alpha_that_contradicts_the_configuration_is_refused(tmp_path: Path) -> None:
    WRITERS["flowertune"](tmp_path / "run", toy("fedavg"))
    with pytest.raises(InputError, match=r"alpha=16.*expected 8, as in"):
        diagnose(tmp_path / "run", alpha=16.0)


def test_datasets_of_simulate() -> None:
    scenario = Scenario("4x5,8x5", cohort_size=4, rounds=15, gain_std=0.1)
    for rule, verdict in (("fedavg", Collapse.COLLAPSES), ("raflora", Collapse.KEEPS)):
        found = diagnose(simulate(scenario, rule, seed=1, ledger=True))
        assert found.verdict == verdict
        assert found.rule == rule
        assert found.terms["dilution"][0] == pytest.approx(0, abs=1e-9)
        json.dumps(found.to_json(), allow_nan=False)
    with pytest.raises(InputError, match=r"one: run\.isel"):
        diagnose(simulate(scenario, seed=range(2)))


def test_rates_and_half_lives_of_gaps() -> None:
    rounds = np.array([0, 1, 4, 5, 9])
    rate = geometric_rate(rounds, 0.5**rounds)
    assert (rate.low, rate.high) == pytest.approx((0.5, 0.5))
    assert half_life(rate).value == pytest.approx(1.0)
    assert half_life(geometric_rate(rounds, 1.5**rounds)).value == np.inf


def test_the_floor_of_the_drift_law() -> None:
    rng = np.random.default_rng(0)
    x = [1.0]
    for _ in range(30):
        x.append(0.5 * (x[-1] + 0.2) * (1 + 0.02 * rng.standard_normal()))
    found = settling(drift_line(np.arange(31), np.array(x)), x[5])
    assert found.floor.low < 0.2**2 < found.floor.high
    assert found.floor.high < 2 * found.floor.low
    growing = np.arange(1.0, 30.0)
    assert settling(drift_line(np.arange(29), growing), 29.0).floor.high == np.inf
