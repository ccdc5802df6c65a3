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
    parser.add_argument("--frozen-a", action="store_true", help="train B only (the rule ffa)")
    given = parser.parse_args()
    flare.init()
    site = int(flare.get_site_name().removeprefix("site-")) - 1
    while flare.is_running():
        model = flare.receive()
        received = receive(model, RANKS[site], lora_alpha=ALPHA, frozen_a=given.frozen_a)
        trained = train_locally(*received, site, given.steps, frozen_a=given.frozen_a)
        meta = {"num_examples": SAMPLES, "lora_rank": RANKS[site]}
        flare.send(flare.FLModel(params=trained, meta=meta))


if __name__ == "__main__":
    main()
