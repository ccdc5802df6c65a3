"""Check and time the matrix fidelity against a loop of the same torch operations, seed by seed.

Run as `python -m benchmarks.matrix`; writes results/bench/matrix.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.bars import Bar, decided
from benchmarks.timing import hardware, side_by_side
from fedlora_sim import Scenario, parse_ranks, simulate
from fedlora_sim.engines.cohort_draws import draw_slots
from fedlora_sim.engines.draws import CPU, client_draws, initial_basis
from fedlora_sim.storage import result_file
from fedlora_sim.tolerances import relative
from fedlora_sim.version import versions

OUT = Path("results/bench/matrix.json")
SCENARIO = Scenario(
    parse_ranks("4x40,8x30,16x30"),
    fidelity="matrix",
    cohort_size=10,
    rounds=20,
    gain_std=0.1,
    drift_std=0.02,
    dtype="float64",
    d_in=64,
    d_out=64,
)
RULES = ("fedavg", "raflora", "zero_pad")
SEEDS, REPEATS, OF_THE_LOOP = 100, 5, 0.33

Draws = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Clients (T, m), gains and drifts (T, m, r_max), and the initial U (d, r_max) and V (d, r_max)."""


def drawn_by_numpy(seed: int) -> Draws:
    """Draw a run as a script would."""
    rng, (size, r_max) = np.random.default_rng(seed), (SCENARIO.cohort_size, 16)
    clients = [rng.choice(100, size, replace=False) for _ in range(SCENARIO.rounds)]
    shape = (SCENARIO.rounds, size, r_max)
    gain = SCENARIO.gain_mean + SCENARIO.gain_std * rng.standard_normal(shape)
    drift = SCENARIO.drift_std * rng.standard_normal(shape)
    u, v = (np.linalg.qr(rng.standard_normal((64, r_max)))[0] for _ in range(2))
    found = (torch.from_numpy(np.asarray(x)) for x in (clients, gain, drift, u, v))
    return tuple(found)  # type: ignore[return-value]


def drawn_by_the_engine(seed: int) -> Draws:
    """Return the draws of the engine's run."""
    clients, _ = draw_slots(SCENARIO.federation, SCENARIO.rounds, [seed], CPU)
    draws = client_draws(SCENARIO, [seed])
    rounds = [draws.round(t, clients[:, t]) for t in range(SCENARIO.rounds)]
    gain, drift = (torch.cat(list(x)) for x in zip(*rounds, strict=True))
    u, v = initial_basis(SCENARIO, seed)
    return clients[0], gain, drift.expand_as(gain), torch.from_numpy(u), torch.from_numpy(v)


def bare_run(rule: str, draws: Draws) -> Tensor:
    """Return the energies of one run, (T + 1, r_max), by torch operations without checks."""
    clients, gain, drift, u, v = draws
    ranks, r_max = torch.tensor(SCENARIO.ranks), 16
    x = torch.from_numpy(SCENARIO.initial_amplitudes)
    energies = [x**2]
    for t in range(len(clients)):
        carried = ranks[clients[t]].unsqueeze(1) > torch.arange(r_max)
        y = torch.where(carried, gain[t] * x + drift[t], 0.0)
        root = y.abs().sqrt()
        lora_b = u * (root * y.sign()).unsqueeze(1)  # (m, d, r)
        lora_a = (v * root.unsqueeze(1)).mT  # (m, r, d)
        contributing = carried.sum(0).clamp_min(1) if rule == "raflora" else len(clients[t])
        shares = carried.double() / contributing
        if rule == "zero_pad":
            a = (shares.unsqueeze(-1) * lora_a).sum(0)
            b = (shares.unsqueeze(1) * lora_b).sum(0)
            r_b, r_a = (torch.linalg.qr(x, mode="r").R for x in (b, a.mT))
            s = torch.linalg.svdvals(r_b @ r_a.mT)
            norms = b.norm(dim=0), a.norm(dim=1)
            x, live = norms[0] * norms[1], norms[0] > 0  # a lost direction keeps its place
            u = torch.where(live, b / norms[0], u)
            v = torch.where(live, a.mT / norms[1], v)
        else:
            weighted = (lora_b * shares.unsqueeze(1)).permute(1, 0, 2).flatten(1)
            left, s, right = torch.linalg.svd(weighted @ lora_a.flatten(0, 1), full_matrices=False)
            u, x, v = left[:, :r_max], s[:r_max], right[:r_max].mT
        energies.append(s[:r_max] ** 2)
    return torch.stack(energies)


def bare_loop(rule: str) -> list[Tensor]:
    """Return the energies of all seeds, one after another."""
    return [bare_run(rule, drawn_by_numpy(seed)) for seed in range(SEEDS)]


def check(rule: str, seeds: Iterable[int] = range(3)) -> None:
    """End the program if the loop does not compute what the engine computes."""
    for seed in seeds:
        ours = simulate(SCENARIO, rule, seed=seed).energy.values[0]
        theirs = bare_run(rule, drawn_by_the_engine(seed)).numpy()
        difference = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
        if difference > relative("iteration"):
            raise SystemExit(f"{rule}: the loop differs by {difference:.2e}; not timed")


def main() -> None:
    """Check equality, then time the engine and the loop in turn."""
    write, rows = result_file(OUT, "benchmarks.matrix"), []
    torch.set_num_threads(1)
    found: list[Bar] = []
    for rule in RULES:
        check(rule)
        lanes: dict[str, Callable[[], object]] = {
            "engine": partial(simulate, SCENARIO, rule, seed=range(SEEDS)),
            "loop": partial(bare_loop, rule),
        }
        times = side_by_side(lanes, REPEATS)
        ratio = times["engine"]["cpu_median"] / times["loop"]["cpu_median"]
        rows.append({"rule": rule, "ratio": ratio, **times})
        found.append((f"{rule}: engine / loop, 64 x 64", "<=", OF_THE_LOOP, ratio))
        print(rows[-1])
    record = {
        "seeds": SEEDS,
        "scenario": SCENARIO.to_attrs(),
        "rows": rows,
        "bars": decided(found),
        "hardware": hardware(),
        **versions(),
    }
    for bar in record["bars"]:
        print(bar)
    write(json.dumps(record, indent=1, default=int) + "\n")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
