"""Every command under a C locale: all output is printed; no text file depends on the locale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_cases
from promises import Promise
from safetensors.torch import save_file

from fedlora_cli.main import COMMANDS
from fedlora_cli.prove import NO_COQ
from fedlora_cli.terminal import ASCII_FORMS, print_anywhere

# One process for all commands, because importing them takes most of the time. It trains the small
# task: a model of the digits is pretrained for seconds.
PROGRAM = """
import json, os, sys
import pytest
from train_cases import use_small_task
from fedlora_cli.main import main
use_small_task(pytest.MonkeyPatch())
for arguments in json.load(open(sys.argv[1], encoding="utf-8")):
    sys.argv = ["fedlora-sim", *(os.fsdecode(text.encode()) for text in arguments)]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    print(f"END {arguments[0]} {code}", flush=True)
"""
OUT = "r\u00e9sultats \u221e"
"""A name with characters outside of ASCII."""
SCENARIO = """# \u03c1 \u2260 1
ranks = "2x2,4x1"
"""
GRID = """# \u03c1 \u2260 1
[scenario]
ranks = "2x2,4x1"
rounds = 2
[grid]
gain_std = [0.0, 0.1]
"""


def _adapter(folder: Path) -> str:
    folder.mkdir()
    options = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["caf\u00e9"]}
    text = json.dumps(options, ensure_ascii=False)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    path = "base_model.model.caf\u00e9"
    tensors = {f"{path}.lora_A.weight": torch.ones(2, 6), f"{path}.lora_B.weight": torch.ones(5, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


@pytest.mark.slow
def test_every_command_under_a_c_locale(tmp_path: Path, promise: Promise) -> None:
    count = promise(
        "Every command works under a C locale: all that it prints and writes arrives.",
        "commands",
    )
    (tmp_path / "scenario.toml").write_text(SCENARIO, encoding="utf-8")
    (tmp_path / "grid.toml").write_text(GRID, encoding="utf-8")
    train = ("--set", "ranks=2,3", "--set", "rounds=1", "--set", "local_epochs=1")
    clients = [_adapter(tmp_path / f"client-{k}") for k in range(2)]
    commands = [
        ["rules"],
        ["study", "--list"],
        ["predict", "--ranks", "2x2,4x1", "--rounds", "5", "--out", f"{OUT}/predict"],
        ["design", "--clients", "3", "--total-rank", "9", "--levels", "2,4", "--rounds", "3"],
        ["simulate", "--scenario", "scenario.toml", "--rounds", "2", "--out", f"{OUT}/x.nc"],
        ["sweep", "grid.toml", "--out", f"{OUT}/sweep"],
        ["check", "fedavg", "--checks", "homogeneous", "--examples", "5"],
        ["collapse", "fedavg", "--scenario", "full", "--seeds", "2"],
        ["verify", "--quick", "--claim", "staircase", "--out", f"{OUT}/verify", "--html"],
        ["report", f"{OUT}/verify"],
        ["train", *train, "--out", f"{OUT}/train"],
        ["diagnose", f"{OUT}/train", "--out", f"{OUT}/diagnosis", "--html"],
        ["export", f"{OUT}/train", "--round", "1", "--client", "0", "--out", f"{OUT}/e"],
        ["aggregate", *clients, "--out", f"{OUT}/adapter"],
        ["prove", "--claim", "equal-ranks-identity"],
        ["simulate", "--ranks", "\u221e", "--out", "y.nc"],
    ]
    assert {arguments[0] for arguments in commands} == set(COMMANDS)
    (tmp_path / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    path = [str(Path(train_cases.__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "commands.json"],
        cwd=tmp_path,
        env={**os.environ, **locale, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        capture_output=True,
        timeout=600,
        check=False,
    )
    printed, errors = done.stdout.decode("ascii"), done.stderr.decode("ascii", "replace")
    assert "UnicodeEncodeError" not in printed + errors
    assert "Traceback" not in printed + errors
    ends = [line.split()[1:] for line in printed.splitlines() if line.startswith("END ")]
    codes = [code for _, code in ends]
    assert [name for name, _ in ends] == [arguments[0] for arguments in commands], errors
    proved = "0" if shutil.which("coqc") else str(NO_COQ)
    assert codes[:-2] == ["0"] * (len(commands) - 2), errors
    assert codes[-2:] == [proved, "2"]
    assert "ranks='\\udce2\\udc88\\udc9e': expected" in errors
    report = (tmp_path / OUT / "verify" / "report.json").read_text(encoding="utf-8")
    assert json.loads(report)["claims"]
    count(len(commands))


def test_forms_in_ascii(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print_anywhere()
        print("\u00d7 \u00b1 \u00e9 \u4e2d \udc80")
    assert path.read_bytes() == b"x +/- e \\u4e2d \\udc80\n"
    for form in ASCII_FORMS.values():
        assert form.isascii()
