"""Run the tests and the quick verification with other processors' kernels: `make test-portable`.

Numerical libraries choose their kernels by processor, and kernels round differently. Environment
variables select other kernels here. Every setting must pass the quick tests and `verify --quick
--strict`, with one thread the slow tests of numerical folders too, and no verdict may contradict
the recorded one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "results/recorded/report.json"
PROCESSES = 2  # number of pytest processes, and of all threads
SETTINGS = {
    "torch-plain": {"ATEN_CPU_CAPABILITY": "default"},
    "torch-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},
    "openblas-old": {"OPENBLAS_CORETYPE": "Nehalem"},  # x86-64; ignored elsewhere
}
NUMERICAL = (
    *("core", "rules", "engines", "closed_form", "predict", "ledger", "stats"),
    *("finetune", "tasks", "peft", "conformance"),
)
"""Folders of tests whose results depend on kernels."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def verdicts(report: Path) -> dict[str, str]:
    """Return the verdict of every claim in a report."""
    claims = json.loads(report.read_text(encoding="utf-8"))["claims"]
    return {claim["id"]: claim["verdict"] for claim in claims}


def contradictions(found: dict[str, str], recorded: dict[str, str]) -> list[str]:
    """Return the claims with another verdict than in the record, with both verdicts.

    A quick run may leave a conjecture undecided that the full run decided; `--strict` checks the
    theorems.
    """
    return [
        f"{name}: {verdict}, recorded {recorded[name]}"
        for name, verdict in found.items()
        if name in recorded and "undecided" not in (verdict, recorded[name])
        if verdict != recorded[name]
    ]


def run(command: list[str], environment: dict[str, str]) -> bool:
    """Run a command in the project's root and return whether it succeeded."""
    print("$", " ".join(command), flush=True)
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def try_setting(name: str, threads: int) -> list[str]:
    """Run tests and verification under one setting and return what failed."""
    count = {variable: str(threads) for variable in THREADS}
    environment = {**os.environ, **SETTINGS[name], **count, "HYPOTHESIS_PROFILE": "quick"}
    workers = max(1, PROCESSES // threads)
    pytest = [sys.executable, "-m", "pytest", "-n", str(workers), "--dist", "worksteal", "-m"]
    folders = [f"tests/{folder}" for folder in NUMERICAL]
    tests = {"the quick tests": ["not slow"]}
    if threads == 1:
        tests["slow tests"] = ["slow and not faults", *folders]
    failed = [what for what, chosen in tests.items() if not run([*pytest, *chosen], environment)]
    with tempfile.TemporaryDirectory() as folder:
        verify = [str(Path(sys.executable).parent / "fedlora-sim"), "verify", "--quick", "--strict"]
        if not run([*verify, "--out", folder], environment):
            failed.append("verify --quick --strict")
        report = Path(folder) / "report.json"
        if report.exists():
            failed += contradictions(verdicts(report), verdicts(RECORDED))
    return failed


def main() -> int:
    """Try the requested settings, print one line for each, and return 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="may be repeated")
    parser.add_argument("--threads", type=int, action="append", help="1 and 2 by default")
    options = parser.parse_args()
    lines = []
    for name in options.setting or SETTINGS:
        for threads in options.threads or (1, 2):
            started = time.monotonic()
            failed = try_setting(name, threads)
            minutes = (time.monotonic() - started) / 60
            result = f"failed: {'; '.join(failed)}" if failed else "passed"
            lines.append(f"{name}, threads {threads}: {result} ({minutes:.1f} min)")
            print(lines[-1], flush=True)
    print("\n".join(["", *lines]))
    return int(any("failed" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
