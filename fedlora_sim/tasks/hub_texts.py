"""Labelled texts from Hugging Face: a data set of the hub, or one saved in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedlora_sim.errors import expected
from fedlora_sim.tasks.hub import load_hub_parts
from fedlora_sim.tasks.text_sources import LabelledTexts

TEXT_COLUMNS = ("text", "sentence", "content", "question", "document", "review", "tweet")
LABEL_COLUMNS = ("label", "labels", "class", "category", "topic", "intent")
TEST_PARTS = ("test", "validation", "valid", "dev")
UNLABELLED = -1
"""What Hugging Face's benchmarks have for a label where the answer is kept secret."""


def read_hub(argument: str, name: str) -> dict[str, LabelledTexts]:
    """A data set of texts with one label each.

    Args:
        argument: what the caller calls the name.
        name: hub name, as `ag_news` or `organisation/name`, or a folder by `save_to_disk`.

    Returns:
        `train`, and `test` where a part of that kind has labels.

    Raises:
        InputError: if it cannot be had, or if it is not clear what is text and what is label.
    """
    parts = load_hub_parts(argument, name, "a file, 20newsgroups")
    train = parts["train"] if "train" in parts else next(iter(parts.values()))
    if "train" not in parts and len(parts) > 1:
        raise expected(argument, name, f"a part called train; its parts are {', '.join(parts)}")
    found = {"train": _labelled(argument, name, train)}
    for part in (parts[p] for p in TEST_PARTS if p in parts and parts[p] is not train):
        label = _label_column(argument, name, part.features)
        if UNLABELLED not in part.unique(label):
            return {**found, "test": _labelled(argument, name, part)}
    return found


def _labelled(argument: str, name: str, part: Any) -> LabelledTexts:
    label = _label_column(argument, name, part.features)
    strings = [c for c, f in part.features.items() if c != label and f.dtype == "string"]
    text = _column(argument, name, part.features, "texts", TEXT_COLUMNS, strings)
    texts, labels = list(part[text]), list(part[label])
    if None in texts or None in labels:
        raise expected(argument, name, f"no gaps in its columns {text!r} and {label!r}")
    names = getattr(part.features[label], "names", None)
    if names is None:
        return LabelledTexts(tuple(texts), tuple(str(value) for value in labels))
    if UNLABELLED in labels:  # which would read as the last name
        raise expected(argument, name, f"a label for every text in {label!r}, not {UNLABELLED}")
    return LabelledTexts(tuple(texts), tuple(names[i] for i in labels), class_names=tuple(names))


def _label_column(argument: str, name: str, features: Mapping[str, Any]) -> str:
    classes = [column for column, feature in features.items() if hasattr(feature, "names")]
    return _column(argument, name, features, "labels", LABEL_COLUMNS, classes)


def _column(
    argument: str,
    name: str,
    features: Mapping[str, Any],
    content: str,
    known: Sequence[str],
    fitting: Sequence[str],
) -> str:
    """The one column by a known name; without any, the one of a fitting type."""
    found = [column for column in known if column in features] or fitting
    if len(found) != 1:
        wanted = f"one column of {content}, called {' or '.join(known)}"
        raise expected(argument, name, f"{wanted}; its columns are {', '.join(features)}")
    return found[0]
