"""Start-up: what costs seconds to import is imported by what needs it, and by nothing else."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import fedlora_sim
from fedlora_cli.main import COMMANDS, load_command

HEAVY = (
    "torch",
    "sklearn",
    "xarray",
    "pandas",
    "sympy",
    "matplotlib",
    "scipy.stats",
    "fedlora_sim.lowrank",
)


def imported_by(statement: str) -> set[str]:
    """Names of the modules that a statement imports, in a process of its own."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import analysis.closed_form",
        "import fedlora_cli.main",
        "from fedlora_sim import Federation, parse_ranks",
        "from fedlora_sim.federation import Federation",
        "import fedlora_sim; dir(fedlora_sim); fedlora_sim.__version__",
    ],
)
def test_what_needs_numpy_alone_imports_nothing_heavy(statement: str) -> None:
    assert imported_by(statement).isdisjoint(HEAVY)


@pytest.mark.slow
@pytest.mark.parametrize(
    "order", ["from fedlora_sim.simulate import simulate as other", "other = None"]
)
def test_the_package_gives_the_function_and_not_the_module_of_its_name(order: str) -> None:
    used = (
        "from fedlora_sim import simulate\nassert callable(simulate) and other in (None, simulate)"
    )
    assert "torch" in imported_by(f"{order}\n{used}")


def test_every_public_name_is_there() -> None:
    names = dir(fedlora_sim)
    assert {"simulate", "simulate_many", "Scenario", "LoRAFactors", "aggregate"} <= set(names)
    assert all(getattr(fedlora_sim, name) is not None for name in names)
    with pytest.raises(AttributeError, match="simulation"):
        fedlora_sim.simulation  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", COMMANDS)
def test_listed_help_is_that_of_the_command(name: str) -> None:
    documented = inspect.getdoc(load_command(name).callback) or ""
    assert COMMANDS[name] == documented.split("\n")[0]
