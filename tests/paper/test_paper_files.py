"""Files of the figures: complete, as listed in the manifest, with reproducible bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from fedlora_sim.storage import MARKER
from paper_figs import __main__ as command
from paper_figs import files as paper_figs_files
from paper_figs.files import FIGURES, draw_paper, stale

pytestmark = pytest.mark.usefixtures("coarse_figures")

FEW = ["allocation", "scaling"]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(manifest: dict[str, Any], out: Path, data: Path) -> None:
    """Check that all files exist with the bytes of the manifest."""
    told = {name for entry in manifest["figures"].values() for name in entry["files"]}
    there = {path.name for path in out.iterdir()}
    assert there == told | {"manifest.json", "captions.md", "captions.tex", MARKER}
    for name, entry in manifest["figures"].items():
        assert set(entry["files"]) == {f"{name}.{kind}" for kind in ("pdf", "png", "csv")}
        for file, digest in entry["files"].items():
            assert sha256(out / file) == digest
        assert entry["files"][f"{name}.csv"] == entry["data"]["sha256"]
        assert sha256(data / f"{name}.csv") == entry["data"]["sha256"]
        assert entry["data"]["command"] == f"python -m analysis.paper {name}"
        assert entry["command"] == f"python -m paper_figs {name}"
        assert entry["data"]["made_with"]["code"]
        assert entry["data"]["settings"]
        assert entry["caption"] in (out / "captions.md").read_text()


def test_files_and_manifest(
    paper_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = json.loads((paper_data / "scaling.json").read_text())["made_with"]["code"]
    monkeypatch.setattr(paper_figs_files, "code_fingerprint", lambda: made)
    seen: list[str] = []
    manifest = draw_paper(FEW, paper_data, tmp_path, seen.append)
    assert seen == FEW == list(manifest["figures"])
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    check(manifest, tmp_path, paper_data)
    assert (tmp_path / "allocation.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "allocation.pdf").read_bytes().startswith(b"%PDF")
    latex = (tmp_path / "captions.tex").read_text()
    assert latex.count(r"\includegraphics") == len(FEW)
    assert r"95\% intervals" in latex
    assert not plt.get_fignums()
    assert stale(manifest) == []
    # one more figure later: the manifest lists all in the order of the paper
    manifest = draw_paper(["ranks"], paper_data, tmp_path)
    assert list(manifest["figures"]) == [name for name in FIGURES if name in (*FEW, "ranks")]
    check(manifest, tmp_path, paper_data)


def test_data_of_other_code_are_reported(paper_data: Path, tmp_path: Path) -> None:
    for kind in ("csv", "json"):
        shutil.copy(paper_data / f"scaling.{kind}", tmp_path)
    record = json.loads((tmp_path / "scaling.json").read_text())
    record["made_with"]["code"] = "older"
    (tmp_path / "scaling.json").write_text(json.dumps(record))
    assert stale(draw_paper(["scaling"], tmp_path, tmp_path / "figures")) == ["scaling"]


def test_data_that_were_changed_by_hand_are_refused(paper_data: Path, tmp_path: Path) -> None:
    shutil.copy(paper_data / "scaling.json", tmp_path)
    text = (paper_data / "scaling.csv").read_text()
    (tmp_path / "scaling.csv").write_text(text.replace("1", "2", 1))
    with pytest.raises(ValueError, match="sha256"):
        draw_paper(["scaling"], tmp_path, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_the_command(paper_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data", str(paper_data), "--out", str(tmp_path)]
    command.main(["scaling", "scaling", *where])
    assert "1 figures in" in capsys.readouterr().out
    for arguments, words in (
        (["scalling"], "scaling"),
        (["scaling", "--data", str(tmp_path / "none")], "run `make results`"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command.main(arguments)
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err


def in_another_process(names: list[str], data: Path, out: Path, monkeypatch: Any) -> None:
    code = (
        "import sys, pathlib, matplotlib; matplotlib.use('Agg');"
        "from paper_figs import style; style.RC['savefig.dpi'] = 40;"
        "from paper_figs.files import draw_paper;"
        "draw_paper(sys.argv[3:], pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    arguments = [sys.executable, "-c", code, str(data), str(out), *names]
    subprocess.run(arguments, check=True, timeout=300)


@pytest.mark.slow
@pytest.mark.deep
def test_another_process_gives_the_same_bytes(
    paper_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(FIGURES)
    here, there = tmp_path / "here", tmp_path / "there"
    draw_paper(names, paper_data, here)
    in_another_process(names, paper_data, there, monkeypatch)
    files = sorted(path.name for path in here.iterdir())
    assert files == sorted(path.name for path in there.iterdir())
    for name in files:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
