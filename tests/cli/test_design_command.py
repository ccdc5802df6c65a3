"""`fedlora-sim design`: a ranked table, JSON, and one line for invalid input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import pytest
from rich.console import Console

from analysis.design import design
from fedlora_sim import Scenario

CLIENTS = Scenario("1x6", cohort_size=3)
TASK = ("design", "--clients", "6", "--total-rank", "40", "--cohort", "3", "--levels", "2,4,8")


def test_the_table_is_ranked_and_fits(fedlora: Callable) -> None:
    outcome = fedlora(*TASK, "--gain", "0.98,0.1", "--drift", "0.02", "--top", "3")
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 110
    scenario = CLIENTS.replace(gain_mean=0.98, gain_std=0.1, drift_std=0.02)
    designs = design(scenario, total_rank=40, levels=(2, 4, 8), top=3)
    for best in designs:
        assert f" {best.ranks} " in outcome.out
        assert f"{best.score:.3f}" in outcome.out
    assert "zero_pad is left out: gain_std=0.1" in outcome.out


def test_json_holds_the_designs(fedlora: Callable) -> None:
    record = json.loads(fedlora(*TASK, "--top", "2", "--json").out)
    expected = design(CLIENTS, total_rank=40, levels=(2, 4, 8), top=2)
    assert record["designs"] == [asdict(best) for best in expected]
    rules = [best["rule"] for best in record["best_of_each_rule"]]
    assert len(set(rules)) == len(rules)
    assert set(rules).isdisjoint(record["left_out"])
    scores = [best["score"] for best in record["best_of_each_rule"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--clients", "6"), "total_rank=None"),
        (("--clients", "6", "--total-rank", "3"), "total_rank=3"),
        (("--clients", "6", "--total-rank", "99", "--levels", "four"), "--levels='four'"),
        (("--clients", "6", "--total-rank", "99", "--gain", "1"), "--gain='1'"),
        (("--clients", "6", "--total-rank", "99", "--cohort", "7"), "cohort_size=7"),
        (("--clients", "6", "--communication", "1"), "communication=1.0"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(fedlora: Callable, options: tuple[str, ...], named: str) -> None:
    outcome = fedlora("design", *options)
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert f"{named}: expected " in line


def test_a_narrow_terminal_breaks_no_number(
    fedlora: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora_cli.design.wide_console", lambda: Console(width=80))
    out = fedlora(*TASK, "--top", "3").out
    assert max(map(len, out.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in out
    for best in design(CLIENTS, total_rank=40, levels=(2, 4, 8), top=3):
        assert f" {best.ranks} " in out
        assert f" {best.score:.3f} " in out
        assert f" {best.download:,.0f} " in out
