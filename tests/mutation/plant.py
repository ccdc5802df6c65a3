"""Plant faults in a copy of the project, one at a time, and record which tests catch them.

    python tests/mutation/plant.py                run what is not recorded yet
    python tests/mutation/plant.py NAME...        run these again

A fault replaces one piece of text in one file; the tests named for it run on the copy. It is caught
if one of them fails, and caught as expected if the test built for it is among those. Each result
is stored at once, and repeated if the fault, its file or its tests have changed. This is not part
of `make test`: a run takes about 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results/recorded/mutation.json"
TIMEOUT = 900  # seconds; a fault that makes its tests hang is caught
LIBRARIES = (
    "torch",
    "scipy.stats",
    "xarray",
    "h5netcdf",
    "hypothesis",
    "matplotlib.pyplot",
    "sympy",
)
IGNORED = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # plugins that are already imported
Results = dict[str, dict[str, Any]]


def copy_project(target: Path) -> None:
    """Copy every tracked file of the project."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode("utf-8").split("\0")):
        if (ROOT / name).is_file():
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())


def planted(source: str, fault: Fault) -> str:
    """Return the source with the fault.

    Raises:
        ValueError: unless the text that the fault replaces occurs exactly once.
    """
    times = source.count(fault.old)
    if times != 1:
        raise ValueError(f"{fault.name}: its text occurs {times} times in {fault.path}, not once")
    return source.replace(fault.old, fault.new)


def fingerprint(fault: Fault) -> str:
    """Return a hash of the fault, its file and its tests."""
    digest = hashlib.sha256(repr(fault).encode("utf-8"))
    for name in (fault.path, *fault.test_files):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def failures(output: str) -> list[str]:
    """Return the names of the tests that pytest reports as failed or in error."""
    found = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return sorted({name.split("::", 1)[-1].partition("[")[0] for name in found})


def run_tests(tests: tuple[str, ...], copy: Path, log: Path) -> None:
    """Run pytest on the copy and end this process with its exit code; its output goes to a file."""
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)  # of the tests' child processes
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path) != Path(__file__).parent)]
    code = pytest.main(["-rfE", "--maxfail=20", "-p", "no:cacheprovider", *IGNORED, *tests])
    sys.stdout.flush()
    os._exit(int(code))


def try_fault(fault: Fault, copy: Path) -> dict[str, Any]:
    """Plant one fault, run its tests and return what they found; the copy is restored.

    The tests run in a fork of this process, which has imported the libraries and nothing of the
    project.

    Raises:
        RuntimeError: if pytest could not run the tests.
    """
    target, log = copy / fault.path, copy / "pytest.log"
    source = target.read_text(encoding="utf-8")
    target.write_text(planted(source, fault), encoding="utf-8")
    stamp = int(fingerprint(fault)[:7], 16)
    os.utime(target, (stamp, stamp))  # so that bytecode of another fault is not used
    started = time.monotonic()
    child = get_context("fork").Process(target=run_tests, args=(fault.tests, copy, log))
    try:
        child.start()
        child.join(TIMEOUT)
        hangs = child.is_alive()
        if hangs:
            child.kill()
            child.join()
    finally:
        target.write_text(source, encoding="utf-8")
    output = log.read_text(encoding="utf-8")
    names = failures(output)
    if not hangs and child.exitcode != 0 and not names:
        raise RuntimeError(f"{fault.name}: {output[-2000:]}")
    return {
        "fault": fault.name,
        "path": fault.path,
        "result": "caught" if hangs or names else "survived",
        "as_expected": fault.catcher in names,
        "catcher": fault.catcher,
        "failed": names,
        "seconds": round(time.monotonic() - started),
        "fingerprint": fingerprint(fault),
    }


def read_record() -> Results:
    """Return the recorded results by fault, none if there is no record; of known faults only."""
    if not RECORD.exists():
        return {}
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["faults"]
    known = {fault.name for fault in FAULTS}
    return {row["fault"]: row for row in rows if row["fault"] in known}


def write_record(results: Results) -> None:
    """Write the results in the order of the list."""
    rows = [results[fault.name] for fault in FAULTS if fault.name in results]
    text = json.dumps({"command": "python tests/mutation/plant.py", "faults": rows}, indent=1)
    temporary = RECORD.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(RECORD)


def main() -> int:
    """Run the faults that need it, print a line for each, and return 1 if any survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to run again")
    chosen = parser.parse_args().names
    unknown = set(chosen) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no fault is called {', '.join(sorted(unknown))}")
    results = read_record()
    waiting = [
        fault
        for fault in FAULTS
        if fault.name in chosen
        or (not chosen and results.get(fault.name, {}).get("fingerprint") != fingerprint(fault))
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        copy_project(Path(folder))
        sys.pycache_prefix, sys.dont_write_bytecode = f"{folder}/bytecode", False
        for library in LIBRARIES if waiting else ():
            import_module(library)
        for number, fault in enumerate(waiting, 1):
            row = results[fault.name] = try_fault(fault, Path(folder))
            write_record(results)
            by = ", ".join(row["failed"]) or "no test"
            print(
                f"{number}/{len(waiting)} {fault.name}: {row['result']} by {by} "
                f"({row['seconds']} s)",
                flush=True,
            )
    survived = [name for name, row in results.items() if row["result"] == "survived"]
    surprising = [
        name
        for name, row in results.items()
        if row["result"] == "caught" and not row["as_expected"]
    ]
    print(f"{len(results) - len(survived)} of {len(results)} faults caught")
    print(f"survived: {', '.join(survived) or 'none'}")
    print(f"caught by another test than expected: {', '.join(surprising) or 'none'}")
    return int(bool(survived))


if __name__ == "__main__":
    sys.exit(main())
