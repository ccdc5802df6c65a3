"""Run the examples of the frameworks, and make the same rounds in this process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import torch  # noqa: E402
import toy_federation  # noqa: E402

from fedlora_sim.federation import Federation  # noqa: E402
from fedlora_sim.peft.server import AdapterServer, split_state  # noqa: E402

LEVELS = toy_federation.RANKS


def run_example(script: str, *arguments: object) -> list[float]:
    """Return the printed shares of energy above rank 4, one for each round."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    found = re.findall(r"round (\d+): ([\d.]+) of the energy", ended.stdout)
    return [float(share) for _, share in found]


def predicted_shares(rounds: int) -> list[float]:
    """Return the shares above rank 4 under FedAvg: direction i keeps W_i**2 of its energy."""
    coverage = Federation(list(LEVELS)).coverage()
    shares = []
    for t in range(rounds + 1):
        energy = [e * w ** (2 * t) for e, w in zip(toy_federation.ENERGIES, coverage, strict=True)]
        shares.append(sum(energy[LEVELS[0] :]) / sum(energy))
    return shares


def rounds_here(rule: str, rounds: int, steps: int, first_round: int):
    """Return the global adapter after rounds of the same federation in this process."""
    server = AdapterServer(lora_alpha=toy_federation.ALPHA, rule=rule)
    state = toy_federation.initial_adapter()
    samples = [toy_federation.SAMPLES] * len(LEVELS)
    for t in range(first_round, first_round + rounds):
        replies = [
            toy_federation.train_locally(
                *split_state(server.for_client(state, r)), k, steps, frozen_a=server.frozen_a
            )
            for k, r in enumerate(LEVELS)
        ]
        state = server.aggregate(state, replies, samples, t)
    return state


def assert_same_updates(found, wanted):
    """Check that two states have the same keys, and products that are equal up to 1e-6."""
    assert found.keys() == wanted.keys()
    for key in wanted:
        if key.endswith("lora_A.weight"):
            key_b = key.replace("lora_A", "lora_B")
            own, other = (x[key_b].double() @ x[key].double() for x in (found, wanted))
            torch.testing.assert_close(own, other, rtol=0, atol=1e-6)
