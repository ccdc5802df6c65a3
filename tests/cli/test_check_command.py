"""`fedlora-sim check`: laws tested on a built-in or a custom rule; rules by their module."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from train_cases import RUN, use_small_task, write_scenario

from fedlora_cli.options import load_rule
from fedlora_sim.conformance import CHECKS
from fedlora_sim.errors import InputError
from fedlora_sim.rules import AggregationRule, FedAvg, RaFLoRA, get_rule
from fedlora_sim.rules.external import ExternalRule
from fedlora_sim.storage import load_dataset

FEW = ("--examples", "4")
LAWS = ("client_order", "partition_identity", "empty_partition_zero", "rank_bound")
OWN = '''
from dataclasses import dataclass
from typing import ClassVar

from fedlora_sim.rules import FedAvg, Aggregated, Properties
from fedlora_sim.lora import LoRAFactors


@dataclass(frozen=True)
class First(FedAvg):
    """The first client's update, times a number."""

    times: float = 1.0
    name: ClassVar[str] = "first"

    def step(self, updates, weights, context, state):
        return super().step(updates[:1], [self.times], context, state)


class Last:
    """The last client's update, as it is, in a class that is no dataclass."""

    name, source = "last", "a test"
    properties = Properties(client_order=True)

    def step(self, updates, weights, context, state):
        return Aggregated(LoRAFactors.from_delta(updates[-1].delta(), context.r_max)), {}


class Needy(Last):
    name = "needy"

    def __init__(self, value):
        self.value = value


class Silent(Last):
    name, properties = "silent", None


made = First(times=2.0)
number = 3
'''


@pytest.fixture
def module(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Provide a module of rules in the working folder, forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (here / "own_rules.py").write_text(OWN)
    yield "own_rules"
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {"own_rules", "broken_rules_here", "pkg", "fedavg"}:
            del sys.modules[name]


def laws(*names: str) -> tuple[str, ...]:
    return tuple(word for name in names for word in ("--checks", name))


@pytest.mark.slow
def test_every_status_is_shown_and_counted(fedlora: Callable) -> None:
    done = fedlora("check", "fedavg", *FEW, *laws(*LAWS))
    assert (done.code, done.err) == (0, "")  # without a terminal no progress is shown
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 110
    rows = [line.split() for line in lines]
    told = {row[2]: (row[0], row[1]) for row in rows if len(row) > 2 and row[2] in LAWS}
    assert told == {
        "client_order": ("✓", "passed"),
        "partition_identity": ("≠", "expected"),
        "rank_bound": ("✓", "passed"),
    }
    assert ["–", "skipped", "1", "check", "untested:"] in [row[:5] for row in rows]
    assert ["empty_partition_zero"] in rows
    assert "The order of the clients does not matter." in done.out
    assert lines[-1] == (
        "fedavg: 2 passed, 1 expected (absent, as declared), 0 failed, 1 skipped; "
        "4 examples, seed 0"
    )


@pytest.mark.slow
def test_all_laws_are_held_against_a_rule_unless_some_are_named(fedlora: Callable) -> None:
    done = fedlora("check", "raflora:canonicalize=true", "--examples", "1", "--json")
    found = json.loads(done.out)
    assert done.code == 0
    assert [result["check"] for result in found["results"]] == [check.name for check in CHECKS]
    assert found["rule"] == "raflora:canonicalize=true"
    assert (found["seed"], found["examples"]) == (0, 1)
    assert sum(found["counts"].values()) == len(CHECKS)
    assert set(found["counts"]) == {"passed", "expected", "failed", "skipped"}


def run_pasted(text: str) -> tuple[dict[str, object], torch.Tensor]:
    """Run the printed code and return its results."""
    names: dict[str, object] = {}
    exec(text, names)
    return names, names["result"].delta()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_failure_has_a_reason_and_code_that_shows_it(
    fedlora: Callable, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = fedlora("check", f"{module}:First", *FEW, *laws("client_order"))
    assert done.code == 1
    assert "✗ failed" in done.out
    assert "0 passed, 0 expected (absent, as declared), 1 failed, 0 skipped" in done.out
    _, _, text = done.out.partition("FAILED client_order: The order of the clients does not")
    reason, _, text = text.partition("The smallest case that was found:\n")
    assert re.search(r"clients in the order \[.*\] differ by .* in norm", reason)
    names, found = run_pasted(text.rpartition("\n\n")[0])
    first, *others = names["updates"]  # type: ignore[misc]
    assert torch.allclose(found, first.delta())
    assert any(not torch.equal(other.delta(), first.delta()) for other in others)
    assert capsys.readouterr().out.startswith("tensor(")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "made"),
    [
        ("First", "rule = First(times=1.0)"),
        ("made", "rule = First(times=2.0)"),
        ("Last", "rule = Last()"),
        ("First:times=3.0", "rule = First(times=3.0)"),
    ],
)
def test_json_has_the_case_as_lists_and_as_code(
    fedlora: Callable, module: str, rule: str, made: str
) -> None:
    done = fedlora("check", f"{module}:{rule}", "--json", "--seed", "3", *FEW, *laws(*LAWS[:1]))
    assert done.code == 1
    found = json.loads(done.out)
    (result,) = found["results"]
    assert result["status"] == "failed"
    case = result["counterexample"]
    assert made in case["code"]
    updates = run_pasted(case["code"])[0]["updates"]
    assert [u.lora_A.tolist() for u in updates] == [u["lora_A"] for u in case["updates"]]  # type: ignore[attr-defined]
    assert found["seed"] == 3
    if rule == "First":
        words = ("check", f"{module}:First", "--json", "--seed", "3", *FEW, *laws(*LAWS[:1]))
        assert fedlora(*words).out == done.out


@pytest.mark.slow
def test_a_registered_rule_is_pasted_by_its_name(fedlora: Callable) -> None:
    done = fedlora("check", "fedex:residual_rank=1", "--json", *FEW, *laws("exact"))
    case = json.loads(done.out)["results"][0]["counterexample"]
    assert "rule = get_rule('fedex:residual_rank=1')" in case["code"]
    run_pasted(case["code"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("raflor",), "rule='raflor': expected one of .*did you mean 'raflora'"),
        (("fedavg", "--checks", "orders"), "check='orders': expected one of"),
        (("fedavg", "--checks", "client_orders"), "did you mean 'client_order'"),
        (("fedavg", "--examples", "0"), "examples=0: expected a whole number of at least 1"),
        (("fedavg", "--seed", "-1"), "--seed=-1: expected a whole number"),
        (
            ("own_rules:Firts",),
            "rule='own_rules:Firts': expected a name in own_rules, which has no",
        ),
        (("own_rules:number",), "rule='own_rules:number': expected a rule .*; this is of type int"),
        (("own_rules:FedAvg:x=1",), "rule='own_rules:FedAvg:x=1': x=1: expected no option"),
        (("own_rules:made:times=1",), "expected none with a rule object"),
        (("own_rules:Needy",), r"rule='own_rules:Needy': .*without arguments \(.*'value'"),
        (("own_rules:Silent",), "Silent.properties=None: expected Properties"),
        (("own_rules:",), "rule='own_rules:': expected a name in own_rules"),
        (("no_rules_here:First",), "rule='no_rules_here:First': .*there is no no_rules_here"),
        (("pkg.no_rules:First",), "rule='pkg.no_rules:First': .*there is no pkg.no_rules"),
        (("broken_rules_here:First",), r"a module that imports \(ZeroDivisionError: "),
        (("pkg.needy:First",), r"a module that imports \(No module named 'not_installed'\)"),
        (("pkg.ends:First",), r"a module that imports \(SystemExit: 3\)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.usefixtures("module")
def test_bad_input_is_one_line(
    fedlora: Callable, here: Path, arguments: tuple[str, ...], message: str
) -> None:
    (here / "broken_rules_here.py").write_text("1 / 0")
    (here / "pkg").mkdir()
    (here / "pkg" / "needy.py").write_text("import not_installed")
    (here / "pkg" / "ends.py").write_text("raise SystemExit(3)")
    done = fedlora("check", *arguments)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("fedlora-sim: ")
    assert re.search(message, line), line


def test_without_hypothesis_the_hint_says_how_to_install_it(
    fedlora: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    done = fedlora("check", "fedavg")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "fedlora-sim: hypothesis, which searches for counterexamples: "
        "pip install 'fedlora-sim[check]'\n"
    )


def test_a_registered_name_wins_over_a_module(module: str, here: Path) -> None:
    (here / "fedavg.py").write_text(OWN)
    with pytest.raises(InputError, match=r"rule option='First': expected option=value"):
        load_rule("fedavg:First")
    assert load_rule("fedavg") == FedAvg()
    assert load_rule(" RaFLoRA:canonicalize=true") == RaFLoRA(canonicalize=True)
    assert load_rule("raflora: canonicalize = true ") == RaFLoRA(canonicalize=True)
    with pytest.raises(InputError, match="rule='own_rules'"):
        load_rule(f"{module}:times=3")  # an option, so it is not a name in a module


def test_a_rule_is_loaded_from_its_module(module: str, here: Path) -> None:
    (here / "pkg").mkdir()
    (here / "pkg" / "deep.py").write_text("from own_rules import First\nclass Outer:\n  R = First")
    assert load_rule(f"{module}:First").label == "first"
    assert load_rule(f" {module} : First : times=3 ").label == "first:times=3"
    assert load_rule(f"{module}:made").label == "first:times=2.0"
    assert load_rule("pkg.deep:Outer.R").label == "first"
    last = load_rule(f"{module}:Last")
    assert isinstance(last, ExternalRule)
    assert isinstance(last, AggregationRule)
    assert get_rule(last) is last


@pytest.mark.slow
def test_rules_from_modules_are_simulated_and_trained(
    fedlora: Callable, module: str, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    settings = ("--fidelity", "matrix", "--ranks", "2x2,4x1", "--rounds", "2", "--out", "x.nc")
    done = fedlora("simulate", *settings, "--rule", f"fedavg,{module}:Last")
    assert done.code == 0, done.err
    assert load_dataset("x.nc").rule.values.tolist() == ["fedavg", "last"]
    done = fedlora("simulate", *settings, "--rule", f"{module}:Last,{module}:Last")
    assert done.code == 2
    assert "expected each rule once" in done.err
    use_small_task(monkeypatch)
    write_scenario()
    done = fedlora("train", *RUN, "--rule", f"{module}:Last")
    assert done.code == 0, done.err
    assert load_dataset("run/run.nc").attrs["rule"] == "last"


@pytest.mark.slow
def test_pieces_of_another_version_of_a_rule_are_not_taken(
    fedlora: Callable, module: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped run continues only with the code that it started with; otherwise it restarts."""
    settings = ("--fidelity", "matrix", "--ranks", "2x2,4x1", "--rounds", "2", "--seeds", "60")
    command = ("simulate", *settings, "--rule", f"{module}:Last", "--out", "x.nc")
    import fedlora_cli.simulate as simulate

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(simulate, "save_dataset", stopped)
        assert fedlora(*command).code == 130
    (kept,) = here.glob(".x.nc.parts/*")
    (here / f"{module}.py").write_text(OWN + "\n# another version\n")
    done = fedlora(*command)
    assert done.code == 0
    assert "going on from" not in done.err
    assert kept.exists()
