"""Wheels for the tests of installed packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
PATIENCE = 300
"""Maximum seconds of a child process."""


def unpack_wheel(source: Path, wheels: Path, pattern: str, site: Path) -> None:
    """Build the wheel of a project, whose name fits the pattern, and unpack it into a folder."""
    wheels.mkdir()
    subprocess.run(
        [sys.executable, "-c", BUILD, str(wheels)],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    (wheel,) = wheels.glob(pattern)
    with ZipFile(wheel) as packed:
        packed.extractall(site)
