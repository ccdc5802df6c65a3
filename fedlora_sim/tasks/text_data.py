"""Labelled texts in a training and a test part, their classes numbered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlora_sim.errors import expected
from fedlora_sim.randomness import stream
from fedlora_sim.tasks.hub_texts import read_hub
from fedlora_sim.tasks.subsets import stratified_sample
from fedlora_sim.tasks.text_sources import NEWSGROUPS, LabelledTexts, read_newsgroups, read_tsv

TEST_SHARE = 0.2
FILES = (".tsv", ".txt", ".csv")
"""Ends of names that are meant as files, and are no data sets of the hub."""


@dataclass(frozen=True, eq=False)
class TextPart:
    """Texts with numbered classes.

    Args:
        texts: n texts.
        labels: their classes, int64 (n,).
        groups: who wrote them, int64 (n,); None if unknown.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None

    def take(self, index: NDArray[np.int64]) -> TextPart:
        """The samples at these indices."""
        groups = None if self.groups is None else self.groups[index]
        return TextPart(tuple(self.texts[i] for i in index), self.labels[index], groups)


@dataclass(frozen=True, eq=False)
class TextData:
    """A data set: its parts, and the names of its classes by number."""

    train: TextPart
    test: TextPart
    class_names: tuple[str, ...]


def load_text(data: str | None, test_data: str | None, seed: int) -> TextData:
    """Read a data set of labelled texts.

    Args:
        data: a tab-separated file (`read_tsv`), `20newsgroups`, a data set of the Hugging Face hub
            or a folder with one (`read_hub`); its training part.
        test_data: likewise; its test part, or all of it if it has none. When None, the test part
            of `data`; without one, a fifth of the training part, class by class, is held out.
        seed: draws what is held out.

    Raises:
        InputError: naming the argument, its value and what was expected.
    """
    parts = _read("data", data)
    if test_data is not None:
        other = _read("test_data", test_data)
        parts = {"train": parts["train"], "test": other.get("test", other["train"])}
    class_names = _class_names(parts)
    if len(class_names) < 2:
        raise expected("data", data, f"at least two classes, not {class_names}")
    train = _numbered(parts["train"], class_names)
    if "test" in parts:
        return TextData(train, _numbered(parts["test"], class_names), class_names)
    size = round(TEST_SHARE * len(train.labels))
    held_out = stratified_sample(train.labels, size, stream(seed, "held-out texts"))
    kept = np.setdiff1d(np.arange(len(train.labels)), held_out)
    return TextData(train.take(kept), train.take(held_out), class_names)


def _read(argument: str, source: str | None) -> dict[str, LabelledTexts]:
    if not isinstance(source, str) or not source:
        raise expected(argument, source, "a file, 20newsgroups, or a Hugging Face data set")
    if source == NEWSGROUPS:
        return read_newsgroups(argument)
    path = Path(source)
    if path.is_file():
        return {"train": read_tsv(argument, path)}
    if path.suffix in FILES:
        raise expected(argument, source, "a file that exists")
    return read_hub(argument, source)


def _class_names(parts: dict[str, LabelledTexts]) -> tuple[str, ...]:
    """The classes in the source's order, where it has one, then the others: sorted."""
    given = [part.class_names or () for part in parts.values()]
    used = _sorted({label for part in parts.values() for label in part.labels})
    return tuple(dict.fromkeys([*(name for names in given for name in names), *used]))


def _sorted(names: Iterable[str]) -> list[str]:
    """By value if all are whole numbers, else by letters."""
    found = list(names)
    numbers = all(name.removeprefix("-").isdecimal() for name in found)
    return sorted(found, key=int) if numbers else sorted(found)


def _numbered(part: LabelledTexts, class_names: tuple[str, ...]) -> TextPart:
    number = {name: i for i, name in enumerate(class_names)}
    labels = np.array([number[label] for label in part.labels], dtype=np.int64)
    if part.writers is None:
        return TextPart(part.texts, labels)
    return TextPart(part.texts, labels, np.unique(part.writers, return_inverse=True)[1])
