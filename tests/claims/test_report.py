"""The report as Markdown, from a hand-made JSON form."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.claims.report import (
    digits_table,
    families_text,
    measurement_text,
    p_text,
    prediction_text,
    shown,
    to_markdown,
    verdict_table,
    worst,
)
from analysis.formats import markdown_table, number, percent

Report = dict[str, Any]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_verdict_table_has_a_row_per_claim(report: Report) -> None:
    head, rule, *rows = verdict_table(report).splitlines()
    assert set(rule) == set("|-")
    assert len(rows) == len(report["claims"])
    assert {len(cells(line)) for line in (head, rule, *rows)} == {8}
    assert cells(head)[2:4] == ["measured, simultaneous 95%", "p (Holm)"]
    first = cells(rows[0])
    assert "**staircase**" in first[0]
    assert "What staircase states." in first[0]
    assert first[1] == "0.25, 0.04 (±2%)"
    assert first[2] == "0.2511 [0.2501, 0.2521], 0.0401 [0.0399, 0.0403]; 8,000 runs"
    assert first[3] == "0.0064"
    assert [cells(row)[4] for row in rows[:3]] == ["✓ supported", "✗ refuted", "? undecided"]
    assert first[5].startswith("measured, derived, proved: `Suppression.staircase`, ")
    assert first[6] == "refuted: something wrong"


def test_a_bar_in_a_statement_does_not_end_its_cell(report: Report) -> None:
    report["claims"][0]["statement"] = "It is E[W | W > 0]."
    report["claims"][0]["quantities"][0] = "E[W | W > 0]"
    assert r": It is E[W \| W > 0]. |" in verdict_table(report)
    assert r"| E[W \| W > 0] | 0.25 |" in to_markdown(report)


def test_the_table_names_a_control_that_was_not_refuted(report: Report) -> None:
    report["claims"][0]["negative_control"]["verdict"] = "supported"
    assert (
        "| supported: something wrong | refuted: slightly wrong; 3.1 to 4 margins away |"
        in verdict_table(report)
    )


def test_one_sided_predictions_are_marked(report: Report) -> None:
    claim = {**report["claims"][0], "margin": "at least"}
    assert prediction_text(claim) == "at least 0.25, 0.04"


def many(report: Report) -> Report:
    """Return a claim on five quantities, the fourth of which leaves its prediction furthest."""
    return {
        **report["claims"][0],
        "quantities": ["a", "b", "c", "d", "e"],
        "prediction": [1.0, 1.0, 1.0, 100.0, 0.01],
        "measurement": [1.0, 1.0, 1.0, 150.0, 0.01],
        "interval": [[0.9, 1.1], [0.9, 1.1], [0.9, 1.1], [140.0, 160.0], [0.009, 0.011]],
    }


def test_of_many_quantities_the_furthest_is_shown(report: Report) -> None:
    claim = many(report)
    assert worst(claim) == 3
    assert shown(claim) == [3]
    assert prediction_text(claim) == "100 (±2%)"
    assert measurement_text(claim) == "150 [140, 160]; 8,000 runs; furthest of 5: d"
    assert shown(report["claims"][0]) == [0, 1]


@pytest.mark.parametrize(
    ("margin", "furthest"), [("at most", "d"), ("at least", "b"), ("±0.5", "e"), ("±60%", "b")]
)
def test_the_furthest_is_found_on_the_side_and_in_the_unit_of_the_margin(
    report: Report, margin: str, furthest: str
) -> None:
    claim = {
        **many(report),
        "margin": margin,
        "prediction": [1.0, 0.1, 1.0, 1.0, 1.0],
        "interval": [[0.9, 1.1], [0.07, 0.112], [0.9, 1.1], [0.9, 1.15], [0.75, 0.95]],
    }
    assert claim["quantities"][worst(claim)] == furthest


def test_a_quantity_without_finite_interval_is_the_furthest(report: Report) -> None:
    claim = many(report)
    claim["measurement"] = [1.0, None, 1.0, 150.0, 0.01]
    claim["interval"] = [[0.9, 1.1], [None, 1.1], *claim["interval"][2:]]
    assert measurement_text(claim) == "not finite [not finite, 1.1]; 8,000 runs; furthest of 5: b"


def test_a_prediction_of_zero_can_be_shown(report: Report) -> None:
    claim = {**many(report), "prediction": [0.0, 1.0, 1.0, 1.0, 1.0]}
    assert worst(claim) == 0


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.123456, "0.1235"), (1.0, "1"), (1.5e-9, "1.5e-09")]
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_digits_table(report: Report) -> None:
    lines = digits_table(report).splitlines()
    assert len({len(cells(line)) for line in lines}) == 1
    assert len(lines) == 2 + len(report["digits"])
    assert "| 0.86 [0.85, 0.87] |" in lines[3]
    assert "| 0.99 [0.98, 1] |" in lines[3]


def test_the_whole_report(report: Report) -> None:
    text = to_markdown(report)
    assert "3 of 5 claims supported; 5 of 5 negative controls refuted" in text
    assert verdict_table(report) in text
    assert digits_table(report) in text
    for claim in report["claims"]:
        assert f"### {claim['id']}: {claim['verdict']}" in text
        assert f"--claim {claim['id']}`" in text
    assert "### raflora-flat: undecided (a vacuous control)" in text
    assert "Measured: energy factor per round. Margin: ±2%. p = 0.00032, over its family" in text
    assert "| quantity | prediction | measured | 99.75% interval |" in text
    assert "| partition 3 | 0.04 | 0.0401 | [0.0399, 0.0403] |" in text
    assert "- torch_version: 2.13.0" in text
    assert text.endswith("\n")


def test_a_report_without_digits(report: Report) -> None:
    del report["digits"]
    text = to_markdown(report)
    assert "digits" not in text
    assert verdict_table(report) in text


def test_the_head_states_the_error_and_its_claims(report: Report) -> None:
    text, *_ = families_text(report)
    assert "20 theorems (4 in this report), error 0.05 in all, 0.0025 for each claim" in text
    assert "5 conjectures (1 in this report), error 0.05 in all, 0.01 for each claim" in text
    assert text in to_markdown(report)
    report["families"]["conjecture"]["run"] = 0
    assert "5 conjectures" not in families_text(report)[0]


def test_a_near_control_is_shown_with_its_distance(report: Report) -> None:
    del report["claims"][1]["near_control"]
    head, _, first, second, *_ = verdict_table(report).splitlines()
    assert cells(head)[-2:] == ["negative control", "near control"]
    assert cells(first)[-1] == "refuted: slightly wrong; 3.1 to 4 margins away"
    assert cells(second)[-1] == "–"
    text = to_markdown(report)
    assert "Near control, slightly wrong, 3.1 to 4 margins away: refuted." in text
    assert "4 of 4 near controls refuted" in text
    report["claims"][0]["near_control"]["verdict"] = "undecided"
    assert "3 of 4 near controls refuted" in to_markdown(report)


def test_a_positive_control_is_shown_with_the_negative_one(report: Report) -> None:
    report["claims"][1]["positive_control"] = {"description": "it is so", "verdict": "supported"}
    row = verdict_table(report).splitlines()[3]
    assert cells(row)[-2] == "refuted: something wrong; positive control supported: it is so"
    assert "1 of 1 positive controls supported" in to_markdown(report)


def test_a_report_without_families_is_shown_unchanged(report: Report) -> None:
    del report["families"]
    for claim in report["claims"]:
        del claim["p_value"], claim["p_holm"], claim["statistic"], claim["near_control"]
        claim["confidence"] = 0.99
    table, text = verdict_table(report), to_markdown(report)
    assert table.startswith(
        "| claim | prediction | measured, 99% interval | verdict | evidence | negative control |\n"
        "|---|---|---|---|---|---|\n"
    )
    assert {len(cells(line)) for line in table.splitlines()} == {6}
    assert "Intervals hold together at 99% a claim." in text
    assert "| quantity | prediction | measured | 99% interval |" in text


@pytest.mark.parametrize(
    ("p", "text"), [(1.0, "1"), (0.0421, "0.042"), (3.21e-5, "3.2e-05"), (1e-9, "<1e-6")]
)
def test_p_values_have_two_digits(p: float, text: str) -> None:
    assert p_text(p) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.95, "95%"), (0.99, "99%"), (1 - 0.05 / 18, "99.7222%")]
)
def test_percentages_never_round_up_to_certainty(share: float, text: str) -> None:
    assert percent(share) == text


def test_a_broken_control_is_counted(report: Report) -> None:
    report["claims"][0]["negative_control"]["verdict"] = "undecided"
    assert "4 of 5 negative controls refuted" in to_markdown(report)


def test_a_table_keeps_its_columns_for_any_cells() -> None:
    table = markdown_table(("a", ""), [("E[W | W > 0]", ""), ("x", "y")])
    assert table.splitlines() == ["| a | |", "|---|---|", r"| E[W \| W > 0] | |", "| x | y |"]
