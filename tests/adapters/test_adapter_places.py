"""Places that an output must not take: inputs, files, links, and folders with anything else in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


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
        ("readme", ("--force",), "it has no adapter_config.json"),
    ],
)
def test_outputs_that_are_in_the_way(refused, folders, out, arguments, named):
    for name in ("last", "there", "mine", "deep"):
        shutil.copytree("c", name)
    Path("file").write_text("mine")
    Path("empty").mkdir()
    Path("readme").mkdir()
    Path("readme", "README.md").write_text("a project")
    Path("mine", "thesis.tex").write_text("years of work")
    shutil.copytree("c", "deep/clients/rank-2")
    Path("deep/clients/rank-2/notes").mkdir()
    Path("link").symlink_to("there")
    line = refused("a", "b", "c", "--out", out, *arguments)
    assert f"--out='{out}'" in line
    assert named in line
