"""Tokens of the tokenizer: made once, found again, never partially written."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fedlora_sim.tasks import text as tasks_text
from fedlora_sim.tasks.text import cache_folder, tokenize

TEXTS = ("the cat sat", "a dog", "", "the team match goal fell rose on the road", "zebra")


@pytest.fixture
def made(monkeypatch):
    """Record how many texts each call tokenizes."""
    calls: list[int] = []

    def count(tokenizer, texts, max_length, make=tasks_text._make):
        calls.append(len(texts))
        return make(tokenizer, texts, max_length)

    monkeypatch.setattr(tasks_text, "_make", count)
    return calls


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_tokens_are_the_tokenizers_own(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    found = tokenize(tokenizer, TEXTS, 6)
    assert set(found) == {"input_ids", "attention_mask"}
    for i, text in enumerate(TEXTS):
        alone = tokenizer(text, truncation=True, max_length=6)["input_ids"]
        assert found["input_ids"][i].tolist() == alone + [tokenizer.pad_token_id] * (6 - len(alone))
        assert found["attention_mask"][i].tolist() == [1] * len(alone) + [0] * (6 - len(alone))
    assert all(values.dtype == torch.int64 for values in found.values())


def test_made_once(tiny_tokenizer, made, cache_folder):
    first = tokenize(tiny_tokenizer(), TEXTS, 8)
    again = tokenize(tiny_tokenizer(), TEXTS, 8)
    assert made.count(len(TEXTS)) == 1
    assert len(kept(cache_folder)) == 1
    for name, values in first.items():
        torch.testing.assert_close(again[name], values, rtol=0, atol=0)


def test_a_tokenizer_that_was_used_otherwise_is_still_the_same(tiny_tokenizer, made):
    tokenizer = tiny_tokenizer()
    for length in (8, 5, 8):
        tokenize(tokenizer, TEXTS, length)
    assert made.count(len(TEXTS)) == 2


def test_other_texts_lengths_and_tokenizers_are_other_files(tiny_tokenizer, cache_folder):
    other = tiny_tokenizer()
    other.add_tokens(["zebra"])
    calls = [
        (tiny_tokenizer(), TEXTS, 8),
        (tiny_tokenizer(), TEXTS, 7),
        (tiny_tokenizer(), TEXTS[::-1], 8),
        (tiny_tokenizer(), ("the cat", " sat", *TEXTS[1:]), 8),
        (other, TEXTS, 8),
    ]
    for number, call in enumerate(calls, start=1):
        tokenize(*call)
        assert len(kept(cache_folder)) == number


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", None])
def test_a_damaged_file_is_made_again(tiny_tokenizer, made, cache_folder, content):
    first = tokenize(tiny_tokenizer(), TEXTS, 8)
    (path,) = kept(cache_folder)
    path.write_bytes(path.read_bytes()[:-10] if content is None else content)
    again = tokenize(tiny_tokenizer(), TEXTS, 8)
    assert made.count(len(TEXTS)) == 2
    torch.testing.assert_close(again["input_ids"], first["input_ids"], rtol=0, atol=0)
    tokenize(tiny_tokenizer(), TEXTS, 8)
    assert made.count(len(TEXTS)) == 2


def test_a_failed_write_leaves_no_file(tiny_tokenizer, monkeypatch, cache_folder):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tasks_text, "write_tensors", full)
    found = tokenize(tiny_tokenizer(), TEXTS, 8)
    assert len(found["input_ids"]) == len(TEXTS)
    assert not kept(cache_folder)


def test_place_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("FEDLORA_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "fedlora-sim"


def test_many_at_once(tiny_tokenizer, cache_folder):
    tokenizers = [tiny_tokenizer() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda tokenizer: tokenize(tokenizer, TEXTS, 8), tokenizers))
    for tokens_found in found:
        torch.testing.assert_close(tokens_found, found[0], rtol=0, atol=0)
    assert len(kept(cache_folder)) == 1
