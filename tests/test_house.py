"""Structure of the packages: direction of imports, no cycles, unique names."""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fedlora_sim", "analysis", "paper_figs", "fedlora_cli")
FAST_PATH = (
    *("rules", "engines.spectral", "engines.cohorts", "engines.matrix", "lowrank"),
    *(
        f"finetune.{path.stem}"
        for path in (ROOT / "fedlora_sim/finetune").glob("*.py")
        if path.stem not in ("__init__", "batches")  # both draw the same batches
    ),
)


@cache
def modules():
    """Return every module of the project by dotted name."""
    found = {}
    for path in (p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module):
    return ast.parse(modules()[module].read_text())


@cache
def public_names(package):
    """Return the modules of a package's public names as listed in its `__init__.pyi`."""
    stub = modules().get(package, Path()).with_suffix(".pyi")
    if package not in modules() or not stub.is_file():
        return {}
    return {
        alias.name: ".".join(filter(None, (package, node.module)))
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        for alias in node.names
    }


@cache
def imports(module):
    """Return the dotted names that a module imports anywhere in the file."""
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def dependencies(module):
    """Return the modules that a module imports: for `from a import b` a.b, or a if b is a name.

    If a imports its public names on first use, this is the module of b.
    """
    return {
        name if name in modules() else owner(*name.rpartition(".")[::2])
        for name in imports(module)
        if inside(name, module.partition(".")[0])
    }


def owner(package, name):
    """Return the module that `from package import name` imports."""
    return public_names(package).get(name, package)


def inside(name, package):
    return name == package or name.startswith(f"{package}.")


def members(package):
    found = [module for module in modules() if inside(module, package)]
    assert found, f"no module in {package}"
    return found


@pytest.mark.parametrize(
    ("room", "above"),
    [
        ("fedlora_sim", ("analysis", "paper_figs", "fedlora_cli", "tests", "benchmarks")),
        ("analysis", ("paper_figs", "fedlora_cli", "tests", "benchmarks")),
        ("paper_figs", ("fedlora_cli", "tests", "benchmarks")),
    ],
)
def test_imports_have_one_direction(room, above):
    wrong = {
        (module, name)
        for module in members(room)
        if module != "fedlora_sim.__main__"  # starts the command line; no module imports it
        for name in imports(module)
        if any(inside(name, package) for package in above)
    }
    assert not wrong


def test_figures_never_simulate():
    engines = {"simulate", "simulate_many", "run_spectral", "run_matrix", "run_training"}
    for module in members("paper_figs"):
        assert not {name.rpartition(".")[2] for name in imports(module)} & engines
        calls = [node.func for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
        called = {getattr(call, "attr", getattr(call, "id", None)) for call in calls}
        assert not called & engines


def test_the_reference_shares_nothing_with_the_fast_path():
    """Neither directly nor through what it imports."""
    forbidden = [f"fedlora_sim.{name}" for name in FAST_PATH]
    seen, waiting = set(), set(members("fedlora_sim.reference"))
    while waiting:
        module = waiting.pop()
        seen.add(module)
        assert not [n for n in imports(module) for f in forbidden if inside(n, f)], module
        waiting |= dependencies(module) - seen


def test_there_are_no_import_cycles():
    graph = {module: dependencies(module) for package in PACKAGES for module in members(package)}
    order = list(TopologicalSorter(graph).static_order())
    assert sorted(order) == sorted(graph)


def test_public_names_are_those_of_the_stubs():
    assert all(public_names(package) for package in ("fedlora_sim", "analysis", "paper_figs"))
    for package in filter(public_names, modules()):
        listed = public_names(package)
        assert dir(importlib.import_module(package)) == sorted(listed)
    # A package without a stub lists what it gives in its __init__, each name once.
    for module, path in modules().items():
        names = [alias.asname for node in tree(module).body if isinstance(node, ast.ImportFrom)
                 for alias in node.names if alias.asname == alias.name]  # fmt: skip
        assert len(names) == len(set(names)), module
        assert not names or path.name == "__init__.py", f"{module}: exports are for packages"


def test_a_public_class_name_has_one_meaning():
    places = {}
    for module in modules():
        for node in tree(module).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


SAME_NAME = {
    "fedlora_sim": {
        "aggregate": "aggregation: of updates by a rule, of PEFT folders",
        "run": "what runs: a sweep, fine-tuning",
    },
    "analysis": {
        "allocation": "which directions clients carry: derivation and claims",
        "communication": "what a round sends: closed form and derivation",
        "drift": "the drift law of Adam: closed form, derivation, claims",
        "flow": "the exact flow of local training: closed form, derivation, claims",
        "ledger": "the energy ledger: the account of a run, claims on it",
        "noise": "noise in aggregates: derivation and claims",
        "participation": "partial participation: claims and the paper's numbers",
        "persistent": "clients whose gains last: closed form and derivation",
        "predict": "predictions: of a scenario, of a rule's collapse",
        "rates": "energy rates: derivation and claims",
        "report": "a report: of claims, of collapse, of a study, of a diagnosis",
        "sensitivities": "derivatives of the closed forms: numbers and derivation",
        "typical": "the typical run: closed form and derivation",
    },
    "paper_figs": {},
    "fedlora_cli": {},
}
"""File names that occur more than once in a package, each with one meaning."""


@pytest.mark.parametrize("package", PACKAGES)
def test_a_file_name_has_one_meaning_in_its_package(package):
    stems = [modules()[module].stem for module in members(package)]
    counts = Counter(stem for stem in stems if not stem.startswith("__"))
    assert {name for name, count in counts.items() if count > 1} == set(SAME_NAME[package])


def test_docstrings_promise_input_errors():
    """Every refusal is an `InputError`; readers of files make one of what `strict_json` raises."""
    promised = {
        module
        for module in modules()
        if re.search(r"^ +ValueError:( [a-z]|$)", modules()[module].read_text("utf-8"), re.M)
    }
    assert promised == {"fedlora_sim.strict_json"}


def test_one_module_writes_files():
    """Atomic writes, and the policy on files that are there, are in `fedlora_sim.storage` alone."""
    writers = r"\.(write_text|write_bytes|to_netcdf)\(|os\.(replace|rename|remove)\("
    others = rf"{writers}|shutil\.(copy|move)|(?<!\w)save_file\(|open\([^)]*['\"][wax]"
    found = {name for name, path in modules().items() if re.search(others, path.read_text("utf-8"))}
    assert found == {"fedlora_sim.storage"}


def test_every_text_file_names_its_encoding():
    # Otherwise the locale decides, and under LC_ALL=C results cannot be written.
    tracked = [
        *modules().values(),
        *(ROOT / "docs").rglob("*.py"),
        *ROOT.glob("benchmarks/**/*.py"),
    ]
    texts, named = ("read_text", "write_text", "open"), 0
    for path in tracked:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            called = ast.unparse(call.func)
            is_text = called == "open" or (called.rpartition(".")[2] in texts and "." in called)
            modes = [ast.unparse(argument) for argument in call.args]
            if not is_text or called == "os.open" or "'rb'" in modes or "'wb'" in modes:
                continue
            named += 1
            where = f"{path}:{call.lineno}: no encoding"
            assert any(keyword.arg == "encoding" for keyword in call.keywords), where
    assert named > 20


def test_files_of_tests_have_different_names() -> None:
    """pytest imports test files by name alone."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
