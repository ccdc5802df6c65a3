"""Texts as tokens, made once and kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedlora_sim.storage import remove_stale, write_tensors


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
    """Tokens of every text, from the cache if they were made before.

    The cache is the folder in the environment variable `FEDLORA_CACHE`, `~/.cache/fedlora-sim` by
    default. A file's name follows from the texts, the tokenizer's own files and the length.

    Args:
        tokenizer: of transformers, with a padding token.
        texts: n texts; cut to the length.
        max_length: tokens T of every row, special ones and padding on the right included.

    Returns:
        The model's inputs by name (`input_ids`, `attention_mask`, ...), int64 (n, T).
    """
    key = _key(tokenizer, texts, max_length)
    path = cache_folder() / "tokens" / f"{key}.safetensors"
    tokens = _read(path, (len(texts), max_length))
    if tokens is None:
        tokens = _make(tokenizer, texts, max_length)
        # Where they cannot be kept, they are made again the next time.
        with contextlib.suppress(OSError):
            remove_stale(path.parent)
            write_tensors(path, tokens)
    return {name: values.long() for name, values in tokens.items()}


def cache_folder() -> Path:
    """Where what takes long to make is kept between runs."""
    default = Path.home() / ".cache" / "fedlora-sim"
    return Path(os.environ.get("FEDLORA_CACHE") or default)


def _make(tokenizer: Any, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
    made = tokenizer(
        list(texts),
        padding="max_length",
        padding_side="right",
        truncation=True,
        max_length=max_length,
        return_token_type_ids=False,  # of a single text all zero, which is every model's default
        return_attention_mask=True,
        return_tensors="pt",
    )
    return {name: values.to(torch.int32) for name, values in made.items()}


def _key(tokenizer: Any, texts: Sequence[str], max_length: int) -> str:
    """Hash of all that the tokens depend on."""
    # A tokenizer's files tell how it was last called: always the same way.
    _make(tokenizer, [""], max_length)
    parts = [str(max_length).encode(), *(text.encode("utf-8", "surrogatepass") for text in texts)]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        parts += [path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _read(path: Path, shape: tuple[int, int]) -> dict[str, Tensor] | None:
    """What a file holds; None if there is none, or if it is not what was written."""
    try:
        tokens = load_file(path)
    except (OSError, SafetensorError):
        return None
    whole = {"input_ids", "attention_mask"} <= set(tokens)
    return tokens if whole and all(x.shape == shape for x in tokens.values()) else None
