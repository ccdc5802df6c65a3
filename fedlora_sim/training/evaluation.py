"""The global model judged on the test part, its update merged into the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedlora_sim.tasks.task import Task, logits_of
from fedlora_sim.training.attach import merged_copy
from fedlora_sim.training.stacked import Heads

BATCH = 64
"""Test samples at a time: enough for full speed, and a bound on memory."""


def evaluate(
    task: Task,
    deltas: Mapping[str, Tensor] | None = None,
    heads: Heads | None = None,
) -> tuple[float, float]:
    """Test accuracy and mean loss of the model with an update merged into its weights.

    Args:
        task: frozen model and test data.
        deltas: module name -> update dW of its weight, shape (d_out, d_in), scaling included;
            modules not named keep their weight. None: the pretrained model.
        heads: module name -> the weight (d_out, d_in) and, if any, bias (d_out,) in place of its
            own.

    Returns:
        Accuracy in [0, 1] and loss in nats per sample or token.

    Raises:
        ValueError: on a name that is no linear module, or a shape that is not its weight's.
    """
    model = merged_copy(task.model, deltas or {}, heads)
    hits, total, count = 0, 0.0, 0.0
    with torch.inference_mode():
        for index in torch.arange(len(task.test), device=task.device).split(BATCH):
            batch = task.test.take(index)
            logits = logits_of(model, batch.inputs)
            losses, counts = task.objective.losses(logits, batch.labels)
            hits += int(task.objective.hits(logits, batch.labels).sum())
            total, count = total + float(losses.sum()), count + float(counts.sum())
    return hits / len(task.test), total / count
