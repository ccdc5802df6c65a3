"""Files of models and data that strangers wrote: read as data, whatever they ask for.

Libraries are called with `trust_remote_code=False`, and every `torch.load` within them is held to
tensors, also one that says `weights_only=False`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
FORBID = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Of `torch.load`; the first wins over what its caller asks for, and refuses beside the second."""


@contextmanager
def tensors_only() -> Iterator[None]:
    """Let `torch.load` build tensors and plain values only, whoever calls it within the block."""
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORBID)}
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def reason_of(error: BaseException) -> str:
    """The first line of a library's message, or the type of an error that has none."""
    first = " ".join(str(error).strip().partition("\n")[0].split())
    return first or type(error).__name__
