"""Start-up: slow imports happen only where they are needed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import analysis
import fedlora_sim
from fedlora_cli.main import COMMANDS, load_command

PUBLIC = {
    "fedlora_sim": (
        *("Scenario", "Federation", "LoRAFactors", "simulate", "simulate_many", "aggregate"),
        *("run_sweep", "open_sweep", "InputError", "register", "AggregationRule", "Properties"),
        *("Context", "Aggregated", "check_aggregator", "rule_names"),
        *("parse_ranks", "__version__"),
    ),
    "analysis": (
        *("predict", "design", "verify", "collapse_report", "calibrate", "forecast"),
        *("ledger", "summarize", "closed_form", "diagnose", "Diagnosis", "Monitor"),
    ),
}
"""Names that scripts of users rely on."""
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
    """Return names of the modules that a statement imports, in a separate process."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "import analysis.closed_form",
        "from fedlora_sim.rules import rule_names, get_rule; get_rule('raflora')",
        "import fedlora_cli.main",
        "from fedlora_sim import Federation, parse_ranks",
        "from fedlora_sim.federation import Federation",
        "import fedlora_sim; dir(fedlora_sim); fedlora_sim.__version__",
    ],
)
def test_modules_that_need_only_numpy_import_nothing_slow(statement: str) -> None:
    assert imported_by(statement).isdisjoint(HEAVY)


@pytest.mark.slow
def test_help_and_the_list_of_rules_do_not_import_torch() -> None:
    """One process asks for the help of all commands: torch takes longer than everything else."""
    asked = (
        "import contextlib, sys\n"
        "from fedlora_cli.main import COMMANDS, main\n"
        "for words in (['--help'], ['rules'], *([name, '--help'] for name in COMMANDS)):\n"
        "    sys.argv = ['fedlora-sim', *words]\n"
        "    with contextlib.redirect_stdout(None):\n"
        "        try:\n"
        "            main()\n"
        "        except SystemExit as end:\n"
        "            assert end.code == 0, words"
    )
    assert not imported_by(asked) & {"torch", "sklearn", "sympy", "matplotlib", "h5py"}


@pytest.mark.slow
def test_functions_are_given_and_not_the_modules_of_their_names() -> None:
    """In any order of imports, with one process per package and order."""
    modules_first = (
        "import fedlora_sim.simulate, analysis.predict, analysis.design\n"
        "from analysis.predict import predict as other\n"
        "assert other is analysis.predict"
    )
    functions_first = (
        "from analysis import predict, design\nfrom fedlora_sim import simulate\n"
        "import fedlora_sim.simulate, analysis.predict, analysis.design"
    )
    used = (
        "import fedlora_sim, analysis, types\n"
        "used = fedlora_sim.simulate, analysis.predict, analysis.design\n"
        "assert all(isinstance(one, types.FunctionType) for one in used)"
    )
    for order in (modules_first, functions_first, "pass"):
        assert "torch" in imported_by(f"{order}\n{used}")


@pytest.mark.parametrize("package", [fedlora_sim, analysis], ids=lambda package: package.__name__)
def test_public_names_are_exactly_the_listed_ones(package: ModuleType) -> None:
    assert dir(package) == sorted(PUBLIC[package.__name__])
    assert all(getattr(package, name) is not None for name in dir(package))
    with pytest.raises(AttributeError, match="simulation"):
        package.simulation  # noqa: B018


@pytest.mark.parametrize("name", COMMANDS)
def test_listed_help_is_that_of_the_command(name: str) -> None:
    documented = inspect.getdoc(load_command(name).callback) or ""
    assert COMMANDS[name] == documented.split("\n")[0]
