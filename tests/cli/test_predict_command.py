"""`fedlora-sim predict`: tables, JSON and a picture, quickly and without the simulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.closed_form.setting import RULES
from analysis.predict import compare, comparison_record
from fedlora_sim import Scenario
from fedlora_sim.storage import MARKER
from paper_figs import predictions, style

EXAMPLE = (
    *("predict", "--ranks", "8x10,16x6,64x4", "--cohort", "5", "--gain", "0.98,0.1"),
    *("--drift", "0.02", "--rounds", "40"),
)
BOUND = 5.0  # CPU seconds; the documents state two on a quiet machine


@pytest.mark.slow
def test_a_new_process_answers_soon_and_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from fedlora_cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code, *EXAMPLE, "--local-time", "0.5"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    after = os.times()  # of the ended child: CPU time, independent of the machine's load
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < BOUND
    assert {"torch", "sklearn"}.isdisjoint(done.stderr.split())
    assert (tmp_path / "results/predict/predict.png").exists()
    assert "raflora, carry" in done.stdout


@pytest.mark.slow
def test_tables_fit_and_name_every_rule_and_partition(fedlora: Callable, here: Path) -> None:
    outcome = fedlora(*EXAMPLE, "--local-time", "0.5", "--out", "there")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 110
    for rule in RULES:
        assert sum(line.split()[:1] in ([rule], [f"{rule},"]) for line in lines) >= 6
    assert sum(line.split() == ["rule", "1–8", "9–16", "17–64"] for line in lines) == 6
    assert "zero_pad (energy, energy rate" in outcome.out
    assert sorted(path.name for path in Path("there").iterdir()) == [MARKER, "predict.png"]


@pytest.mark.slow
def test_floor_and_rate_of_training_need_a_local_time(fedlora: Callable) -> None:
    assert "factor of approach" not in fedlora(*EXAMPLE).out


@pytest.mark.slow
def test_many_partitions_are_shown_in_turns(fedlora: Callable) -> None:
    outcome = fedlora("predict", "--ranks", "1,2,4,8,16,32,64", "--cohort", "2", "--rounds", "250")
    assert max(map(len, outcome.out.splitlines())) <= 110
    assert "…" not in outcome.out  # no number is cut short
    assert "33–64" in outcome.out


def test_json_output_is_only_the_record(fedlora: Callable, here: Path) -> None:
    outcome = fedlora(
        *("predict", "--ranks", "2x3,4x3", "--num-samples", "10x3,30,20x2", "--cohort", "2"),
        *("--drift", "0.1,0.2", "--rounds", "7", "--sampling", "with_replacement", "--json"),
        *("--target", "2", "--initial-amplitude", "3", "--spectrum-decay", "0.5"),
    )
    assert outcome.code == 0
    scenario = Scenario(
        "2x3,4x3",
        num_samples=(10, 10, 10, 30, 20, 20),
        cohort_size=2,
        drift_mean=0.1,
        drift_std=0.2,
        rounds=7,
        sampling="with_replacement",
        target_amplitude=2.0,
        initial_amplitude=3.0,
        spectrum_decay=0.5,
    )
    assert json.loads(outcome.out) == comparison_record(compare(scenario))
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--ranks", "4x"), "ranks='4x'"),
        (("--gain", "0.9"), "--gain='0.9'"),
        (("--gain", "0.9,-1"), "gain_std=-1.0"),
        (("--drift", "much"), "--drift='much'"),
        (("--drift", "1,2,3"), "--drift='1,2,3'"),
        (("--cohort", "7"), "cohort_size=7"),
        (("--rounds", "0"), "rounds=0"),
        (("--num-samples", "1,2"), "num_samples=[1.0, 2.0]"),
        (("--num-samples", "ten"), "--num-samples='ten'"),
        (("--num-samples", "5x-1,5x6"), "--num-samples='5x-1,5x6'"),
        (("--allocation", "importance"), "allocation='importance'"),
        (("--sampling", "seldom"), "sampling='seldom'"),
        (("--local-time", "-1"), "local_time=-1.0"),
        (("--target", "0"), "target=0.0"),
        (("--out", "taken"), "--out='taken'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line(
    fedlora: Callable, here: Path, options: tuple[str, ...], named: str
) -> None:
    Path("taken").write_text("mine")
    outcome = fedlora("predict", "--ranks", "2x2,4x2", *options)
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert f"{named}: expected " in line
    assert [path.name for path in here.iterdir()] == ["taken"]


@pytest.mark.slow
def test_the_picture_shows_each_energy_once() -> None:
    spread = {"gain_mean": 0.9, "gain_std": 0.1, "drift_std": 0.1}
    rows = compare(Scenario("2x4,4x2", cohort_size=3, rounds=20, **spread))
    style.apply()
    drawn, axes = predictions.draw_predict(rows)
    titles = [axis.get_title().replace("\N{NO-BREAK SPACE}", " ") for axis in axes]
    assert titles == ["fedavg, ffa", "flora", "raflora (zero)", "raflora (carry)"]
    for axis, label in zip(axes, ("fedavg", "flora"), strict=False):
        (found,) = [one for one in rows if one.label == label]
        solid = [line for line in axis.lines if line.get_linestyle() == "-"]
        dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
        for h, line in enumerate(solid):
            assert (line.get_ydata() == found.of("energy")[:, h]).all()
        assert [line.get_ydata()[0] for line in dashed] == found.of("energy_floor").tolist()
    assert "hetlora" in drawn.get_supxlabel()
