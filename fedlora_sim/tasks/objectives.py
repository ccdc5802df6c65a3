"""Losses and hits, sample by sample, so that clients in one stack keep to themselves.

A client's loss on a batch is `sum of totals / sum of counts` over its own samples: the mean over
samples for classes, the mean over tokens for completions, as a client alone would have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""Label of a position that counts for nothing, as in PyTorch's and transformers' losses."""


class Objective(Protocol):
    """What the model's output is held against."""

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss in nats and what it is a sum over, per sample, each (n,)."""
        ...

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether every sample is right, boolean (n,)."""
        ...


@dataclass(frozen=True)
class Classification:
    """One class per sample: logits (n, classes), labels (n,); cross-entropy and accuracy."""

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every sample, each counting for one."""
        each = functional.cross_entropy(logits, labels, reduction="none")
        return each, each.new_ones(len(labels))

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether the largest logit is the label's."""
        return logits.argmax(-1) == labels


@dataclass(frozen=True)
class Completion:
    """Next tokens: logits (n, T, vocabulary), labels (n, T) with `IGNORED` for the prompt.

    Position t predicts the label at t + 1. A sample is right when every token of its completion
    is the most likely one after those before it: exactly when greedy decoding would write it.
    """

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over every sample's completion, and its number of tokens."""
        shifted = labels[:, 1:]
        each = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), shifted.flatten(), reduction="none", ignore_index=IGNORED
        )
        counted = shifted != IGNORED
        return each.view_as(shifted).sum(1), counted.sum(1).to(each.dtype)

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether greedy decoding would write the completion."""
        shifted = labels[:, 1:]
        return ((logits[:, :-1].argmax(-1) == shifted) | (shifted == IGNORED)).all(1)
