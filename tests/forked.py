"""Child processes forked from one server that has imported and run everything once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

FAULTS = Path(__file__).parent / "faults"


def forked(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start a child that calls a function of a module that it can import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faults_server"])
    child = context.Process(target=function, args=arguments)
    # Without the main module of this process, or a child would import all of pytest; the server
    # finds what it imports by PYTHONPATH alone.
    places = os.pathsep.join([*sys.path, str(FAULTS)])
    with (
        patch.dict(sys.modules, {"__main__": ModuleType("__main__")}),
        patch.dict(os.environ, {"PYTHONPATH": places}),
    ):
        child.start()
    return child
