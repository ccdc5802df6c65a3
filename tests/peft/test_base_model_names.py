"""One base model under several names, and several base models."""

from __future__ import annotations

import json
import shutil

import pytest

from fedlora_sim.errors import InputError
from fedlora_sim.peft import aggregate_adapters
from fedlora_sim.peft.config import NAME, REVISION

CONFIG = "adapter_config.json"
CACHE = "/home/user/.cache/huggingface/hub/models--org--llama/snapshots"


@pytest.fixture
def named(clients, tmp_path):
    """Return a client's folder for every pair of a name and a revision."""

    def make(*names):
        folders = []
        for number, (name, revision) in enumerate(names):
            original = clients("gpt2", {"r": 2}, {"r": 4})[number % 2]
            folder = shutil.copytree(original, tmp_path / str(number))
            options = json.loads((folder / CONFIG).read_text())
            (folder / CONFIG).write_text(json.dumps({**options, NAME: name, REVISION: revision}))
            folders.append(folder)
        return folders

    return make


def written(folder):
    options = json.loads((folder / CONFIG).read_text())
    return options[NAME], options[REVISION]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ([("org/llama", "v2"), ("org/llama", "v2")], ("org/llama", "v2")),
        ([("org/llama", "main"), ("org/llama", None)], ("org/llama", None)),
        ([("models/llama/", None), ("models/llama", None)], ("models/llama", None)),
        ([("C:\\m\\llama\\", None), ("C:\\m\\llama", None)], ("C:\\m\\llama", None)),
        ([("", None), (None, None)], (None, None)),
        ([("org/llama", None), (f"{CACHE}/0a1b", None)], ("org/llama", None)),
        ([(f"{CACHE}/0a1b/", "main"), ("org/llama", "0a1b")], ("org/llama", "0a1b")),
        ([("D:\\hub\\models--gpt2\\snapshots\\0a", None), ("gpt2", None)], ("gpt2", None)),
        ([(f"{CACHE}/0a1b", None), (f"/other{CACHE}/0a1b", None)], ("org/llama", "0a1b")),
        ([("/home/a/llama", None), ("/data/b/llama/", None)], ("/home/a/llama", None)),
        ([("/home/a/llama", None), ("D:\\b\\llama", None)], ("/home/a/llama", None)),
    ],
    ids=str,
)
def test_names_of_one_model(named, tmp_path, names, wanted):
    folders = named(*names)
    out = tmp_path / "out"
    report = aggregate_adapters(folders, None, "fedavg", out, client_folders=True)
    assert written(out) == wanted
    assert {written(out / place) for place in report.client_folders} == {wanted}
    assert report.base_models == tuple(dict.fromkeys(name for name, _ in names if name))
    aggregate_adapters(folders[1:], None, "fedavg", tmp_path / "next", previous=out)


@pytest.mark.parametrize(
    ("names", "option"),
    [
        ([("org/llama", None), ("org/gpt", None)], NAME),
        ([("org/llama", None), ("other/llama", None)], NAME),
        ([("models/a/llama", None), ("models/b/llama", None)], NAME),
        ([("/home/a/checkpoint-500", None), ("/home/b/checkpoint-500", None)], NAME),
        ([("/home/a/model", None), ("/home/b/model", None)], NAME),
        ([("org/llama", None), ("org/llama", "v2")], REVISION),
        ([("org/llama", "v2"), (f"{CACHE}/0a1b", None)], NAME),
        ([(f"{CACHE}/0a1b", None), (f"{CACHE}/2c3d", None)], NAME),
        ([("org/llama", None), (f"{CACHE}/0a1b", None), (f"{CACHE}/2c3d", None)], NAME),
        ([("/home/a/llama", None), ("/home/b/llama", "v2")], NAME),
    ],
    ids=str,
)
def test_names_that_may_be_two_models(named, tmp_path, names, option):
    folders = named(*names)
    last = folders[-1] / CONFIG
    with pytest.raises(InputError) as refusal:
        aggregate_adapters(folders, None, "fedavg", tmp_path / "out")
    assert str(refusal.value).startswith(f"{last}: {option}=")
    assert "pass base_model='NAME'" in str(refusal.value)
    aggregate_adapters(folders, None, "fedavg", tmp_path / "out", base_model="org/mine")
    assert written(tmp_path / "out")[0] == "org/mine"


def test_two_folders_that_are_both_here_are_two_models(named, tmp_path):
    places = [tmp_path / "one" / "llama", tmp_path / "two" / "llama"]
    for place in places:
        place.mkdir(parents=True)
    with pytest.raises(InputError, match=NAME):
        aggregate_adapters(named(*((str(p), None) for p in places)), None, "fedavg", tmp_path / "o")


def test_the_option_of_the_command_line(named, tmp_path, fedlora_aggregate):
    folders = named(("org/llama", None), ("org/gpt", None))
    refusal = fedlora_aggregate(*folders, "--out", "out", "--rule", "fedavg")
    assert refusal.code == 2
    assert "pass --base-model NAME with the name to write" in refusal.err
    options = ("--out", "out", "--rule", "fedavg", "--base-model", "org/mine")
    outcome = fedlora_aggregate(*folders, *options)
    assert outcome.code == 0
    assert "base model: 'org/mine'; the clients name it 'org/llama', 'org/gpt'" in outcome.out
    assert fedlora_aggregate(*folders, "--out", "x", "--base-model", "").code == 2
