"""Lane of pfl-research: its FederatedAveraging on its simulated backend, one process per core."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from benchmarks.rivals.exchange import Exchange, Outcome, Stopwatch, parse, serve
from benchmarks.rivals.plain_torch import build, read_adapters, trained_parameters

RANK = "RANK"
"""Environment variable that torchrun sets for its processes."""


class Laps(TrainingProcessCallback):
    """Callback that ends a round of the stopwatch."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.watch.lap()
        return False, Metrics()


def federated_data(exchange: Exchange) -> FederatedDataset:
    """Return the clients of each round in order; a user is a pair (round, client)."""
    images, labels = torch.from_numpy(exchange.images), torch.from_numpy(exchange.labels)

    def users() -> Iterator[tuple[int, int]]:
        for t in range(exchange.rounds):
            for k in range(exchange.cohort):
                yield t, k

    def dataset(user: tuple[int, int]) -> PyTorchTensorDataset:
        index = torch.from_numpy(exchange.batches_of(*user).reshape(-1))
        return PyTorchTensorDataset((images[index], labels[index]), user_id=str(user))

    following = users()
    return FederatedDataset(dataset, lambda: next(following))


def run(exchange: Exchange, threads: int) -> Outcome:
    """Run all rounds with one thread per process."""
    torch.set_num_threads(1)
    watch = Stopwatch()
    settings, network = exchange.settings, build(exchange)
    # It evaluates all clients in the first round at any frequency: use the least possible work.
    network.metrics = lambda images, labels: {"samples": Weighted(len(labels), 1)}
    model = PyTorchModel(
        network,
        lambda parameters, lr: torch.optim.SGD(
            [p for p in parameters if p.requires_grad], lr=lr, momentum=settings.momentum
        ),
        torch.optim.SGD(trained_parameters(network), lr=1.0),
    )
    data = federated_data(exchange)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=exchange.rounds,
            evaluation_frequency=exchange.rounds + 1,
            train_cohort_size=exchange.cohort,
            val_cohort_size=None,
        ),
        SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=settings.learning_rate,
            local_batch_size=exchange.batch_size,
        ),
        callbacks=[Laps(watch)],
    )
    how = f"SimulatedBackend, {min(threads, exchange.cohort)} process(es) of one thread"
    return Outcome(read_adapters(network), watch.seconds, how)


def main() -> None:
    """Start one process per thread, at most one per client; started processes do their part."""
    given = parse()
    count = min(given.threads, Exchange.load(given.exchange).cohort)
    if count > 1 and RANK not in os.environ:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        module = ["-m", "benchmarks.rivals.run_pfl", *sys.argv[1:]]
        done = subprocess.run([sys.executable, *launcher, *module], check=False)
        raise SystemExit(done.returncode)
    serve(run, ("pfl", "torch"))


if __name__ == "__main__":
    main()
