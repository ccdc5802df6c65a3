"""`design` against the closed forms of each configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from analysis import closed_form
from analysis.closed_form.setting import RULES
from analysis.design import Design, configurations, design
from analysis.predict import by_carriers
from fedlora_sim import Scenario
from fedlora_sim.tolerances import relative

LEVELS = (1, 2, 4)
TASK = Scenario(
    (1,) * 6,
    rounds=12,
    cohort_size=3,
    gain_mean=0.97,
    gain_std=0.1,
    drift_std=0.02,
    spectrum_decay=0.8,
)
ALIKE = Scenario(
    (1,) * 5, rounds=9, cohort_size=3, gain_mean=0.97, sampling="bernoulli", spectrum_decay=0.8
)


def own(best: Design, task: Scenario) -> Scenario:
    """Return the scenario of a design."""
    policy = best.empty_partition or task.empty_partition
    return task.replace(ranks=best.ranks, empty_partition=policy)


def shares(best: Design, task: Scenario, top: int) -> tuple[float, float]:
    """Return signal and noise of a design, from trajectories of its federation."""
    scenario = own(best, task)
    mean = closed_form.mean_trajectory(scenario, best.rule)[-1]
    energy = closed_form.energy_trajectory(scenario, best.rule)[-1]
    unit = np.sum((task.spectrum_decay ** np.arange(top)) ** 2)
    return float(np.sum(mean**2) / unit), float(np.sum(energy - mean**2) / unit)


@pytest.fixture(scope="module")
def all_designs() -> list[Design]:
    return design(TASK, total_rank=24, levels=LEVELS, top=10_000)


def test_every_configuration_and_rule_is_compared(all_designs: list[Design]) -> None:
    rules = {(best.rule, best.empty_partition) for best in all_designs}
    assert {"fedavg", "flora", "ffa", "raflora"} <= {rule for rule, _ in rules}
    assert ("raflora", "zero") in rules
    assert len(all_designs) == len(rules) * len(configurations(6, 3, 3))


def test_numbers_are_those_of_the_configuration_itself(all_designs: list[Design]) -> None:
    for best in all_designs[::7]:
        signal, noise = shares(best, TASK, 4)
        assert best.signal == pytest.approx(signal, rel=relative("iteration"))
        assert best.noise == pytest.approx(
            noise, rel=relative("iteration"), abs=relative("factorization")
        )
        assert best.score == best.signal - best.noise
        rate = closed_form.energy_rate(own(best, TASK), best.rule)
        assert best.worst_rate == pytest.approx(rate.min(), rel=relative("iteration"))
        assert best.top_coverage == pytest.approx(closed_form.coverage(own(best, TASK))[-1])
        sent = closed_form.communication(own(best, TASK), best.rule)
        assert (best.upload, best.download) == (sent.upload, sent.download)


def test_rules_that_average_factors_take_part_where_clients_are_alike() -> None:
    found = design(ALIKE, total_rank=20, levels=LEVELS, top=10_000)
    assert {best.rule for best in found} == set(RULES) - {"hetlora"}
    for best in found[::5]:
        signal, noise = shares(best, ALIKE, 4)
        assert best.signal == pytest.approx(signal, rel=relative("iteration"))
        assert best.noise == pytest.approx(
            noise, rel=relative("iteration"), abs=relative("factorization")
        )


def test_the_best_comes_first_and_the_smaller_of_equals(all_designs: list[Design]) -> None:
    keys = [(-best.score, best.total_rank) for best in all_designs]
    assert keys == sorted(keys)
    assert design(TASK, total_rank=24, levels=LEVELS, top=3) == all_designs[:3]


def test_of_equals_the_rule_that_sends_less_comes_first() -> None:
    best = design(Scenario("1x10", cohort_size=2), total_rank=26, levels=(2, 4, 8), top=3)
    assert {design.score for design in best} == {1.0}
    assert [design.rule for design in best] == ["raflora", "rbla", "flora"]


def test_directions_without_carrier_are_lost() -> None:
    (best,) = design(Scenario("1x4", spectrum_decay=0.5), ["fedavg"], total_rank=4, levels=(1, 2))
    assert (best.ranks, best.signal, best.noise) == ("1x4", 0.8, 0.0)
    assert best.lost == pytest.approx(0.2)


def test_with_carry_nothing_is_ever_lost_without_drift() -> None:
    scenario = Scenario("1x10", cohort_size=2)
    best = design(scenario, ["raflora"], total_rank=40, levels=(2, 4, 8), top=1)[0]
    assert (best.empty_partition, best.score, best.total_rank) == ("carry", 1.0, 26)


def test_budgets_are_kept(all_designs: list[Design]) -> None:
    within = design(TASK, total_rank=12, levels=LEVELS, top=10_000)
    assert within == [best for best in all_designs if best.total_rank <= 12]
    limit = float(np.median([best.upload + best.download for best in all_designs]))
    cheap = design(TASK, communication=limit, levels=LEVELS, top=10_000)
    assert cheap == [best for best in all_designs if best.upload + best.download <= limit]


def test_a_minimum_coverage_of_the_top_can_be_required() -> None:
    task = TASK.replace(ranks=(1,) * 10)
    found = design(task, total_rank=60, levels=LEVELS, min_coverage=0.3, top=10_000)
    assert min(best.top_coverage for best in found) == 0.3


def test_configurations_are_all_and_each_once() -> None:
    rows = configurations(5, 3, 3)
    every = [(a, b, 5 - a - b) for a in range(6) for b in range(6 - a)]
    assert sorted(map(tuple, rows.tolist())) == sorted(every)
    few = [row for row in every if np.count_nonzero(row) <= 2]
    assert sorted(map(tuple, configurations(5, 3, 2).tolist())) == sorted(few)


@pytest.mark.parametrize(
    ("changes", "rule", "message"),
    [
        ({}, "hetlora", "number of carriers"),
        ({"gain_std": 0.1}, "zero_pad", "^gain_std=0.1"),
        ({"drift_mean": 0.1}, "fedavg", "^drift_mean=0.1"),
        ({"num_samples": (1, 2, 3, 4)}, "fedavg", "^num_samples="),
        ({"local_loss": "quadratic"}, "fedavg", "^local_loss='quadratic'"),
        ({"fidelity": "matrix", "basis_drift": 0.1}, "fedavg", "^basis_drift=0.1"),
    ],
    ids=str,
)
def test_rules_without_numbers_by_carriers_state_the_reason(
    changes: dict, rule: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        by_carriers(Scenario("1x4", rounds=5).replace(**changes), rule)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_rank": None}, "^total_rank=None: expected a budget"),
        ({"total_rank": 3}, "^total_rank=3: expected at least 8"),
        ({"total_rank": None, "communication": 1.0}, "^communication=1.0: expected at least"),
        ({"levels": ()}, "^levels="),
        ({"levels": (0, 2)}, "^levels=0"),
        ({"distinct": 0}, "^distinct=0"),
        ({"min_coverage": 2.0}, "^min_coverage=2.0"),
        ({"rules": ["hetlora"]}, "hetlora"),
        ({"rules": ["fedavgg"]}, "did you mean 'fedavg'"),
        ({"top": 0}, "^top=0"),
        ({"gain_mean": 2.0, "rounds": 600}, "^rounds=600: expected fewer"),
        ({"gain_std": 1e200}, "^rounds=50: expected fewer"),
        ({"initial_amplitude": 1e-200}, "^initial_amplitude=1e-200"),
        ({"levels": (2, 32), "d_in": 16}, r"^levels=\(2, 32\): expected ranks of at most 16"),
        ({"ranks": (1,) * 400, "distinct": 3}, "^distinct=3: expected fewer"),
    ],
    ids=str,
)
def test_bad_tasks_are_refused(changes: dict[str, Any], message: str) -> None:
    fields = Scenario.__dataclass_fields__
    scenario = Scenario("1x4").replace(**{k: v for k, v in changes.items() if k in fields})
    asked = {"total_rank": 50} | {k: v for k, v in changes.items() if k not in fields}
    with pytest.raises(ValueError, match=message):
        design(scenario, **asked)
