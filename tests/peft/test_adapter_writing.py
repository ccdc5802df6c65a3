"""Output folders are complete or absent if forced, interrupted, killed or disturbed."""

from __future__ import annotations

import errno
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from adapter_cases import RANKS, load, tree
from safetensors import SafetensorError

from fedlora_sim import storage
from fedlora_sim.errors import InputError
from fedlora_sim.peft import aggregate_adapters
from fedlora_sim.peft.write import AdapterContent, check_output, write_adapters
from fedlora_sim.storage import MARKER

SETTINGS = [{"r": r, "lora_alpha": 8} for r in RANKS]
TOKEN = "0123456789abcdef"
CONTENT = AdapterContent({"r": 1}, {"x": torch.ones(2)})


def hidden(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def contents(number):
    return [("", AdapterContent({"r": number}, {"x": torch.full((2,), float(number))}))]


@pytest.fixture
def out(tmp_path):
    write_adapters(tmp_path / "out", contents(1), force=False)
    return tmp_path / "out"


def test_the_command_reads_writes_and_reports(fedlora_aggregate, clients, here):
    folders = clients("gpt2", *SETTINGS)
    outcome = fedlora_aggregate(
        *folders, "--samples", "120,80,40", "--out", "new/out", "--client-folders"
    )
    assert outcome.code == 0
    assert outcome.err == ""
    assert "transformer.h.0.attn.c_attn" in outcome.out
    assert "rho before" in outcome.out
    assert "client 2: new/out/clients/rank-4" in outcome.out
    assert outcome.out.rstrip().endswith("wrote new/out")
    load("gpt2", here / "new" / "out")
    places = ("", *(f"clients/rank-{r}" for r in RANKS))
    files = ("adapter_config.json", "adapter_model.safetensors")
    wanted = {Path(place, name) for place in places for name in files}
    assert set(tree(here / "new" / "out")) == wanted | {Path("aggregation.json"), Path(MARKER)}
    assert hidden(here / "new") == []


def test_the_documented_command_runs(fedlora_aggregate, clients, here):
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
    (command,) = re.findall(r"```sh\nfedlora-sim aggregate (.*?)```", page, flags=re.DOTALL)
    for number, folder in enumerate(clients("gpt2", *SETTINGS), start=1):
        shutil.copytree(folder, here / f"client-{number}")
    assert fedlora_aggregate(*shlex.split(command.replace("\\\n", " "))).code == 0
    load("gpt2", here / "round-1")
    for rank in RANKS:
        load("gpt2", here / "round-1" / "clients" / f"rank-{rank}")


def test_force_replaces_an_older_output(fedlora_aggregate, clients, here):
    folders = clients("gpt2", *SETTINGS)
    assert fedlora_aggregate(*folders, "--out", "out", "--client-folders").code == 0
    again = fedlora_aggregate(*folders[:2], "--out", "out", "--rule", "flora", "--force")
    assert again.code == 0
    assert f"out is the sum of {Path('out', 'adapter')} and {Path('out', 'base')}" in again.out
    assert not (here / "out" / "clients").exists()
    assert [path.name for path in here.iterdir()] == ["out"]
    plain = fedlora_aggregate(*folders, "--out", "out", "--rule", "fedavg", "--force")
    assert plain.code == 0
    assert not (here / "out" / "base").exists()


def test_force_without_anything_there_and_onto_an_empty_folder(tmp_path):
    write_adapters(tmp_path / "a", contents(1), force=True)
    (tmp_path / "b").mkdir()
    write_adapters(tmp_path / "b", contents(1), force=True)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_write_that_fails_leaves_the_old_output(out, tmp_path):
    def broken():
        yield "", CONTENT
        raise KeyboardInterrupt

    before = tree(out)
    with pytest.raises(KeyboardInterrupt):
        write_adapters(out, broken(), force=True)
    assert tree(out) == before
    assert hidden(tmp_path) == []
    with pytest.raises(KeyboardInterrupt):
        write_adapters(tmp_path / "fresh", broken(), force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_an_error_of_the_system(out, tmp_path, monkeypatch):
    """It reaches the command line as such: one line, and the old output unchanged."""

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    before = tree(out)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_adapters(out, contents(2), force=True)
    assert caught.value.errno == errno.ENOSPC
    assert tree(out) == before
    assert hidden(tmp_path) == []


def test_without_an_exchange_a_swap_that_fails_brings_the_old_output_back(
    out, tmp_path, monkeypatch
):
    before, rename = tree(out), Path.rename

    def refuse_new(self, target):
        if self.name == "new":
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(OSError, match="no space"):
        write_adapters(out, contents(2), force=True)
    assert tree(out) == before
    assert hidden(tmp_path) == []


def test_the_old_output_is_never_deleted_while_it_is_the_only_one(out, tmp_path, monkeypatch):
    """All renames after the first fail: the old folder stays, and the next run restores it."""
    before, rename, done = tree(out), Path.rename, []

    def only_once(self, target):
        if done:
            raise OSError("gone read-only")
        done.append(self)
        return rename(self, target)

    monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", only_once)
        with pytest.raises(OSError, match="gone read-only"):
            write_adapters(out, contents(2), force=True)
    (work,) = hidden(tmp_path)
    assert tree(work / "old") == before
    check_output(out, (), force=True)
    assert tree(out) == before
    assert hidden(tmp_path) == []


def test_an_output_that_came_into_being_meanwhile_is_not_replaced(tmp_path):
    def slow():
        yield "", CONTENT
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "adapter_config.json").write_text("somebody else's")

    with pytest.raises(InputError, match="out="):
        write_adapters(tmp_path / "out", slow(), force=False)
    assert (tmp_path / "out" / "adapter_config.json").read_text() == "somebody else's"
    assert hidden(tmp_path) == []


def test_something_put_into_the_output_meanwhile_is_not_deleted(out):
    def slow():
        yield "", CONTENT
        (out / "thesis.tex").write_text("years of work")

    with pytest.raises(InputError, match=r"thesis\.tex"):
        write_adapters(out, slow(), force=True)
    assert (out / "thesis.tex").read_text() == "years of work"


def test_the_working_folder_of_a_living_run_is_left_alone(tmp_path):
    def meanwhile():
        yield "", CONTENT
        check_output(tmp_path / "out", (), force=False)
        assert len(hidden(tmp_path)) == 1

    write_adapters(tmp_path / "out", meanwhile(), force=True)
    assert hidden(tmp_path) == []


def test_folders_that_only_look_like_leftovers_stay(tmp_path):
    for name in (".out.notes.tmp", ".out.abcdefgh.tmp", f".out.{TOKEN}.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    check_output(tmp_path / "out", (), force=False)
    assert len(hidden(tmp_path)) == 3


def test_refusals_come_before_the_work(clients, tmp_path, monkeypatch):
    """An output that cannot be written is refused before any tensor is read."""
    write_adapters(tmp_path / "out", contents(1), force=False)
    monkeypatch.setattr("fedlora_sim.peft.aggregate.aggregate_layers", pytest.fail)
    with pytest.raises(InputError, match="--force"):
        aggregate_adapters(clients("gpt2", *SETTINGS), None, "fedavg", tmp_path / "out")


def test_systems_without_locks_keep_leftovers(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "fcntl", None)
    (tmp_path / f".out.{TOKEN}.tmp" / "new").mkdir(parents=True)
    check_output(tmp_path / "out", (), force=False)
    write_adapters(tmp_path / "out", contents(1), force=False)
    assert [path.name for path in hidden(tmp_path)] == [f".out.{TOKEN}.tmp"]
