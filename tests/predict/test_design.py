"""`design` against the closed forms asked for every configuration by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from analysis import closed_form
from analysis.closed_form.setting import RULES
from analysis.design import Design, configurations, design
from analysis.outcomes import outcomes
from fedlora_sim.tolerances import relative

LEVELS = (1, 2, 4)
TASK: dict[str, Any] = {
    "rounds": 12,
    "cohort_size": 3,
    "gain_mean": 0.97,
    "gain_std": 0.1,
    "drift_std": 0.02,
}


ALIKE: dict[str, Any] = {
    "rounds": 9,
    "cohort_size": 3,
    "gain_mean": 0.97,
    "sampling": "bernoulli",
}


def shares(best: Design, task: dict[str, Any], decay: float, top: int) -> tuple[float, float]:
    """Signal and noise of a design, from trajectories of its own federation."""
    start = decay ** np.arange(top)
    carried = start[: max(int(part.split("x")[0]) for part in best.ranks.split(","))]
    given = {
        "initial_amplitude": carried,
        "empty_partition": best.empty_partition or "zero",
        **task,
    }
    mean = closed_form.mean_trajectory(best.rule, best.ranks, **given)[-1]
    energy = closed_form.energy_trajectory(best.rule, best.ranks, **given)[-1]
    unit = np.sum(start**2)
    return float(np.sum(mean**2) / unit), float(np.sum(energy - mean**2) / unit)


@pytest.fixture(scope="module")
def all_designs() -> list[Design]:
    return design(6, total_rank=24, levels=LEVELS, spectrum_decay=0.8, top=10_000, **TASK)


def test_every_configuration_and_rule_is_compared(all_designs: list[Design]) -> None:
    rules = {(best.rule, best.empty_partition) for best in all_designs}
    assert {"fedavg", "flora", "ffa", "raflora"} <= {rule for rule, _ in rules}
    assert ("raflora", "zero") in rules
    assert len(all_designs) == len(rules) * len(configurations(6, 3, 3))


def test_numbers_are_those_of_the_configuration_itself(all_designs: list[Design]) -> None:
    for best in all_designs[::7]:
        signal, noise = shares(best, TASK, 0.8, 4)
        assert best.signal == pytest.approx(signal, rel=relative("iteration"))
        assert best.noise == pytest.approx(
            noise, rel=relative("iteration"), abs=relative("factorization")
        )
        assert best.score == best.signal - best.noise
        gains = {name: TASK[name] for name in ("cohort_size", "gain_mean", "gain_std")}
        policy = best.empty_partition or "zero"
        rate = closed_form.energy_rate(best.rule, best.ranks, empty_partition=policy, **gains)
        assert best.worst_rate == pytest.approx(rate.min(), rel=relative("iteration"))
        assert best.top_coverage == pytest.approx(closed_form.coverage(best.ranks)[-1])
        sent = closed_form.communication(best.rule, best.ranks, 64, 64, cohort_size=3)
        assert (best.upload, best.download) == (sent.upload, sent.download)


def test_rules_that_average_factors_take_part_where_clients_are_alike() -> None:
    found = design(5, total_rank=20, levels=LEVELS, spectrum_decay=0.8, top=10_000, **ALIKE)
    assert {best.rule for best in found} == set(RULES) - {"hetlora"}
    for best in found[::5]:
        signal, noise = shares(best, ALIKE, 0.8, 4)
        assert best.signal == pytest.approx(signal, rel=relative("iteration"))
        assert best.noise == pytest.approx(
            noise, rel=relative("iteration"), abs=relative("factorization")
        )


def test_the_best_comes_first_and_the_smaller_of_equals(all_designs: list[Design]) -> None:
    keys = [(-best.score, best.total_rank) for best in all_designs]
    assert keys == sorted(keys)
    assert (
        design(6, total_rank=24, levels=LEVELS, spectrum_decay=0.8, top=3, **TASK)
        == (all_designs[:3])
    )


def test_of_equals_the_rule_that_sends_less_comes_first() -> None:
    best = design(10, total_rank=26, cohort_size=2, levels=(2, 4, 8), top=3)
    assert {design.score for design in best} == {1.0}
    assert [design.rule for design in best] == ["raflora", "rbla", "flora"]


def test_directions_of_nobody_are_lost() -> None:
    (best,) = design(4, total_rank=4, levels=(1, 2), spectrum_decay=0.5, rules=["fedavg"])
    assert (best.ranks, best.signal, best.noise) == ("1x4", 0.8, 0.0)
    assert best.lost == pytest.approx(0.2)


def test_with_carry_nothing_is_ever_lost_without_drift() -> None:
    best = design(10, total_rank=40, cohort_size=2, levels=(2, 4, 8), top=1, rules=["raflora"])[0]
    assert (best.empty_partition, best.score, best.total_rank) == ("carry", 1.0, 26)


def test_budgets_hold(all_designs: list[Design]) -> None:
    task = {"levels": LEVELS, "spectrum_decay": 0.8, "top": 10_000, **TASK}
    within = design(6, total_rank=12, **task)
    assert within == [best for best in all_designs if best.total_rank <= 12]
    limit = float(np.median([best.upload + best.download for best in all_designs]))
    cheap = design(6, communication=limit, **task)
    assert cheap == [best for best in all_designs if best.upload + best.download <= limit]


def test_the_top_can_be_asked_to_have_clients() -> None:
    found = design(10, total_rank=60, levels=LEVELS, min_coverage=0.3, top=10_000, **TASK)
    assert min(best.top_coverage for best in found) == 0.3


def test_configurations_are_all_and_each_once() -> None:
    rows = configurations(5, 3, 3)
    every = [(a, b, 5 - a - b) for a in range(6) for b in range(6 - a)]
    assert sorted(map(tuple, rows.tolist())) == sorted(every)
    few = [row for row in every if np.count_nonzero(row) <= 2]
    assert sorted(map(tuple, configurations(5, 3, 2).tolist())) == sorted(few)


def test_rules_without_closed_forms_say_why() -> None:
    found, reasons = outcomes(4, 5, RULES, gain_std=0.1)
    assert {outcome.rule for outcome in found}.isdisjoint(reasons)
    assert "number of carriers" in reasons["hetlora"]
    assert "gain_std" in reasons["zero_pad"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": 0}, "^clients=0"),
        ({"total_rank": None}, "^total_rank=None: expected a budget"),
        ({"total_rank": 3}, "^total_rank=3: expected at least 8"),
        ({"total_rank": None, "communication": 1.0}, "^communication=1.0: expected at least"),
        ({"levels": ()}, "^levels="),
        ({"levels": (0, 2)}, "^levels=0"),
        ({"distinct": 0}, "^distinct=0"),
        ({"min_coverage": 2.0}, "^min_coverage=2.0"),
        ({"gain_std": -1.0}, "^gain_std=-1.0"),
        ({"spectrum_decay": 0.0}, "^spectrum_decay=0.0"),
        ({"initial_amplitude": 0.0}, "^initial_amplitude=0.0"),
        ({"rules": ["hetlora"]}, "hetlora"),
        ({"rules": ["fedavgg"]}, "did you mean 'fedavg'"),
        ({"top": 0}, "^top=0"),
        ({"cohort_size": 9}, "^cohort_size=9: [^;]*$"),
        ({"gain_mean": 2.0, "rounds": 600}, "^rounds=600: expected fewer"),
        ({"gain_std": 1e200}, "^rounds=100: expected fewer"),
        ({"initial_amplitude": 1e-200}, "^initial_amplitude=1e-200"),
        ({"levels": (2, 32), "d_in": 16}, r"^levels=\(2, 32\): expected ranks of at most 16"),
        ({"clients": 400, "distinct": 3}, "^distinct=3: expected fewer"),
    ],
    ids=str,
)
def test_bad_tasks_are_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"clients": 4, "total_rank": 50} | changes
    with pytest.raises(ValueError, match=message):
        design(given.pop("clients"), **given)
