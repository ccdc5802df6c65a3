"""The report as table, frame, JSON, figure and command."""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from collapse_cases import Reports
from rich.console import Console

from analysis.collapse import SCENARIOS, collapse_report
from analysis.collapse.report import _row, _stacked, change_text, loss_text, telling_partition
from analysis.collapse.scenarios import standards
from fedlora_cli import collapse as command
from fedlora_sim import parse_ranks
from paper_figs import style
from paper_figs import theory as drawing


def test_the_same_seed_gives_the_same_report() -> None:
    asked = {"seeds": 30, "scenarios": ("cohorts", "drift")}
    one, same, other = (collapse_report("fedavg", seed=s, **asked).to_json() for s in (3, 3, 4))
    assert one == same
    assert one["scenarios"][0]["rules"] != other["scenarios"][0]["rules"]


def test_a_scenario_has_the_same_report_alone_and_among_others() -> None:
    alone, among = (
        collapse_report("fedavg", seeds=30, scenarios=names).to_json()["scenarios"][0]
        for names in (("cohorts",), ("drift", "cohorts"))
    )
    assert alone == among


def test_json_goes_round(reports: Reports) -> None:
    record = reports("fedavg").to_json()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert [part["name"] for part in record["scenarios"]] == list(SCENARIOS)
    full = record["scenarios"][0]
    rows = [row for row in full["rules"]["fedavg"]["numbers"] if row["kind"] == "half_life"]
    assert rows[0]["value"] is None  # never
    assert rows[2]["value"] == pytest.approx(np.log(0.5) / np.log(0.09))
    assert full["rules"]["fedavg"]["extinct_round"] == [None, 19, 8]
    assert full["rules"]["fedavg"]["prediction"]["verdict"] == "collapses"


def test_the_frame_is_tidy(reports: Reports) -> None:
    frame = reports("fedavg").to_frame()
    key = ["scenario", "rule", "partition", "kind"]
    assert not frame.duplicated(key).any()
    assert set(frame.rule) == {"fedavg", "raflora"}
    rate = frame[(frame.scenario == "full") & (frame.kind == "rate") & (frame.rule == "fedavg")]
    np.testing.assert_allclose(rate.value, [1, 0.36, 0.09])
    np.testing.assert_allclose(rate.predicted, [1, 0.36, 0.09])
    assert (rate.agreement == "agrees").all()
    ordered = frame[["low", "value", "high"]].dropna()
    assert (ordered.low <= ordered.value + 1e-12).all()
    assert (ordered.value <= ordered.high + 1e-12).all()


def test_the_table_fits_and_has_labels(reports: Reports) -> None:
    text = io.StringIO()
    Console(file=text, width=110).print(reports("fedavg").table())
    shown = text.getvalue()
    for words in ("collapses", "keeps its rank", "raFLoRA", "half-life", "5–8", "91% ✓"):
        assert words in shown, words
    # a mark refers only to the theory, not to a verdict
    assert "✗" not in shown.partition("Energy lost a round by")[0]
    for words in ("itself", "relative"):
        assert words in shown
    assert max(map(len, shown.splitlines())) <= 110


def test_sentences_state_numbers_with_intervals(reports: Reports) -> None:
    report = reports("fedavg")
    assert report.sentence.startswith("fedavg collapses in 5 of 6 scenarios (full participation, ")
    wanted = (
        "loses exactly 91% of its energy a round, relative to the shared directions (half-life "
        "exactly 0.288 rounds"
    )
    assert wanted in report.sentence
    assert report.sentence.endswith("It keeps its rank in flow above threshold.")
    cohorts = report.scenarios[1].sentence("fedavg")
    assert cohorts.count("[") >= 3
    assert "raFLoRA loses exactly 0%" in cohorts
    assert "11 of 11 numbers agree" in str(report)


def test_the_sentence_states_the_relative_column_of_the_table(reports: Reports) -> None:
    for label in ("fedavg", "zero_pad"):
        report = reports(label)
        for part in report.scenarios:
            own = part.rules[label]
            h = telling_partition(own)
            relative = own.numbers["relative_rate"]
            sentence = part.sentence(label)
            assert change_text(relative, h) in sentence.replace("its energy grows", "grows")
            cells = _row(part, own, h, label)
            assert cells[3] == _stacked(loss_text(relative, h))
            assert cells[1] == _stacked(loss_text(own.numbers["rate"], h))
            by = "relative to the shared directions" if part.standard.relative else ", itself"
            assert by in sentence


def test_the_federation_of_every_scenario_is_printed(reports: Reports) -> None:
    text = " ".join(str(reports("fedavg")).split())
    for standard in standards().values():
        federation = standard.scenario.federation
        assert standard.federation_text in text
        ranks = standard.federation_text.split("of ranks ")[1].split(", ")[0]
        assert parse_ranks(ranks) == federation.ranks
        assert f"{federation.num_clients} clients" in standard.federation_text
    assert "4 a round (without replacement)" in standards()["cohorts"].federation_text
    assert "4 to 121 samples each" in standards()["gains"].federation_text


@pytest.mark.parametrize(
    ("rule", "asked", "message"),
    [
        ("fedavgg", {}, r"rule='fedavgg': expected one of .* \(did you mean 'fedavg'\?\)"),
        ("fedavg", {"scenarios": ("ful",)}, r"scenarios='ful': expected one of .*'full'"),
        ("fedavg", {"scenarios": ()}, r"scenarios=\[\]: expected at least one of"),
        ("fedavg", {"seeds": 1}, r"seeds=1: expected at least 2 runs"),
        ("fedavg", {"seeds": 0}, r"seeds=0: expected a whole number"),
        ("fedavg", {"seed": -1}, r"seed=-1: expected a whole number"),
    ],
)
def test_bad_input_is_named(rule: str, asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collapse_report(rule, **asked)


def test_the_figure_draws_every_scenario(reports: Reports, tmp_path: Path) -> None:
    report = reports("fedavg")
    style.apply()
    figure = drawing.draw_collapse(report)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == [part.standard.title for part in report.scenarios]
    assert [axis.get_title(loc="right") for axis in figure.axes][-1] == "keeps its rank"
    for axis in figure.axes:
        dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
        assert len(dashed) == 3
        assert axis.get_yscale() == "log"
    (written,) = style.save(figure, tmp_path, "collapse", kinds=("png",))
    assert written.stat().st_size > 0


def test_the_figure_draws_one_scenario_and_rules_without_prediction() -> None:
    report = collapse_report("zero_pad", seeds=10, scenarios=("drift",))
    style.apply()
    figure = drawing.draw_collapse(report)
    (axis,) = figure.axes
    assert not [line for line in axis.lines if line.get_linestyle() == "--"]
    assert len(axis.lines) == 5  # three partitions, FedAvg and raFLoRA
    plt.close(figure)


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    from typer import Typer
    from typer.main import get_command

    app = Typer(add_completion=False)
    app.command("collapse")(command.collapse)
    code = get_command(app).main(arguments, standalone_mode=False)
    return int(code or 0), capsys.readouterr().out


def test_the_command_prints_the_verdict_and_draws(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    figure = tmp_path / "new" / "figure.PNG"
    code, out = run(["zero_pad", "--scenario", "full", "--figure", str(figure)], capsys)
    assert code == 0
    assert out.startswith("zero_pad collapses in full participation. At full participation, above")
    assert figure.exists()


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["raflora", "--json", "--seeds", "20", "--seed", "5", "--scenario", "cohorts"]
    code, out = run([*arguments, "--scenario", "full"], capsys)
    record = json.loads(out)
    assert code == 0
    assert record["verdict"] == "keeps its rank"
    assert [part["name"] for part in record["scenarios"]] == ["full", "cohorts"]
    assert record["scenarios"][1]["runs"] == 20


def test_the_command_takes_a_custom_rule(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rule_of_mine.py").write_text(
        "from collapse_cases import Halving\n\nclass Mine(Halving):\n    name = 'mine'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code, out = run(["rule_of_mine:Mine", "--scenario", "full"], capsys)
    assert code == 0
    assert out.startswith("mine collapses")


def test_the_command_fails_when_controls_do(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(["fedavg", "--seeds", "2", "--scenario", "gains"], capsys)
    assert code == command.FAILED
    assert "The controls failed" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense"),
        (["fedavg", "--figure", "energies"], "--figure='energies': expected a file name"),
        (["fedavg", "--scenario", "calm"], "scenarios='calm': expected one of"),
    ],
)
def test_the_command_refuses_bad_input(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        run(arguments, capsys)
