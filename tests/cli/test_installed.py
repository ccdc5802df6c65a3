"""The wheel, installed: types, the version, and a folder whose packages have our names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import pytest
from wheel_cases import PATIENCE, unpack_wheel

from fedlora_sim import import_path
from fedlora_sim.version import __version__

ROOT = Path(__file__).parents[2]
THEIRS = "raise SystemExit('the package of the research repository was imported')\n"
WITH_WORKERS = (
    *("staircase", "zero-pad-fourth-power", "raflora-flat", "hetlora-uniform"),
    *("raflora-carry-flat", "floor-drift-mean", "fedex-approach", "flora-linear-growth"),
)
"""Quick claims; with eight or more, two worker processes judge them if there are two cores."""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an environment with the project's wheel that shares this one's libraries."""
    place = tmp_path_factory.mktemp("installed")
    source, wheels, environment = (place / name for name in ("source", "wheels", "environment"))
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in import_path.PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(environment, symlinks=True)
    site = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = site / "site-packages"
    unpack_wheel(source, wheels, f"fedlora_sim-{__version__}-*.whl", site)
    # As plain folders of the path, so that editable installations in them are not followed.
    shared = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "shared.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")
    (metadata,) = site.glob("*.dist-info/entry_points.txt")
    entries = ConfigParser()
    entries.read(metadata, encoding="utf-8")
    module, _, function = entries["console_scripts"]["fedlora-sim"].partition(":")
    program = environment / "bin" / "fedlora-sim"
    program.write_text(
        f"#!{environment}/bin/python\nfrom {module} import {function}\n"
        f"if __name__ == '__main__':\n    {function}()\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return environment


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Create a research repository with packages of our names, and a rule in a module."""
    for name in ("analysis", "paper_figs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(THEIRS, encoding="utf-8")
    (tmp_path / "own_rules.py").write_text(
        "from fedlora_sim.rules import FedAvg\n\n\nclass Mine(FedAvg):\n    name = 'mine'\n",
        encoding="utf-8",
    )
    return tmp_path


def call(environment: Path, folder: Path, *arguments: str, **changed: str) -> str:
    program, *rest = arguments
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [environment / "bin" / program, *rest],
        cwd=folder,
        env=variables | {"OMP_NUM_THREADS": "1"} | changed,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


MODULE = ("python", "-m", "fedlora_sim")


@pytest.mark.slow
def test_the_wheel_has_types_and_prints_its_version(installed: Path, tmp_path: Path) -> None:
    (site,) = (installed / "lib").glob("*/site-packages")
    for package in import_path.PACKAGES:
        assert (site / package / "py.typed").is_file()
    assert (site / "analysis/__init__.pyi").is_file()
    where = "import analysis, fedlora_sim; print(analysis.__file__, fedlora_sim.__file__)"
    assert call(installed, tmp_path, "python", "-c", where).count(str(installed)) == 2
    for program in (("fedlora-sim",), MODULE):
        assert call(installed, tmp_path, *program, "--version") == f"fedlora-sim {__version__}\n"


@pytest.mark.slow
def test_the_command_line_works_in_a_folder_that_has_packages_of_our_names(
    installed: Path, theirs: Path
) -> None:
    """With `PYTHONPATH=.`, by `python -m`, in worker processes, and with the repository's rule."""
    predict = ("predict", "--ranks", "2x2,4x2", "--rounds", "5")
    out = call(installed, theirs, "fedlora-sim", *predict, PYTHONPATH=".")
    assert "raflora" in out
    claims = (text for name in WITH_WORKERS for text in ("--claim", name))
    out = call(installed, theirs, *MODULE, "verify", "--quick", *claims, "--out", "found")
    assert all(name in out for name in WITH_WORKERS)
    assert (theirs / "found/report.json").is_file()
    simulate = ("simulate", "--ranks", "2x2,4x2", "--rounds", "2", "--rule", "own_rules:Mine")
    call(installed, theirs, "fedlora-sim", *simulate, "--out", "run.nc")
    assert (theirs / "run.nc").is_file()


def test_folders_that_hide_our_packages_go_behind_them(
    theirs: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(tmp_path_factory.mktemp("other"))
    monkeypatch.chdir(theirs)
    for before, after in (
        ([other, str(ROOT)], [other, str(ROOT)]),
        (["", other, str(ROOT)], [other, str(ROOT), ""]),
        ([str(theirs), str(ROOT), other], [str(ROOT), other, str(theirs)]),
        ([str(theirs), other], [other, str(ROOT), str(theirs)]),
    ):
        monkeypatch.setattr(sys, "path", before)
        import_path.prefer_own_packages()
        assert sys.path == after
