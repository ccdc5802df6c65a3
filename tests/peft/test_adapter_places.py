"""Refused outputs: inputs, files, links, and folders with other content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedlora_sim.storage import replacing_folder


@pytest.mark.parametrize(
    ("out", "arguments", "named"),
    [
        ("a", ("--force",), "a folder apart from the input folder a"),
        ("a/out", ("--force",), "a folder apart from the input folder a"),
        (".", ("--force",), "a folder apart from the input folder a"),
        ("a/../b", ("--force",), "a folder apart from the input folder b"),
        ("last", ("--force", "--previous", "last"), "apart from the input folder last"),
        ("file", ("--force",), "it is a file"),
        ("file/out", (), "file is a file"),
        ("link", ("--force",), "link is a link"),
        ("there", (), "does not exist yet (or --force)"),
        ("empty", (), "does not exist yet (or --force)"),
        ("mine", ("--force",), "it also holds thesis.tex"),
        ("deep", ("--force",), "it also holds clients/rank-2/notes"),
        ("there", ("--force",), "it also holds README.md"),
        ("readme", ("--force",), "it also holds README.md"),
    ],
)
def test_outputs_that_are_in_the_way(refused, folders, out, arguments, named):
    for name in ("last", "there"):
        shutil.copytree("c", name)
    for name in ("mine", "deep"):
        with replacing_folder(Path(name), "aggregate", force=False) as new:
            shutil.copytree("c", new, dirs_exist_ok=True)
            shutil.copytree("c", new / "clients" / "rank-2")
    Path("file").write_text("mine")
    Path("empty").mkdir()
    Path("readme").mkdir()
    Path("readme", "README.md").write_text("a project")
    Path("mine", "thesis.tex").write_text("years of work")
    Path("deep/clients/rank-2/notes").mkdir()
    Path("link").symlink_to("there")
    line = refused("a", "b", "c", "--out", out, *arguments)
    assert f"--out='{out}'" in line
    assert named in line
