"""Record the guarantees of the documents and what their tests tried.

    python tests/faults/record.py [TESTS ...]

writes results/recorded/faults.json, from which the table of docs/reliability.md is made. Without
arguments all tests that state a guarantee are run, with 25 kills and full disks of each kind. With
arguments (files, or tests as pytest names them) only these are run; the rows of the others stay.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = ROOT / "results" / "recorded" / "faults.json"
sys.path.insert(0, str(ROOT / "tests"))

from promises import merged  # noqa: E402

from fedlora_sim.storage import write_json  # noqa: E402
from fedlora_sim.version import versions  # noqa: E402


def main() -> None:
    """Run the tests and write their rows."""
    chosen = sys.argv[1:]
    recorded = json.loads(OUT.read_text(encoding="utf-8"))
    if chosen and {key: recorded[key] for key in versions()} != versions():
        sys.exit("the recorded rows are of other versions: run this command without arguments")
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        tests = [sys.executable, "-m", "pytest", "-m", "faults", "--record-promises", str(found)]
        deep = {**os.environ, "HYPOTHESIS_PROFILE": "deep", "OMP_NUM_THREADS": "1"}
        command = [*tests, *(chosen or ["tests"])]
        code = subprocess.run(command, cwd=ROOT, env=deep, check=False).returncode
        if code not in (0, 1):  # tests could not be run
            sys.exit(code)
        rows = json.loads(found.read_text(encoding="utf-8"))
    rows = merged(recorded["rows"] if chosen else (), rows)
    write_json(OUT, {"command": "python tests/faults/record.py", **versions(), "rows": rows})
    sys.exit(code)


if __name__ == "__main__":
    main()
