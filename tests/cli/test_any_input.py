"""Public functions and commands with any input: a result, or one line that names the argument.

Every argument of every function takes each of the values below, one argument at a time. The call
quickly returns a result or raises an `InputError` or Python's `TypeError`, and no other error.
"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Callable
from dataclasses import MISSING, fields
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from promises import ONE_LINE, Promise

from analysis import closed_form
from analysis.design import design
from analysis.predict import compare, predict
from fedlora_sim import (
    Federation,
    LoRAFactors,
    Scenario,
    aggregate,
    errors,
    open_sweep,
    parse_ranks,
    simulate,
    simulate_many,
)
from fedlora_sim.errors import LINE, InputError
from fedlora_sim.federation import MOST_CARRIED, MOST_RANK
from fedlora_sim.peft.patterns import LONGEST, MOST_MATCHES
from fedlora_sim.peft.patterns import SECONDS as SECONDS_OF_PATTERNS
from fedlora_sim.peft.read import MOST_TENSORS
from fedlora_sim.rules import get_rule
from fedlora_sim.scenario import LEAST_ALPHA, MOST_ALPHA
from fedlora_sim.simulate import MOST_NUMBERS
from fedlora_sim.strict_json import DEEPEST
from fedlora_sim.strict_json import MOST_BYTES as MOST_JSON
from fedlora_sim.sweep.grid import MOST_ROWS, MOST_RUNS, read_grid
from fedlora_sim.tasks.plain_pickle import MOST_BYTES as MOST_PICKLE

SECONDS = 5.0
"""Processor time of one call."""


class Rude:
    """All methods that a check may call fail, each with another error."""

    def __repr__(self) -> str:
        raise SystemError

    def __float__(self) -> float:
        raise OverflowError

    def __int__(self) -> int:
        raise MemoryError

    def __iter__(self):
        raise RuntimeError

    def __len__(self) -> int:
        raise OverflowError


def values() -> dict[str, Any]:
    """Return new values for an argument, because one of them can be used only once."""
    return {
        **{repr(x): x for x in (None, True, 0, -1, -0.0, 2**63, 10**9, 5e-324, 1e308, "", "x")},
        **{str(x): float(x) for x in ("nan", "inf", "-inf", "-1e308")},
        "10**400": 10**400,
        "-10**400": -(10**400),
        "digits": "9" * 5000,
        "terminal": "\x1b[2J\n\u202e",
        "bytes": b"x",
        "complex": 1 + 2j,
        "no items": [],
        "nested": [[1], [2, 3]],
        "mapping": {"a": 1},
        "numbers as keys": {2: 1, 3: 1},
        "set": {1, 2},
        "type": int,
        "Decimal": Decimal("1e1000"),
        "numpy NaN": np.float64("nan"),
        "numpy number": np.int64(2**62),
        "numpy objects": np.array([object()]),
        "huge sum": [1e308, 1e308],
        "infinities": [float("inf")] * 2,
        "huge numbers": [10**400] * 2,
        "texts": ["a", None],
        "meta": torch.empty(3, 4, device="meta"),
        "sparse": torch.eye(4).to_sparse(),
        "complex tensor": torch.ones(3, 4, dtype=torch.complex64),
        "float8": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "endless": itertools.count(),
        "long range": range(10**9),
        "many clients": "1x1000000000",
        "high rank": "1000000000x1",
        "rude": Rude(),
    }


def update(rank: int) -> LoRAFactors:
    return LoRAFactors(torch.ones(rank, 6), torch.ones(5, rank))


SCENARIO = Scenario("2,3", rounds=2)
FIELDS = {f.name: f.default for f in fields(Scenario) if f.default is not MISSING} | {
    "ranks": "2,3"
}
VALUES = {"gain_std": 0.1, "initial_amplitude": 1.0}
OF_CLOSED_FORMS: dict[str, Any] = {"rule": "fedavg", "coverage": 0.5, "layers": 1}


def closed_form_calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    found = {}
    for name in dir(closed_form):
        function = getattr(closed_form, name)
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        arguments: dict[str, Any] = {}
        for key, p in inspect.signature(function).parameters.items():
            if key == "scenario":
                flow = name.startswith("flow") or name == "collapse_threshold"
                loss = {"local_loss": "quadratic"} if flow else {}
                arguments[key] = SCENARIO.replace(**loss)
            elif p.kind is p.VAR_KEYWORD:
                own = {"target": 1.0} if flow else VALUES
                arguments |= {key: own[key] for key in own}
            else:
                arguments[key] = OF_CLOSED_FORMS.get(key, 1.0)
        found[f"closed_form.{name}"] = (function, arguments)
    return found


def grid_of(table: str, field: str, value: object) -> object:
    base = {} if field == "ranks" else {"ranks": "2,3"}
    own = {field: value} if table != "scenario" else {**base, field: value}
    return read_grid({"scenario": base, table: own})


CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "LoRAFactors": (
        LoRAFactors,
        {"lora_A": torch.ones(2, 4), "lora_B": torch.ones(3, 2), "scaling": 1.0},
    ),
    "from_delta": (LoRAFactors.from_delta, {"W": torch.ones(4, 5), "r": 2, "scaling": 1.0}),
    "truncate": (update(3).truncate, {"r": 2}),
    "rescale": (update(3).rescale, {"scaling": 2.0}),
    "parse_ranks": (parse_ranks, {"ranks": "2,3"}),
    "Federation": (
        Federation,
        {"ranks": "2,3", "num_samples": (1, 2), "cohort_size": 1, "sampling": "bernoulli"},
    ),
    "aggregate": (
        aggregate,
        {
            "updates": [update(2), update(3)],
            "num_samples": [1, 2],
            "rule": "raflora",
            "rank_levels": [2, 3],
            "positions": [[0, 1], [0, 1, 2]],
            "previous": update(3),
            "empty_partition": "carry",
            "rank": 2,
            "scaling": 1.0,
        },
    ),
    "get_rule": (get_rule, {"rule": "raflora"}),
    "simulate": (simulate, {"scenario": SCENARIO, "rule": "fedavg", "seed": 0}),
    "simulate_many": (simulate_many, {"scenarios": [SCENARIO], "rule": "fedavg", "seed": 0}),
    "Scenario": (Scenario, FIELDS),
    "Scenario of training": (Scenario, FIELDS | {"fidelity": "training"}),
    "from_mapping": (Scenario.from_mapping, {"values": {"ranks": "2"}}),
    "read_grid": (read_grid, {"source": {"scenario": {"ranks": "2"}}}),
    **{
        f"[{table}] {field}": (partial(grid_of, table, field), {"value": [1]})
        for table in ("scenario", "grid", "zip")
        for field in ("ranks", "seed", "rule", "gain_std", "num_samples")
    },
    "open_sweep": (open_sweep, {"folder": "none"}),
    "predict": (predict, {"scenario": SCENARIO, "rule": "fedavg"}),
    "compare": (compare, {"scenario": SCENARIO, "rules": ["fedavg"], "local_time": 0.5}),
    "design": (
        design,
        {
            **{"scenario": SCENARIO, "rules": ["fedavg"], "total_rank": 9, "communication": 1e4},
            **{"levels": [2, 4], "distinct": 2, "min_coverage": 0.0, "top": 3},
        },
    ),
    **closed_form_calls(),
}


def outcome(function: Callable[..., Any], arguments: dict[str, Any], where: str) -> str:
    """Return the message of a refusal; empty if there is a result."""
    try:
        function(**arguments)
    except (InputError, TypeError) as error:
        return str(error)
    except OSError:  # message of the system with the given path
        return ""
    except Exception as error:
        pytest.fail(f"{where}: {type(error).__name__}: {error}")
    return ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_any_value_of_every_argument(
    name: str, tmp_path: Path, monkeypatch, promise: Promise
) -> None:
    count = promise(ONE_LINE, "values of arguments")
    monkeypatch.chdir(tmp_path)
    function, arguments = CALLS[name]
    for argument in arguments:
        for kind, value in values().items():
            where = f"{name}({argument}={kind})"
            start = time.thread_time()
            refused = outcome(function, {**arguments, argument: value}, where)
            assert "\n" not in refused, where
            assert len(refused) <= LINE, where
            assert time.thread_time() - start < SECONDS, where
            count()


RANKS = ("--ranks", "2,3")
COMMANDS = {
    "simulate": ("simulate", "--out", "x.nc", "--rounds", "2", *RANKS),
    "predict": ("predict", "--json", *RANKS),
    "design": ("design", "--json", "--clients", "3", "--total-rank", "9"),
    "check": ("check", "fedavg", "--examples", "1", "--checks", "homogeneous"),
    "verify": ("verify", "--claim", "nothing"),
    "sweep": ("sweep", "none.toml", "--out", "s"),
    "aggregate": ("aggregate", "none", "--out", "a"),
    "export": ("export", "none", "--round", "1", "--out", "e", "--global"),
    "report": ("report", "none"),
    "train": ("train", "--out", "t"),
    "study": ("study", "none"),
    "collapse": ("collapse", "nothing"),
}
TEXTS = ("nan", "1e400", "9" * 400, "1000000000", "1x1000000000", "\x1b[2J", "", "-1", "caf\u00e9")
OPTIONS = {
    "simulate": (
        "--ranks",
        "--cohort",
        "--rounds",
        "--seeds",
        "--seed",
        "--rule",
        "--set",
        "--out",
    ),
    "predict": ("--ranks", "--cohort", "--gain", "--drift", "--num-samples", "--spectrum-decay"),
    "design": ("--clients", "--total-rank", "--levels", "--distinct", "--gain", "--top"),
    "check": ("--examples", "--seed", "--checks"),
    "verify": ("--claim", "--seed", "--device"),
    "sweep": ("--workers", "--task-seconds"),
    "aggregate": ("--samples", "--rank-levels", "--target-rank", "--seed", "--rule"),
    "export": ("--round", "--client"),
    "report": ("--out",),
    "train": ("--set", "--seed", "--rule", "--threads", "--keep"),
    "study": ("--workers", "--seeds", "--rules", "--set"),
    "collapse": ("--seeds", "--seed", "--scenario", "--figure"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COMMANDS)
def test_any_text_of_every_option(name: str, fedlora, here, promise: Promise) -> None:
    count = promise(ONE_LINE, "texts of options")
    for option in OPTIONS[name]:
        for text in TEXTS:
            where = f"{name} {option}={text[:20]!r}"
            done = fedlora(*COMMANDS[name], f"{option}={text}")
            assert done.code in (0, 1, 2), where
            assert "\x1b[2J" not in done.err, where
            last = done.err.splitlines()[-1:] if done.code == 2 else []
            assert all(len(line) <= LINE + len("fedlora-sim: ") for line in last), where
            count()


def test_the_documented_limits_are_those_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs/untrusted_files.md").read_text(encoding="utf-8")
    limits = (errors.MOST_ITEMS, errors.MOST_ROUNDS, errors.LINE, MOST_RANK, MOST_CARRIED)
    for limit in (*limits, MOST_NUMBERS, MOST_ROWS, MOST_RUNS, MOST_TENSORS, MOST_MATCHES, LONGEST):
        assert f"{limit:,}" in text, limit
    for limit in (LEAST_ALPHA, MOST_ALPHA):
        assert f"{limit:g}".replace("+", "") in text
    assert f"{MOST_JSON // 10**6} MB, {DEEPEST} levels" in text
    assert f"at most {MOST_PICKLE >> 30} GiB" in text
    assert f"{SECONDS_OF_PATTERNS:g} s of processor time" in text
