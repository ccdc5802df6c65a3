"""Run the examples with FedAvg and with raFLoRA, without training, and record the energies.

Run as `python examples/record.py results/recorded/frameworks.json` where Flower and NVFlare are
installed. The documents show the table.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from fedlora_sim.storage import write_json

HERE = Path(__file__).parent
SCRIPTS = {"flwr": "flower_app.py", "nvflare": "nvflare_job.py"}
RULES = ("fedavg", "raflora")
ROUNDS = 5


def shares(script: str, rule: str) -> dict[str, float]:
    """Return the share of energy above rank 4 after each round, as the example prints it."""
    with tempfile.TemporaryDirectory() as out:
        arguments = ["--rule", rule, "--rounds", str(ROUNDS), "--out", out]
        command = [sys.executable, str(HERE / script), *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return {t: float(x) for t, x in re.findall(r"round (\d+): ([\d.]+) of", ended.stdout)}


def main() -> None:
    """Record the shares of each framework and rule, with the frameworks' versions."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="file to write")
    out = parser.parse_args().out
    rows = [
        {"framework": package, "version": version(package), "rule": rule, "shares": shares(s, rule)}
        for package, s in SCRIPTS.items()
        for rule in RULES
    ]
    write_json(out, {"command": f"python examples/record.py {out}", "rows": rows})


if __name__ == "__main__":
    main()
