"""Three sites of ranks 4, 8 and 16 in NVFlare's simulator, with any rule.

    python examples/nvflare_job.py --rule fedavg --out run
    fedlora-sim diagnose run --ranks 4,8,16 --alpha 16

Without local steps the sites return what they receive: only the rule changes the energies.
Shares are those of the adapter: `flora`, which needs --steps, leaves no energy there.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.client.config import ExchangeFormat
from nvflare.recipe import SimEnv
from toy_federation import ALPHA, RANKS, GlobalAdapter

from analysis import Monitor
from fedlora_sim.integrations.nvflare import FedLoRAAggregator
from fedlora_sim.rules import get_rule

HERE = Path(__file__).parent


def main() -> None:
    """Run the job on this machine, and print the energy of each global adapter."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rule", default="raflora", help="name of a rule, with options")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="local steps of each round")
    parser.add_argument("--out", type=Path, required=True, help="folder for each round's adapter")
    given = parser.parse_args()
    out = given.out.resolve()
    recipe = FedAvgRecipe(
        name="fedlora",
        model=GlobalAdapter(),
        min_clients=len(RANKS),
        num_rounds=given.rounds,
        train_script=str(HERE / "nvflare_client.py"),
        train_args=f"--steps {given.steps} {'--frozen-a' if get_rule(given.rule).frozen_a else ''}",
        aggregator=FedLoRAAggregator(lora_alpha=ALPHA, rule=given.rule, save_dir=str(out)),
        server_expected_format=ExchangeFormat.PYTORCH,
    )
    recipe.add_server_file(str(HERE / "toy_federation.py"))
    recipe.add_client_file(str(HERE / "toy_federation.py"))
    with tempfile.TemporaryDirectory() as workspace:
        recipe.execute(SimEnv(num_clients=len(RANKS), workspace_root=workspace))
    monitor = Monitor(RANKS, alpha=ALPHA)
    for t in range(1, given.rounds + 1):
        state = torch.load(out / f"round_{t}.pt", weights_only=True)["model"]
        share = monitor.update(t, state)["share_above_4"]
        print(f"{given.rule}, round {t}: {share:.4f} of the energy above rank 4")


if __name__ == "__main__":
    main()
