"""Grids: reading, and checks of all rows before any run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sweep_cases import SMALL, changed

from fedlora_sim import Scenario
from fedlora_sim.errors import InputError
from fedlora_sim.sweep.grid import Grid, label, labels, read_grid

CANONICAL = "raflora:canonicalize=true"
TOML = """
[scenario]
ranks = "2x2,4x2"
seed = {start = 5, count = 2}
[grid]
rule = ["RaFLoRA", "fedavg"]
rounds = [3, 4]
[zip]
gain_std = [0.1, 0.2]
drift_std = [0.3, 0.4]
"""


def test_rows_are_the_product_of_the_grid_and_the_walk_of_the_zip(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(TOML)
    grid = read_grid(path)
    assert [(axis.name, axis.fields) for axis in grid.axes] == [
        ("rule", ("rule",)),
        ("rounds", ("rounds",)),
        ("zip", ("gain_std", "drift_std")),
    ]
    assert grid.seeds == (5, 6)
    assert len(grid.rows) == 8
    last = grid.rows[-1]
    assert last.position == (1, 1, 1)
    assert last.point.rule == "fedavg"
    assert grid.rows[0].point.rule == "raflora"
    assert last.point.scenario == Scenario("2x2,4x2", rounds=4, gain_std=0.2, drift_std=0.4)
    assert Grid.of_tables(grid.tables()).rows == grid.rows


def test_seeds_may_be_zipped() -> None:
    tables = changed(SMALL, scenario={"seed": None}, zip={"seed": [4, 7], "drift_mean": [0.1, 0.2]})
    grid = read_grid(tables)
    assert grid.seeds is None
    assert [row.seeds for row in grid.rows[:2]] == [(4,), (7,)]


@pytest.mark.parametrize(
    "seed", [[0, 1, 2], {"start": 0, "count": 3}, {"count": 3}], ids=["list", "range", "count"]
)
@pytest.mark.parametrize("table", ["scenario", "grid"])
def test_seeds_are_a_list_or_a_range(table: str, seed: object) -> None:
    tables = changed(SMALL, scenario={"seed": None})
    assert read_grid(changed(tables, **{table: {"seed": seed}})).seeds == (0, 1, 2)


def test_tables_of_python_are_as_good_as_a_file() -> None:
    tables = {"scenario": {"ranks": (2, 2), "seed": range(3)}}
    grid = read_grid({**tables, "grid": {"gain_std": np.linspace(0, 1, 3), "rounds": (3, 4)}})
    assert grid.seeds == (0, 1, 2)
    assert Grid.of_tables(json.loads(json.dumps(grid.tables()))).rows == grid.rows


def test_one_seed_and_one_rule_need_no_field() -> None:
    grid = read_grid({"scenario": {"ranks": "2x2"}})
    assert (grid.seeds, len(grid.rows), grid.rows[0].point.rule) == ((0,), 1, "raflora")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"grd": {}}, "table='grd'.*'grid'"),
        ({"scenario": 3}, "scenario=3"),
        (changed(SMALL, grid={"gain_sdt": [1]}), "sweep field='gain_sdt'.*'gain_std'"),
        (changed(SMALL, scenario={"Rounds": 1}), "'rounds', in lower case"),
        (changed(SMALL, scenario={"roundz": 1}), "sweep field='roundz'.*'rounds'"),
        (changed(SMALL, grid={"drift_std": []}), r"\[grid\] drift_std=\[\]"),
        (changed(SMALL, grid={"drift_std": 0.1}), r"drift_std = 0.1 in \[scenario\]"),
        (changed(SMALL, scenario={"drift_std": [0.1]}), r"\[scenario\] drift_std=\[0\.1\]"),
        (changed(SMALL, grid={"rounds": [5, 6]}), r"\[grid\] rounds=.*\[scenario\] alone"),
        (changed(SMALL, zip={"d_in": [1, 2], "d_out": [3]}), r"zip=\{'d_in': 2, 'd_out': 1\}"),
        (changed(SMALL, grid={"seed": [1]}), r"\[grid\] seed"),
        (changed(SMALL, scenario={"seed": {"start": 3}}), r"seed=\{'start': 3\}"),
        (changed(SMALL, scenario={"seed": {"first": 3}}), "seed field='first'"),
        (changed(SMALL, scenario={"seed": [1, 1]}), r"seed=\[1, 1\]"),
        (changed(SMALL, scenario={"seed": "many"}), "seed='many'"),
        (changed(SMALL, scenario={"seed": -1}), "seed=-1"),
        (changed(SMALL, scenario={"seeds": 3}), "sweep field='seeds'.*'seed'"),
        (changed(SMALL, grid={"rule": ["fedavg", "fedavgg"]}), "row rule='fedavgg'.*'fedavg'"),
        (
            changed(SMALL, grid={"rule": ["my.rules:Mine"]}),
            r"row rule='my\.rules:Mine', gain_std=0\.0: rule='my\.rules:Mine'",
        ),
        (changed(SMALL, grid={"rule": [3]}), r"row rule=3, gain_std=0\.0: rule=3"),
        (changed(SMALL, grid={"gain_std": [0.1, -2]}), "row .*gain_std=-2: gain_std=-2"),
        (changed(SMALL, grid={"gain_std": [0.1, 0.10]}), "rows that differ.*gain_std=0.1"),
        (changed(SMALL, grid={"rule": ["ffa", "fedex", "FedEx"]}), "rows that differ"),
        (changed(SMALL, grid={"ranks": ["2x2", [2, 2]]}, scenario={"ranks": None}), "differ"),
        (
            changed(SMALL, grid={"rule": ["fedavg", "fedex"], "local_loss": ["none", "quadratic"]}),
            "row rule='fedavg', gain_std=0.1, local_loss='quadratic'",
        ),
        (
            changed(
                SMALL,
                scenario={"allocation": "random", "fidelity": "matrix"},
                grid={"rule": ["fedavg", CANONICAL]},
            ),
            "row rule=.raflora:canonicalize=true.*svd",
        ),
        (changed(SMALL, grid={"drift_std": [i / 1e5 for i in range(40_000)]}), "240,000 rows"),
        (changed(SMALL, scenario={"seed": {"count": 2_000_000}}), "6 rows x 2,000,000 seeds"),
    ],
)
def test_errors_of_a_grid_are_named(tables: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_grid(tables)


@pytest.mark.parametrize("text", ["[scenario", None])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "grid.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="grid="):
        read_grid(path)


def test_values_become_labels() -> None:
    assert label("ranks", [4, 4, 8]) == label("ranks", "4x2, 8") == "4x2,8x1"
    assert labels("cohort_size", [2, 3]).tolist() == [2, 3]
    assert labels("gain_std", [0, 0.5]).tolist() == [0.0, 0.5]
    assert labels("cohort_size", [None, 3]).tolist() == ["none", "3"]
    assert labels("use_rslora", [True, False]).tolist() == [True, False]
    assert labels("num_samples", [[1, 2], [3, 4]]).tolist() == ["1,2", "3,4"]


def test_a_point_is_named_by_its_fields_that_are_not_at_their_defaults() -> None:
    rows = [
        read_grid({"scenario": {"ranks": "2x2", **more}}).rows[0].point.id
        for more in ({}, {"gain_std": 0.0}, {"gain_std": 0.1}, {"rule": "fedavg"})
    ]
    assert rows[0] == rows[1]
    assert len(set(rows)) == 3
