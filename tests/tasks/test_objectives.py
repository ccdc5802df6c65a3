"""Labels of a task: invalid ones are refused at once, not later as a diverging run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedlora_sim.errors import InputError
from fedlora_sim.tasks.task import IGNORED, Completion, Examples, Task


def part(labels: list, classes: np.ndarray | None = None) -> Examples:
    return Examples({"x": torch.zeros(len(labels), 2)}, torch.tensor(labels), classes)


def make_task(train: Examples, test: Examples, **fields) -> Task:
    return Task(nn.Identity(), train, test, (), **fields)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2, IGNORED, -1], r"labels\[2\]=-100: expected a class of at least 0 and below 3$"),
        ([0, 1, 2, 3, 4], r"labels\[3\]=3: expected a class of at least 0 and below 3$"),
    ],
)
@pytest.mark.parametrize("which", ["train", "test"])
def test_labels_that_are_not_classes(labels, message, which):
    parts = {"train": part([0, 1, 2]), "test": part([2]), which: part(labels)}
    with pytest.raises(InputError, match=rf"^{which}\.{message}"):
        make_task(**parts, class_names=("a", "b", "c"))


def test_without_names_any_class_may_be():
    good = part([0, 7])
    task = make_task(good, good)
    with pytest.raises(InputError, match=r"^train\.labels\[1\]=-3: .* at least 0$"):
        replace(task, train=part([0, -3]))


def test_names_of_other_classes_are_ignored():
    skewed = part([0, 7], classes=np.array([0, 1]))
    assert make_task(skewed, skewed, class_names=("a", "b")).train is skewed


@pytest.mark.parametrize("nothing", [[IGNORED] * 3, [5, IGNORED, IGNORED]])
def test_a_completion_has_a_token_that_is_predicted(nothing):
    """No previous position can predict the first token."""
    good = part([[IGNORED, IGNORED, 5], [IGNORED, 5, IGNORED], [5, 5, 5]])
    task = make_task(good, good, objective=Completion(), class_names=("a",))
    labels = torch.tensor([*good.labels[:2].tolist(), nothing, nothing])
    totals, counts = Completion().losses(torch.zeros(4, 3, 6), labels)
    assert (counts > 0).tolist() == [True, True, False, False]
    assert torch.isnan(totals / counts).tolist() == [False, False, True, True]
    refusal = r"^test\.labels\[2\]='3 labels that count for nothing': expected one besides -100 "
    with pytest.raises(InputError, match=refusal):
        replace(task, test=part(labels.tolist()))
