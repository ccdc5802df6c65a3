"""A site of `nvflare_job.py`: it trains an adapter of its own rank."""

from __future__ import annotations

import argparse

import nvflare.client as flare
from toy_federation import ALPHA, RANKS, SAMPLES, train_locally

from fedlora_sim.integrations.nvflare import receive


def main() -> None:
    """Train in every round until the job ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=0)
    steps = parser.parse_args().steps
    flare.init()
    site = int(flare.get_site_name().removeprefix("site-")) - 1
    while flare.is_running():
        model = flare.receive()
        adapter, _ = receive(model, RANKS[site], lora_alpha=ALPHA)
        trained = train_locally(adapter, site, steps)
        meta = {"num_examples": SAMPLES, "lora_rank": RANKS[site]}
        flare.send(flare.FLModel(params=trained, meta=meta))


if __name__ == "__main__":
    main()
