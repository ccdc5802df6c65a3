"""`fedlora-sim export`: a run's adapters as folders, and the command that aggregates them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from train_cases import RUN, use_small_task, write_scenario

from fedlora_sim.finetune.checkpoints import load_state
from fedlora_sim.peft import AdapterFolder
from fedlora_sim.storage import load_dataset
from fedlora_sim.tolerances import relative

EXPORT = ("export", "run", "--out", "out")


@pytest.fixture
def trained(fedlora: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Return a run in the working folder, by any rule."""
    use_small_task(monkeypatch)

    def make(*arguments: str) -> None:
        write_scenario()
        assert fedlora("train", *RUN, *arguments).code == 0

    return make


def cohort(t: int) -> list[int]:
    """Return clients of a round, from the run's dataset."""
    return load_dataset("run/run.nc").cohort.values[0, t].tolist()


@pytest.mark.slow
def test_single_clients(fedlora: Callable, trained: Callable, here: Path) -> None:
    trained()
    clients = cohort(2)[:2]
    options = [text for k in clients for text in ("--client", str(k))]
    done = fedlora(*EXPORT, "--round", "2", *options)
    assert done.code == 0, done.err
    ranks = (2, 2, 2, 4, 4, 8)
    assert done.out.splitlines() == [
        f"client {k}, rank {ranks[k]}: out/client-{k}" for k in clients
    ]
    assert sorted(p.name for p in Path("out").iterdir()) == [f"client-{k}" for k in clients]
    for k in clients:
        folder = AdapterFolder(f"out/client-{k}")
        assert folder.config.rank == ranks[k]
        assert folder.config.options["base_model_name_or_path"] == "digits"


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["raflora", "flora"])
def test_the_printed_command_makes_the_round(
    fedlora: Callable, trained: Callable, rule: str
) -> None:
    trained("--rule", rule, "--set", "lora_alpha=4.0")
    done = fedlora(*EXPORT, "--round", "3", "--cohort")
    assert done.code == 0, done.err
    *lines, command = done.out.splitlines()
    assert len(lines) == len(cohort(3)) + 1
    program, *arguments = shlex.split(command)
    assert program == "fedlora-sim"
    assert fedlora(*arguments).code == 0
    result, cpu = AdapterFolder("out/aggregated"), torch.device("cpu")
    before, after = (load_state(Path("run/rounds"), t, cpu) for t in (2, 3))
    for name, delta in after.deltas().items():
        wanted = delta - before.base[name] if name in before.base else delta
        found = result.factors(name, torch.float32, cpu).delta()
        bound = relative("factorization", "float32") * delta.norm()
        assert (found - wanted).norm() <= bound


STATEFUL = """
import torch
from fedlora_sim.rules import Properties, get_rule


class Counting:
    \"\"\"FedAvg that counts its rounds.\"\"\"

    name, source, properties = "counting", "a test", Properties()

    def step(self, updates, weights, context, state):
        result, _ = get_rule("fedavg").step(updates, weights, context, {})
        return result, {"rounds": state.get("rounds", torch.zeros(())) + 1}
"""


@pytest.mark.slow
def test_a_custom_rule_is_named_again_and_its_state_is_used(
    fedlora: Callable, trained: Callable, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("counting_rule.py").write_text(STATEFUL)
    trained("--rule", "counting_rule:Counting")
    refused = fedlora(*EXPORT, "--round", "1", "--cohort")
    assert refused.code == 2
    assert "rule='counting': expected one of " in refused.err
    other = fedlora(*EXPORT, "--round", "1", "--cohort", "--rule", "fedavg")
    assert other.code == 2
    assert "rule='fedavg': expected 'counting', as in the run" in other.err
    done = fedlora(*EXPORT, "--round", "1", "--cohort", "--rule", "counting_rule:Counting")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "what counting keeps from round to round is in no folder"
    assert "fedlora-sim aggregate" not in done.out


@pytest.mark.slow
def test_global_adapter(fedlora: Callable, trained: Callable) -> None:
    trained("--rule", "fedex")
    done = fedlora(*EXPORT, "--round", "1", "--global")
    assert (done.code, done.out) == (0, "wrote out\n")
    assert sorted(p.name for p in Path("out").iterdir() if p.is_dir()) == ["adapter", "base"]
    refused = fedlora(*EXPORT, "--round", "2", "--global")
    assert refused.code == 2
    assert "or --force" in refused.err
    before = Path("out/adapter_model.safetensors").read_bytes()
    assert fedlora(*EXPORT, "--round", "2", "--global", "--force").code == 0
    assert Path("out/adapter_model.safetensors").read_bytes() != before


@pytest.mark.slow
def test_an_export_with_a_corrected_base_says_so(fedlora: Callable, trained: Callable) -> None:
    trained("--rule", "flora")
    client = ("--client", str(cohort(2)[0]))
    assert "--global --round 1" in fedlora(*EXPORT, "--round", "2", *client).out
    first = ("--client", str(cohort(1)[0]), "--force")
    assert "--global" not in fedlora(*EXPORT, "--round", "1", *first).out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--round", "1"), "adapters=[]: expected one of --client, --cohort and --global"),
        (
            ("--round", "1", "--cohort", "--global"),
            "adapters=['--cohort', '--global']: expected one of",
        ),
        (("--round", "4", "--cohort"), "round=4: expected a round whose start was kept, [1, 2, 3]"),
        (("--round", "0", "--client", "1"), "round=0: expected a round whose start was kept"),
        (("--round", "9", "--global"), "round=9: expected one whose state is in run/rounds"),
        (("--round", "1", "--client", "6"), "client=6: expected one whose update round 1 took in"),
        (
            ("--round", "1", "--global", "--out", "run/rounds/x"),
            "out='run/rounds/x': expected a folder apart from the input folder",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(
    fedlora: Callable, trained: Callable, here: Path, arguments: tuple[str, ...], message: str
) -> None:
    trained()
    before = sorted(here.rglob("*"))
    done = fedlora(*EXPORT, *arguments)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith(f"fedlora-sim: {message}")
    assert sorted(here.rglob("*")) == before


def test_a_folder_without_a_run(fedlora: Callable, here: Path) -> None:
    done = fedlora(*EXPORT, "--round", "1", "--global")
    assert done.code == 2
    assert done.err == (
        "fedlora-sim: folder='run': expected the folder of a run, as fedlora-sim train makes it\n"
    )


@pytest.mark.slow
def test_a_cohort_does_not_overwrite_existing_files(
    fedlora: Callable, trained: Callable, here: Path
) -> None:
    trained()
    Path("out/previous").mkdir(parents=True)
    Path("out/previous/mine.txt").write_text("mine")
    done = fedlora(*EXPORT, "--round", "1", "--cohort", "--force")
    assert done.code == 2
    assert "mine.txt" in done.err
    assert [p.name for p in Path("out").iterdir()] == ["previous"]
