"""Labeled texts from every source: parts, class names, numbers, and refusals with the place."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import sklearn.datasets
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from fedlora_sim.errors import InputError
from fedlora_sim.randomness import stream
from fedlora_sim.tasks.task import stratified_sample
from fedlora_sim.tasks.text import load_text

NAMES = ("World", "Sports", "Business")


@pytest.fixture
def tsv(tmp_path):
    """Write a file, by name and content; give its path."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.fixture
def saved(tmp_path):
    """Save parts of columns as `save_to_disk` does; give the folder."""

    def save(features: Features | None = None, **parts: dict[str, list[object]]) -> str:
        made = {name: Dataset.from_dict(part, features=features) for name, part in parts.items()}
        folder = tmp_path / "saved"
        DatasetDict(made).save_to_disk(folder)
        return str(folder)

    return save


def rows(labels: list[str], per_label: int) -> str:
    return "".join(f"text {i} of {x}\t{x}\n" for i in range(per_label) for x in labels)


def test_files(tsv):
    train = tsv("train.tsv", "ball over the net\tSports\nstocks fell\tBusiness\ngoal\tSports\n")
    test = tsv("test.tsv", "a summit\tWorld\r\na match\u2028or two\tSports")
    data = load_text(train, test, 0)
    assert data.class_names == ("Business", "Sports", "World")
    assert data.train.texts == ("ball over the net", "stocks fell", "goal")
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.test.texts == ("a summit", "a match\u2028or two")
    assert data.test.labels.tolist() == [2, 1]
    assert data.train.labels.dtype == np.int64
    assert data.train.groups is None


def test_numbers_are_sorted_as_numbers(tsv):
    data = load_text(tsv("train.tsv", "a\t10\nb\t9\nc\t-1\n"), tsv("test.tsv", "d\t9\n"), 0)
    assert data.class_names == ("-1", "9", "10")
    assert data.train.labels.tolist() == [2, 1, 0]


def test_writers(tsv):
    lines = "".join(f"text {i}\t{i % 2}\twriter {i % 3}\n" for i in range(30))
    data = load_text(tsv("train.tsv", lines), None, 0)
    for text, group in zip(data.train.texts, data.train.groups, strict=True):
        assert int(text.removeprefix("text ")) % 3 == group


def test_a_fifth_is_held_out_class_by_class(tsv):
    path = tsv("train.tsv", rows(["a", "b", "c"], 20))
    data = load_text(path, None, 3)
    assert np.bincount(data.test.labels).tolist() == [4, 4, 4]
    assert np.bincount(data.train.labels).tolist() == [16, 16, 16]
    assert not set(data.train.texts) & set(data.test.texts)
    assert load_text(path, None, 3).test.texts == data.test.texts
    assert load_text(path, None, 4).test.texts != data.test.texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "good\ta\nno label\nmore\tb",
            r"data: line 2 of .*train.tsv='no label': expected text<TAB>",
        ),
        ("good\ta\n\nmore\tb", "line 2 of .*train.tsv=''"),
        ("good\ta\nwords\t \n", "line 2 of .*train.tsv='words"),
        ("\ta\n", r"line 1 of .*train.tsv='\\ta'"),
        ("good\ta\ta\ta\n", "line 1 of .*train.tsv"),
        ("good\ta\tw\nmore\tb\n", "line 2 of .*: expected 3 columns, as in the first line"),
        (b"good\ta\nb\xff\tb\n", "line 2 of .*: expected text in UTF-8"),
        ("", "line 1 of .*train.tsv"),
        ("one\ta\ntwo\ta\n", "data=.*train.tsv': expected at least two classes, not .'a'"),
    ],
)
def test_bad_files(tsv, content, message):
    with pytest.raises(InputError, match=message):
        load_text(tsv("train.tsv", content), None, 0)


def test_the_file_that_is_bad_is_named(tsv):
    test = tsv("test.tsv", "x\n")
    with pytest.raises(InputError, match=r"test_data: line 1 of .*test\.tsv='x'"):
        load_text(tsv("train.tsv", "x\ta\ny\tb\n"), test, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "data=None: expected a file, 20newsgroups, or a Hugging Face data set"),
        ("missing.tsv", "data='missing.tsv'"),
        (
            "no/such-data",
            "data='no/such-data': expected a file, 20newsgroups, or a data set of Hug",
        ),
        ("not a name!", "data='not a name!': expected a file, 20newsgroups, or a data set of Hug"),
    ],
)
def test_sources_that_are_not_there(data, message):
    with pytest.raises(InputError, match=message):
        load_text(data, None, 0)


def test_newsgroups(monkeypatch):
    asked = []

    def fetch(subset, remove):
        asked.append((subset, remove))
        texts = [f"{subset} {i}" for i in range(4)]
        return SimpleNamespace(data=texts, target=np.array([1, 0, 1, 1]), target_names=["z", "a"])

    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", fetch)
    data = load_text("20newsgroups", None, 0)
    assert asked == [(part, ("headers", "footers", "quotes")) for part in ("train", "test")]
    assert data.class_names == ("z", "a")
    assert data.train.texts == tuple(f"train {i}" for i in range(4))
    assert data.test.texts == tuple(f"test {i}" for i in range(4))
    assert data.test.labels.tolist() == [1, 0, 1, 1]


def test_newsgroups_without_network(monkeypatch):
    def fetch(**_):
        raise URLError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", fetch)
    with pytest.raises(InputError, match="data='20newsgroups'"):
        load_text("20newsgroups", None, 0)


FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=list(NAMES))})


def test_a_saved_data_set_with_named_classes(saved):
    train = {"text": ["a", "b", "c"], "label": [2, 0, 2]}
    data = load_text(saved(FEATURES, train=train, test={"text": ["d"], "label": [1]}), None, 0)
    assert data.class_names == NAMES
    assert data.train.texts == ("a", "b", "c")
    assert data.train.labels.tolist() == [2, 0, 2]
    assert data.test.texts == ("d",)
    assert data.test.labels.tolist() == [1]


def test_hidden_labels_are_not_a_test_part(saved):
    part = {"text": ["a", "b"], "label": [0, 1]}
    secret = {"text": ["c", "d"], "label": [-1, -1]}
    known = {"text": ["e"], "label": [2]}
    folder = saved(FEATURES, train=part, test=secret, validation=known)
    assert load_text(folder, None, 0).test.texts == ("e",)


def test_training_texts_without_a_label_are_refused(saved):
    part = {"text": ["a", "b"], "label": [0, -1]}
    with pytest.raises(InputError, match="expected a label for every text in 'label', not -1"):
        load_text(saved(FEATURES, train=part), None, 0)


def test_a_saved_data_set_without_a_test_part(saved, tmp_path):
    part = {"sentence": [f"s{i}" for i in range(10)], "labels": [i % 2 for i in range(10)]}
    data = load_text(saved(train=part), None, 0)
    assert (len(data.train.texts), len(data.test.texts)) == (8, 2)
    assert data.class_names == ("0", "1")
    Dataset.from_dict(part).save_to_disk(tmp_path / "single")
    single = load_text(str(tmp_path / "single"), None, 0)
    assert single.train.texts == data.train.texts


def test_the_test_part_may_come_from_another_source(saved, tsv):
    folder = saved(
        FEATURES, train={"text": ["a"], "label": [0]}, test={"text": ["b"], "label": [1]}
    )
    file = tsv("other.tsv", "x\tSports\ny\tNature\n")
    data = load_text(folder, file, 0)
    assert data.class_names == (*NAMES, "Nature")
    assert data.test.labels.tolist() == [1, 3]
    assert load_text(file, folder, 0).test.texts == ("b",)


def test_columns_of_unknown_names_are_found_by_kind(saved):
    features = Features({"words": Value("string"), "sort": ClassLabel(names=["x", "y"])})
    data = load_text(saved(features, train={"words": ["a", "b"] * 5, "sort": [0, 1] * 5}), None, 0)
    assert data.class_names == ("x", "y")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"text": ["a"], "content": ["b"], "label": [0]}, "column of texts.* text, content, label"),
        (
            {"text": ["a"], "score": [0]},
            "column of labels, called label or .*columns are text, sco",
        ),
        ({"a": ["a"], "b": ["b"], "label": [0]}, "column of texts, called text or sentence or"),
        ({"text": ["a"], "label": [0], "topic": [1]}, "column of labels"),
        ({"text": ["a", None], "label": [0, 1]}, "no gaps in its columns 'text' and 'label'"),
    ],
)
def test_columns_that_are_not_clear(saved, part, message):
    with pytest.raises(InputError, match=f"^data='.*saved': expected .*{message}"):
        load_text(saved(train=part), None, 0)


def test_parts_that_are_not_clear(saved):
    part = {"text": ["a"], "label": [0]}
    with pytest.raises(InputError, match=r"^data=.*a part called train; its parts are x, y$"):
        load_text(saved(x=part, y=part), None, 0)


def test_without_datasets(monkeypatch):
    def missing(name: str):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        InputError, match=r"^data='ag_news': expected a file, 20newsgroups.*pip install"
    ):
        load_text("ag_news", None, 0)


@pytest.mark.parametrize("size", [1, 7, 50, 99])
def test_samples_keep_the_classes_shares(size):
    classes = stream(0, "test classes").choice(4, 100, p=[0.6, 0.3, 0.08, 0.02])
    drawn = stratified_sample(classes, size, stream(1))
    assert len(np.unique(drawn)) == len(drawn) == size
    exact = np.bincount(classes) * size / 100
    assert np.abs(np.bincount(classes[drawn], minlength=4) - exact).max() < 1
    np.testing.assert_array_equal(drawn, stratified_sample(classes, size, stream(1)))


@pytest.mark.parametrize("size", [None, 5, 6])
def test_at_most_all_samples(size):
    drawn = stratified_sample(np.array([0, 1, 1, 0, 2]), size, stream(0))
    assert drawn.tolist() == [0, 1, 2, 3, 4]
