"""Record what the tests of faults find, with 25 kills and full disks of each kind.

    python tests/faults/record.py

writes results/recorded/faults.json, from which the table of docs/reliability.md is made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlora_sim.storage import write_json
from fedlora_sim.version import versions

ROOT = Path(__file__).parents[2]
OUT = ROOT / "results" / "recorded" / "faults.json"


def main() -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        tests = [sys.executable, "-m", "pytest", "tests/faults", "--record-faults", str(found)]
        deep = {**os.environ, "HYPOTHESIS_PROFILE": "deep", "OMP_NUM_THREADS": "1"}
        code = subprocess.run(tests, cwd=ROOT, env=deep, check=False).returncode
        rows = summed(json.loads(found.read_text("utf-8")))
    command, seconds = "python tests/faults/record.py", round(time.perf_counter() - started)
    write_json(OUT, {"command": command, "seconds": seconds, **versions(), "rows": rows})
    sys.exit(code)


def summed(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for every promise, test and kind of trial."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(str(row[name]) for name in ("promise", "test", "kind"))
        own = found.setdefault(key, {**row, "count": 0})
        own["count"] += row["count"]
        own["passed"] = own["passed"] and row["passed"]
    return list(found.values())


if __name__ == "__main__":
    main()
