"""Lane of Flower: its FedAvg strategy on its simulation runtime, one Ray worker per core.

The runtime polls for messages and replies every 0.1 s, which is the minimum time of a round.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}  # before imports

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.rivals.exchange import Adapters, Exchange, Outcome, Stopwatch, serve
from benchmarks.rivals.flower_app import EXCHANGE, app


class WholeCohort(FedAvg):
    """FedAvg that assigns a client to each node and measures the time.

    Args:
        cohort: clients of a round.
        watch: stopwatch, advanced when a round ends.
    """

    def __init__(self, cohort: int, watch: Stopwatch) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=cohort, min_available_nodes=cohort)
        self.watch = watch

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if server_round > 1:
            self.watch.lap()
        # The base class waits for all nodes and selects them all.
        sampled = super().configure_train(server_round, arrays, config, grid)
        for client, message in enumerate(sampled):
            told = ConfigRecord({"server-round": server_round, "client": client})
            yield Message(
                content=RecordDict({"arrays": arrays, "config": told}),
                message_type=MessageType.TRAIN,
                dst_node_id=message.metadata.dst_node_id,
            )


def run(exchange: Exchange, threads: int) -> Outcome:
    """Run all rounds."""
    os.environ[EXCHANGE] = str(Path(sys.argv[1]).absolute())
    logging.getLogger("flwr").setLevel(logging.ERROR)
    watch, found = Stopwatch(), {}
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = WholeCohort(exchange.cohort, watch)
        start = {n: torch.from_numpy(x) for n, x in _named(exchange.adapters).items()}
        result = strategy.start(grid, ArrayRecord(start), num_rounds=exchange.rounds)
        watch.lap()
        found.update({n: x.numpy() for n, x in result.arrays.items()})

    run_simulation(
        server,
        app,
        num_supernodes=exchange.cohort,
        backend_config={
            "init_args": {"num_cpus": threads},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    trained = {n: (found[f"{n}.lora_A"], found[f"{n}.lora_B"]) for n in exchange.adapters}
    return Outcome(trained, watch.seconds, f"run_simulation, {threads} Ray worker(s) of one thread")


def _named(adapters: Adapters) -> dict[str, Any]:
    """Return the adapters by the names of the model's parameters."""
    return {
        f"{name}.{leaf}": x
        for name, pair in adapters.items()
        for leaf, x in zip(("lora_A", "lora_B"), pair, strict=True)
    }


if __name__ == "__main__":
    serve(run, ("flwr", "ray", "torch"))
