"""Text classification: labeled texts, tokens, and the task."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedlora_sim.errors import expected
from fedlora_sim.randomness import stream
from fedlora_sim.storage import remove_stale, write_tensors
from fedlora_sim.tasks.huggingface import (
    Pretrained,
    from_pretrained,
    load_huggingface_parts,
    load_pretrained,
    text_positions,
)
from fedlora_sim.tasks.targets import inside, resolve_targets, usual_targets
from fedlora_sim.tasks.task import Examples, Task, TaskOptions, stratified_sample

# Sources of labeled texts: tab-separated files and scikit-learn's 20 newsgroups

NEWSGROUPS = "20newsgroups"


@dataclass(frozen=True)
class LabeledTexts:
    """Texts with class names.

    Args:
        texts: n texts.
        labels: n class names.
        writers: writer of each text, n names; None if unknown.
        class_names: all classes in the source's own order; None if it has none.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    writers: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None


def read_tsv(argument: str, path: Path) -> LabeledTexts:
    """Read lines `text<TAB>label` or `text<TAB>label<TAB>writer`, UTF-8, without a header.

    Raises:
        InputError: names the argument, the file and its first invalid line.
    """
    rows: list[list[str]] = []
    # Split at line ends only, not at all separators of Unicode.
    for number, line in enumerate(path.read_bytes().rstrip().split(b"\n"), start=1):
        where = f"{argument}: line {number} of {path}"
        try:
            row = line.rstrip(b"\r").decode()
        except UnicodeDecodeError:
            raise expected(where, line[:40], "text in UTF-8") from None
        cells = row.split("\t")
        if not 2 <= len(cells) <= 3 or not all(cell.strip() for cell in cells):
            raise expected(where, row[:80], "text<TAB>label, or text<TAB>label<TAB>writer")
        if rows and len(cells) != len(rows[0]):
            raise expected(where, row[:80], f"{len(rows[0])} columns, as in the first line")
        rows.append([cell.strip() for cell in cells])
    texts, labels, *writers = zip(*rows, strict=True)
    return LabeledTexts(texts, labels, writers[0] if writers else None)


def read_newsgroups(argument: str) -> dict[str, LabeledTexts]:
    """Return the 20 newsgroups of scikit-learn in its parts by date, `train` and `test`.

    Headers, signatures and quotes are removed, because they reveal the group (scikit-learn's
    advice).

    Raises:
        InputError: if they are not cached and cannot be downloaded.
    """
    from sklearn.datasets import fetch_20newsgroups

    parts = {}
    for part in ("train", "test"):
        try:
            bunch = fetch_20newsgroups(subset=part, remove=("headers", "footers", "quotes"))
        except OSError as error:
            wanted = f"scikit-learn's copy of them, or a network to fetch it ({error})"
            raise expected(argument, NEWSGROUPS, wanted) from None
        names = tuple(bunch.target_names)
        labels = tuple(names[target] for target in bunch.target)
        parts[part] = LabeledTexts(tuple(bunch.data), labels, class_names=names)
    return parts


# Labeled texts from Hugging Face: a data set of the hub, or one saved in a folder

TEXT_COLUMNS = ("text", "sentence", "content", "question", "document", "review", "tweet")
LABEL_COLUMNS = ("label", "labels", "class", "category", "topic", "intent")
TEST_PARTS = ("test", "validation", "valid", "dev")
UNLABELED = -1
"""Label in Hugging Face's benchmarks for secret answers."""


def read_huggingface(argument: str, name: str) -> dict[str, LabeledTexts]:
    """Return a data set of texts with one label each.

    Args:
        argument: the caller's name of the argument.
        name: hub name, as `ag_news` or `organization/name`, or a folder by `save_to_disk`.

    Returns:
        `train`, and `test` if a test part has labels.

    Raises:
        InputError: if it is not available, or if the columns of texts and labels are ambiguous.
    """
    parts = load_huggingface_parts(argument, name, "a file, 20newsgroups")
    train = parts["train"] if "train" in parts else next(iter(parts.values()))
    if "train" not in parts and len(parts) > 1:
        raise expected(argument, name, f"a part called train; its parts are {', '.join(parts)}")
    found = {"train": _labeled(argument, name, train)}
    for part in (parts[p] for p in TEST_PARTS if p in parts and parts[p] is not train):
        label = _label_column(argument, name, part.features)
        if UNLABELED not in part.unique(label):
            return {**found, "test": _labeled(argument, name, part)}
    return found


def _labeled(argument: str, name: str, part: Any) -> LabeledTexts:
    label = _label_column(argument, name, part.features)
    strings = [c for c, f in part.features.items() if c != label and f.dtype == "string"]
    text = _column(argument, name, part.features, "texts", TEXT_COLUMNS, strings)
    texts, labels = list(part[text]), list(part[label])
    if None in texts or None in labels:
        raise expected(argument, name, f"no gaps in its columns {text!r} and {label!r}")
    names = getattr(part.features[label], "names", None)
    if names is None:
        return LabeledTexts(tuple(texts), tuple(str(value) for value in labels))
    if UNLABELED in labels:  # which would be read as the last name
        raise expected(argument, name, f"a label for every text in {label!r}, not {UNLABELED}")
    return LabeledTexts(tuple(texts), tuple(names[i] for i in labels), class_names=tuple(names))


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
    """Return the only column with a known name, or else the only one of a suitable type."""
    found = [column for column in known if column in features] or fitting
    if len(found) != 1:
        wanted = f"one column of {content}, called {' or '.join(known)}"
        raise expected(argument, name, f"{wanted}; its columns are {', '.join(features)}")
    return found[0]


# Training and test part with numbered classes

TEST_SHARE = 0.2
FILES = (".tsv", ".txt", ".csv")
"""Name suffixes of files, as opposed to data sets of the hub."""


@dataclass(frozen=True, eq=False)
class TextPart:
    """Texts with numbered classes.

    Args:
        texts: n texts.
        labels: their classes, int64 (n,).
        groups: their writers, int64 (n,); None if unknown.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None

    def take(self, index: NDArray[np.int64]) -> TextPart:
        """Return the samples at these indices."""
        groups = None if self.groups is None else self.groups[index]
        return TextPart(tuple(self.texts[i] for i in index), self.labels[index], groups)


@dataclass(frozen=True, eq=False)
class TextData:
    """A data set: its parts, and the names of its classes by number."""

    train: TextPart
    test: TextPart
    class_names: tuple[str, ...]


def load_text(data: str | None, test_data: str | None, seed: int) -> TextData:
    """Read a data set of labeled texts.

    Args:
        data: source of the training part: a tab-separated file (`read_tsv`), `20newsgroups`, a data
            set of the Hugging Face hub or a folder with one (`read_hub`).
        test_data: source of the test part (all of it if it has no parts). None uses the test part
            of `data`, or holds out a fifth of the training part, class by class.
        seed: seed of the held-out part.

    Raises:
        InputError: names the argument, its value and what was expected.
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


def _read(argument: str, source: str | None) -> dict[str, LabeledTexts]:
    if not isinstance(source, str) or not source:
        raise expected(argument, source, "a file, 20newsgroups, or a Hugging Face data set")
    if source == NEWSGROUPS:
        return read_newsgroups(argument)
    path = Path(source)
    if path.is_file():
        return {"train": read_tsv(argument, path)}
    if path.suffix in FILES:
        raise expected(argument, source, "a file that exists")
    return read_huggingface(argument, source)


def _class_names(parts: dict[str, LabeledTexts]) -> tuple[str, ...]:
    """Return the classes in the source's order if it has one, then the others, sorted."""
    given = [part.class_names or () for part in parts.values()]
    used = _sorted({label for part in parts.values() for label in part.labels})
    return tuple(dict.fromkeys([*(name for names in given for name in names), *used]))


def _sorted(names: Iterable[str]) -> list[str]:
    """Return the names sorted by value if all are whole numbers, else alphabetically."""
    found = list(names)
    numbers = all(name.removeprefix("-").isdecimal() for name in found)
    return sorted(found, key=int) if numbers else sorted(found)


def _numbered(part: LabeledTexts, class_names: tuple[str, ...]) -> TextPart:
    number = {name: i for i, name in enumerate(class_names)}
    labels = np.array([number[label] for label in part.labels], dtype=np.int64)
    if part.writers is None:
        return TextPart(part.texts, labels)
    return TextPart(part.texts, labels, np.unique(part.writers, return_inverse=True)[1])


# Tokens, cached on disk


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
    """Return the tokens of each text, from the cache if available.

    The cache is the folder in the environment variable `FEDLORA_CACHE`, by default
    `~/.cache/fedlora-sim`. A file's name is derived from the texts, the tokenizer's files and the
    length.

    Args:
        tokenizer: a tokenizer of transformers with a padding token.
        texts: n texts; truncated to the length.
        max_length: tokens T of each row, including special tokens and padding on the right.

    Returns:
        The model's inputs by name (`input_ids`, `attention_mask`, ...), int64 (n, T).
    """
    key = _key(tokenizer, texts, max_length)
    path = cache_folder() / "tokens" / f"{key}.safetensors"
    tokens = _read_tokenizer(path, (len(texts), max_length))
    if tokens is None:
        tokens = _make(tokenizer, texts, max_length)
        # If they cannot be stored, they are computed again the next time.
        with contextlib.suppress(OSError):
            remove_stale(path.parent)
            write_tensors(path, tokens)
    return {name: values.long() for name, values in tokens.items()}


def cache_folder() -> Path:
    """Return the folder for expensive intermediate results that are kept between runs."""
    default = Path.home() / ".cache" / "fedlora-sim"
    return Path(os.environ.get("FEDLORA_CACHE") or default)


def _make(tokenizer: Any, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
    made = tokenizer(
        list(texts),
        padding="max_length",
        padding_side="right",
        truncation=True,
        max_length=max_length,
        return_token_type_ids=False,  # zero for single texts, which is every model's default
        return_attention_mask=True,
        return_tensors="pt",
    )
    return {name: values.to(torch.int32) for name, values in made.items()}


def _key(tokenizer: Any, texts: Sequence[str], max_length: int) -> str:
    """Return the hash of everything on which the tokens depend."""
    # A tokenizer's files contain its last call settings: always use the same.
    _make(tokenizer, [""], max_length)
    parts = [str(max_length).encode(), *(text.encode("utf-8", "surrogatepass") for text in texts)]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        parts += [path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _read_tokenizer(path: Path, shape: tuple[int, int]) -> dict[str, Tensor] | None:
    """Return tokens in a file; None if there is no file, or if its content is not as written."""
    try:
        tokens = load_file(path)
    except (OSError, SafetensorError):
        return None
    whole = {"input_ids", "attention_mask"} <= set(tokens)
    return tokens if whole and all(x.shape == shape for x in tokens.values()) else None


# The task: a pretrained encoder or decoder with a classifier


def load_text_task(options: TaskOptions) -> Task:
    """Load a model, its tokenizer and labeled texts.

    Args:
        options: `model` is a hub name or a folder that transformers'
            `AutoModelForSequenceClassification` and `AutoTokenizer` can load; `data` and
            `test_data` as in `load_text`.

    Returns:
        The task, on the CPU in `options.dtype`. Splits use the labels; groups are the writers in
        the third column of the data.

    Raises:
        InputError: names the argument, its value and what was expected.
    """
    tokenizer = from_pretrained("AutoTokenizer", options.model)
    data = load_text(options.data, options.test_data, options.task_seed)
    loaded = load_pretrained(
        "AutoModelForSequenceClassification",
        options.model,
        getattr(torch, options.dtype),
        options.task_seed,
        num_labels=len(data.class_names),
    )
    model = loaded.model
    _set_padding(tokenizer, model, options.model)
    _check_length(options.max_length, tokenizer, model)
    heads = _heads(loaded, options.train_head)
    targets = _targets(model, options, heads)
    return Task(
        model,
        _examples(data.train, options, "train", options.max_train, tokenizer),
        _examples(data.test, options, "test", options.max_test, tokenizer),
        targets,
        head_modules=heads,
        class_names=data.class_names,
    )


def _set_padding(tokenizer: Any, model: Any, name: str | None) -> None:
    """Set the model's padding token to its tokenizer's: decoders classify by the last real token.

    Raises:
        InputError: if the tokenizer has no padding token, or one without a row in the model.
    """
    padding, rows = tokenizer.pad_token_id, model.get_input_embeddings().num_embeddings
    if padding is None or padding >= rows:
        wanted = f"a model whose tokenizer has a pad_token among the model's {rows} tokens"
        raise expected("model", name, f"{wanted}: set one and save it with the model")
    model.config.pad_token_id = padding


def _check_length(max_length: int, tokenizer: Any, model: Any) -> None:
    """Refuse samples longer than the model's positions, or too short for a word."""
    positions = text_positions(model)
    least = tokenizer.num_special_tokens_to_add() + 1
    most = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
    if not least <= max_length <= most:
        raise expected("max_length", max_length, f"a number of tokens from {least} to {most}")


def _heads(loaded: Pretrained, train_head: bool | None) -> tuple[str, ...]:
    """Return the names of the linear maps that clients train as a whole.

    These are the new ones; with `train_head=True` also all after the model's trunk.
    """
    if train_head is False:
        return ()
    heads = set(loaded.new_linear)
    if train_head:
        trunk = loaded.model.base_model_prefix
        linear = (name for name, m in loaded.model.named_modules() if isinstance(m, nn.Linear))
        heads |= {name for name in linear if not inside(name, str(trunk))}
    return tuple(name for name, _ in loaded.model.named_modules() if name in heads)


def _targets(model: nn.Module, options: TaskOptions, heads: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the maps that carry LoRA.

    Modules that are trained as a whole are excluded.
    """
    names = options.target_modules or usual_targets(model)
    found = resolve_targets(model, names, options.adapted_layers)
    targets = tuple(name for name in found if name not in heads)
    if not targets:
        raise expected("target_modules", names, f"some besides {heads}, which are trained whole")
    return targets


def _examples(
    part: TextPart, options: TaskOptions, which: str, size: int | None, tokenizer: Any
) -> Examples:
    """Return the tokens of a part, or of the requested number of samples of it."""
    drawn = stratified_sample(part.labels, size, stream(options.task_seed, "text samples", which))
    kept = part.take(drawn)
    inputs = tokenize(tokenizer, kept.texts, options.max_length)
    return Examples(inputs, torch.as_tensor(kept.labels), groups=kept.groups)
