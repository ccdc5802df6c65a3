"""Record the suite's results for every rule, and whether it catches all broken ones.

    python tests/conformance/record.py [--examples N] [--seed N]

writes results/recorded/conformance.json, from which the README's table is made.
"""

from __future__ import annotations

import argparse
import inspect
import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # shared modules of the tests

import torch
from broken_averages import AVERAGES
from broken_cases import CASES
from broken_rounds import ROUNDS
from conformance_cases import by_status, outcomes
from healthy_rules import HEALTHY_RULES
from test_own_rules import OPTIONS
from tqdm import tqdm

from fedlora_sim import __version__
from fedlora_sim.conformance import CHECKS
from fedlora_sim.rules import get_rule, rule_names

OUT = Path(__file__).parents[2] / "results" / "recorded" / "conformance.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.perf_counter()
    rules, broken, tried = {}, {}, 0
    own = [get_rule(name) for name in sorted({*rule_names(), *OPTIONS})]
    for rule in tqdm([*own, *(get_rule(kind()) for kind in HEALTHY_RULES)], desc="healthy"):
        results = outcomes(rule, given.examples, seed=given.seed).values()
        rules[rule.label] = Counter(r.status for r in results) | {
            "examples": sum(r.examples for r in results),
            "own": rule in own,
        }
        tried += rules[rule.label]["examples"]
    for kind in tqdm([*AVERAGES, *ROUNDS, *CASES], desc="broken"):
        results = outcomes(kind(), max(1, given.examples // 10), kind.fails, given.seed)
        failed = by_status(results, "failed")
        broken[kind.__name__] = {
            "bug": inspect.getdoc(kind).split("\n")[0],
            "fails": sorted(failed),
            "as_named": failed == set(kind.fails),
        }
        tried += sum(r.examples for r in results.values())
    record = {
        "command": f"python tests/conformance/record.py --examples {given.examples} "
        f"--seed {given.seed}",
        "laws": len(CHECKS),
        "examples": given.examples,
        "tried": tried,
        "rules": rules,
        "broken": broken,
        "seconds": time.perf_counter() - started,
        "versions": {
            "fedlora-sim": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    OUT.write_text(json.dumps(record, indent=1) + "\n")
    caught = sum(one["as_named"] for one in broken.values())
    print(f"{len(CHECKS)} laws, {tried:,} cases, {caught} of {len(broken)} broken rules as named")


if __name__ == "__main__":
    main()
