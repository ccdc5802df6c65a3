"""Create one virtual environment per framework: `python -m benchmarks.rivals.install`.

The versions are those of the recorded comparison. FedJAX was last released in 2023 and
needs a JAX that has `jax.tree_map`, up to 0.5; at d = 64 it is twice as fast with 0.4.31 as with
0.5.3. Both need Python 3.10 to 3.12. PyPI's torch for Linux includes gigabytes for GPUs: pass
`--index https://download.pytorch.org/whl/cpu` to install one without.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ENVIRONMENTS = Path("build/rivals")
TORCH, NUMPY = "torch==2.13.0", "numpy==2.2.6"
REQUIREMENTS = {
    "flower": (TORCH, NUMPY, "flwr[simulation]==1.41.0", "ray==2.55.1"),
    "fedjax": (
        NUMPY,
        "fedjax==0.0.17",
        "jax==0.4.31",
        "jaxlib==0.4.31",
        "dm-haiku==0.0.13",
        "optax==0.2.5",
    ),
    "pfl": (TORCH, NUMPY, "pfl[pytorch]==0.6.0"),
}


def install(name: str, environments: Path, python: str, index: str | None) -> None:
    """Create one environment, or update an existing one to the versions above."""
    folder = environments / name
    if not (folder / "bin" / "python").exists():
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    more = [] if index is None else ["--extra-index-url", index]
    subprocess.run([*pip, *more, *REQUIREMENTS[name]], check=True)


def main() -> None:
    """Create the requested environments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    parser.add_argument("--only", nargs="+", choices=sorted(REQUIREMENTS))
    parser.add_argument("--python", default=sys.executable, help="interpreter they are made with")
    parser.add_argument("--index", help="a further package index for pip")
    given = parser.parse_args()
    for name in given.only or REQUIREMENTS:
        install(name, given.environments, given.python, given.index)
        print(f"{name}: {given.environments / name}", flush=True)


if __name__ == "__main__":
    main()
