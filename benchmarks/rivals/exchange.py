"""Input and output of all lanes: plain arrays in one npz file. Needs only NumPy.

The lanes run in separate environments where this project is not installed; this module is all that
they share with it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Adapters = dict[str, tuple[NDArray[Any], NDArray[Any]]]
"""Module name -> (`lora_A` (r, d_in), `lora_B` (d_out, r))."""


@dataclass(frozen=True)
class Settings:
    """The numbers of a comparison.

    Args:
        d_model: width of the transformer.
        num_layers: number of blocks.
        num_heads: attention heads per block.
        patch: side of a token in pixels.
        scaling: LoRA scaling of every client.
        learning_rate: of SGD, which every client starts without momentum.
        momentum: of SGD.
        dtype: `float32 | float64`, for all computations.
    """

    d_model: int = 64
    num_layers: int = 2
    num_heads: int = 4
    patch: int = 4
    scaling: float = 2.0
    learning_rate: float = 0.05
    momentum: float = 0.9
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class Exchange:
    """One federated run, specified down to the order of the samples.

    Args:
        settings: the settings.
        images: gray values, (n, 8, 8).
        labels: classes, int64 (n,).
        weights: parameters of the frozen model by name, as in PyTorch (weights (d_out, d_in)).
        adapters: initial adapters; their modules are those that carry LoRA.
        batches: sample indices, int64 (rounds, steps, K, b), padded with zeros.
        num_steps: steps of every client, (rounds, K): one pass over `b * num_steps` samples, which
            is also its weight in the average.
    """

    settings: Settings
    images: NDArray[Any]
    labels: NDArray[np.int64]
    weights: Mapping[str, NDArray[Any]]
    adapters: Adapters
    batches: NDArray[np.int64]
    num_steps: NDArray[np.int64]

    @property
    def rounds(self) -> int:
        """Number of federated rounds."""
        return len(self.num_steps)

    @property
    def cohort(self) -> int:
        """Number of clients per round."""
        return self.num_steps.shape[1]

    @property
    def batch_size(self) -> int:
        """Number of samples per batch."""
        return self.batches.shape[-1]

    def batches_of(self, t: int, k: int) -> NDArray[np.int64]:
        """Return the sample indices of client k in round t, in order, (steps, b)."""
        return self.batches[t, : self.num_steps[t, k], k]

    def num_samples(self, t: int) -> NDArray[np.int64]:
        """Return the number of samples of each client in round t, (K,)."""
        return self.num_steps[t] * self.batch_size

    def save(self, path: Path) -> None:
        """Write all into one npz file."""
        arrays = {"images": self.images, "labels": self.labels}
        arrays |= {"batches": self.batches, "num_steps": self.num_steps}
        arrays |= {f"weights/{name}": x for name, x in self.weights.items()}
        settings = np.array(json.dumps(asdict(self.settings)))
        np.savez(path, settings=settings, **arrays, **_flat(self.adapters))

    @classmethod
    def load(cls, path: Path) -> Exchange:
        """Read a file of `save`."""
        with np.load(path) as file:
            weights = {n.removeprefix("weights/"): file[n] for n in file if n.startswith("weights")}
            plain = {n: file[n] for n in ("images", "labels", "batches", "num_steps")}
            settings = Settings(**json.loads(str(file["settings"])))
            return cls(settings=settings, weights=weights, adapters=_nested(file), **plain)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Result of a lane.

    Args:
        adapters: the global adapters after the last round.
        seconds: wall time of every round, (rounds,); the first one includes the preparation.
        how: how the framework was run, as text.
        versions: versions of the packages.
    """

    adapters: Adapters
    seconds: NDArray[np.float64]
    how: str
    versions: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write all into one npz file atomically, because processes may share a path."""
        words = np.array(json.dumps({"how": self.how, "versions": dict(self.versions)}))
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        np.savez(temporary, seconds=self.seconds, words=words, **_flat(self.adapters))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Outcome:
        """Read a file of `save`."""
        with np.load(path) as file:
            return cls(_nested(file), file["seconds"], **json.loads(str(file["words"])))


class Stopwatch:
    """Wall time of rounds: starts when created; `lap` ends a round."""

    def __init__(self) -> None:
        self.marks = [time.perf_counter()]

    def lap(self) -> None:
        """End a round."""
        self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Return the seconds of each round."""
        return np.diff(self.marks)


Lane = Callable[[Exchange, int], Outcome]
"""Function that runs all rounds of an exchange with a number of threads."""


def parse() -> argparse.Namespace:
    """Return the parser of a lane's command line: `EXCHANGE OUT --threads N`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("exchange", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def serve(lane: Lane, packages: Sequence[str]) -> None:
    """Run the command line and save the result with the versions of these packages."""
    given = parse()
    outcome = lane(Exchange.load(given.exchange), given.threads)
    versions = {name: version(name) for name in packages}
    Outcome(outcome.adapters, outcome.seconds, outcome.how, versions).save(given.out)


def _flat(adapters: Adapters) -> dict[str, NDArray[Any]]:
    sides = ({f"A/{name}": a, f"B/{name}": b} for name, (a, b) in adapters.items())
    return {name: x for side in sides for name, x in side.items()}


def _nested(file: Mapping[str, NDArray[Any]]) -> Adapters:
    names = [name.removeprefix("A/") for name in file if name.startswith("A/")]
    return {name: (file[f"A/{name}"], file[f"B/{name}"]) for name in names}
