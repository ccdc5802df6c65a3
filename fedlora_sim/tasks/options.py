"""Which task is loaded, and how: what a scenario says of its task, in one hashable piece."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskOptions:
    """A task's description; the meaning of every field is that of the scenario's of its name.

    Args:
        task: `digits | text | vision | causal | arithmetic`.
        seed: of everything random in it: parts, subsets, new heads (`task_seed`).
        model: hub name or local folder of the pretrained model; None for tasks with their own.
        data: a file, a named data set, or a hub name; training part.
        test_data: the test part, where `data` does not bring its own.
        max_length: tokens per sample; longer texts are cut, longer completions left out.
        target_modules: ends of the names of the linear maps that carry LoRA, as in PEFT; None
            takes the task's usual ones.
        adapted_layers: adapt only the last so many blocks of the model; all when None.
        train_head: whether clients train the classifier too; None: where it is new.
        max_train: use so many training samples, drawn by the seed; all when None.
        max_test: likewise of the test part.
        dtype: `float32 | float64`.
    """

    task: str = "digits"
    seed: int = 0
    model: str | None = None
    data: str | None = None
    test_data: str | None = None
    max_length: int = 64
    target_modules: tuple[str, ...] | None = None
    adapted_layers: int | None = None
    train_head: bool | None = None
    max_train: int | None = None
    max_test: int | None = None
    dtype: str = "float32"
