"""The fields of a scenario that real fine-tuning alone looks at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TaskFields:
    """Model and data.

    Args:
        task: `digits` (bundled), `text`, `vision` (pretrained models on files or named data sets),
            `causal` (a language model on questions and answers) or `arithmetic` (a small one that
            is made on the spot).
        task_seed: of what is random in the task: parts, subsets, new heads, small models.
        model: hub name or local folder of a pretrained model.
        data, test_data: a file, a named data set or a hub name; the test part where it is apart.
        max_length: tokens per sample; longer texts are cut, longer completions left out.
        target_modules: ends of the names of the linear maps that carry LoRA, as in PEFT; the
            task's usual ones when None.
        adapted_layers: adapt only the last so many blocks of the model; all when None.
        train_head: whether clients train the classifier as a whole too; where it is new when None.
        max_train, max_test: use so many samples, drawn by `task_seed`; all when None.
    """

    task: str = "digits"
    task_seed: int = 0
    model: str | None = None
    data: str | None = None
    test_data: str | None = None
    max_length: int = 64
    target_modules: tuple[str, ...] | None = None
    adapted_layers: int | None = None
    train_head: bool | None = None
    max_train: int | None = None
    max_test: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingFields(TaskFields):
    """How data is split among clients, and how they train. Model and data: see `TaskFields`.

    Args:
        cache_prefix: compute what comes before the first adapted block once per sample and keep it.

        split: `dirichlet | pathological | iid | quantity | by_writer`; `dirichlet_alpha`,
            `classes_per_client` and `quantity_alpha` shape the first, second and fourth.
        feature_noise: deviation of the noise on the last client's inputs; client k of K has k/K of
            it. For inputs that are numbers, not tokens.

        optimizer: `adam | adamw | sgd`; None takes adam for training, and sgd else. It starts anew
            every round. The quadratic loss knows sgd, and adam at matrix fidelity.
        learning_rate, momentum, weight_decay, batch_size: local training.
        client_learning_rates: one per client, in place of `learning_rate`.
        max_grad_norm: a client's gradient is shortened to this norm; None leaves it.
        local_steps: optimiser steps per round; None runs `local_epochs` epochs instead.
        stack_size: clients trained side by side at most; None for as many as `memory_budget`, in
            GiB of activations, has room for.
        gradient_checkpointing: less memory for a third more time.
        threads: of the CPU; bits of a result may depend on it.

        lora_alpha: client scaling is `lora_alpha / r_k` (`/ sqrt(r_k)` with `use_rslora`); None is
            `alpha = r`, scaling 1 for every client.
        pruning_decay: clients prune their own rank, to this share of it, in (0, 1), whenever local
            training leaves its tail smaller than it was (HetLoRA); None for no pruning.
        pruning_penalty: factor of the penalty on that tail in the local loss.
        initializer: `lora` (A random, B zero) or `slora`: `slora_rounds` rounds of sparse federated
            fine-tuning first, of this `slora_density` of every adapted weight, whose result is
            handed to the adapters by SVD.

        nonfinite: what a client whose update is not finite means: the end (`error`), or a round
            without it (`drop-client`).
        evaluate_every: rounds from one judgement of the global model to the next; the last round
            is always judged.
        counterfactuals: also aggregate every round's cohort by every other rule that trains what
            the run's own trains, and measure.
    """

    cache_prefix: bool = False

    split: str = "dirichlet"
    dirichlet_alpha: float = 0.5
    classes_per_client: int = 2
    quantity_alpha: float = 0.5
    feature_noise: float = 0.0

    optimizer: str | None = None
    learning_rate: float = 1e-3
    client_learning_rates: tuple[float, ...] | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    batch_size: int = 16
    local_steps: int | None = 10
    local_epochs: int = 1
    stack_size: int | None = None
    memory_budget: float | None = None
    gradient_checkpointing: bool = False
    threads: int = 1

    lora_alpha: float | None = None
    use_rslora: bool = False
    pruning_decay: float | None = None
    pruning_penalty: float = 0.0
    initializer: str = "lora"
    slora_rounds: int = 2
    slora_density: float = 0.1

    nonfinite: str = "error"
    evaluate_every: int = 1
    counterfactuals: bool = False
