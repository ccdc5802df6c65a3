"""Three nodes of ranks 4, 8 and 16 in Flower, with any rule.

    python examples/flower_app.py --rule fedavg --out run
    fedlora-sim diagnose run --ranks 4,8,16

Without local steps the nodes return what they receive: only the rule changes the energies.
Shares are those of the adapter: `flora`, which needs --steps, leaves no energy there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from peft import set_peft_model_state_dict
from toy_federation import ALPHA, RANKS, SAMPLES, adapted_model, initial_adapter, train_locally

from analysis import Monitor
from fedlora_sim.integrations.flower import FedLoRA, receive
from fedlora_sim.peft.server import split_state

client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train the adapter of this node's rank."""
    node = int(context.node_config["partition-id"])
    config = message.content["config"]
    received, frozen_a = receive(message, RANKS[node]), bool(config["frozen-a"])
    trained = train_locally(*received, node, int(config["steps"]), frozen_a=frozen_a)
    metrics = MetricRecord({"num-examples": SAMPLES, "lora-rank": RANKS[node]})
    reply = RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics})
    return Message(content=reply, reply_to=message)


def server_app(rule: str, rounds: int, steps: int, out: Path | None) -> ServerApp:
    """Return the server: it measures each round's global adapter, and saves it for `diagnose`."""
    server = ServerApp()
    monitor = Monitor(RANKS, alpha=ALPHA)

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        state, _ = split_state(arrays.to_torch_state_dict())
        if out is not None:
            model = adapted_model(max(RANKS))
            set_peft_model_state_dict(model, state)
            model.save_pretrained(out / f"peft_{server_round}")
        share = monitor.update(server_round, state)["share_above_4"]
        print(f"{rule}, round {server_round}: {share:.4f} of the energy above rank 4", flush=True)
        return MetricRecord({"share": share})

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedLoRA(
            lora_alpha=ALPHA, rule=rule, min_available_nodes=len(RANKS), fraction_evaluate=0.0
        )
        config = ConfigRecord({"steps": steps})
        first = ArrayRecord(initial_adapter())
        strategy.start(grid, first, rounds, train_config=config, evaluate_fn=measure)

    return server


def main() -> None:
    """Run the federation on this machine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rule", default="raflora", help="name of a rule, with options")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="local steps of each round")
    parser.add_argument("--out", type=Path, help="folder for the adapter of each round")
    given = parser.parse_args()
    server = server_app(given.rule, given.rounds, given.steps, given.out)
    run_simulation(server_app=server, client_app=client, num_supernodes=len(RANKS))


if __name__ == "__main__":
    main()
