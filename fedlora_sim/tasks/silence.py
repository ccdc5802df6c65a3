"""Hugging Face's libraries without progress bars and reports: a task loads, or raises."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent_transformers() -> Iterator[None]:
    """Transformers and the hub's client log errors only, then what they logged before."""
    from transformers.utils import logging as library

    bars = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        with _errors_only("transformers", "huggingface_hub"):
            yield
    finally:
        if bars:
            library.enable_progress_bar()


@contextmanager
def silent_datasets() -> Iterator[None]:
    """Datasets and the hub's client log errors only, then what they logged before."""
    import datasets

    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with _errors_only("datasets", "huggingface_hub"):
            yield
    finally:
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def _errors_only(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
