"""Runs on tiny models, stored on disk, and the outputs of their models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from adapter_cases import VOCABULARY, base_model
from torch.func import functional_call
from wordpiece_cases import wordpiece

from fedlora_sim import Scenario
from fedlora_sim.finetune.run import run_training
from fedlora_sim.finetune.stacked import add_deltas
from fedlora_sim.peft.export import KeptRun
from fedlora_sim.rules import get_rule
from fedlora_sim.tasks.task import Completion, Examples, Task, logits_of

TINY = Scenario(
    "2x3,4x2,8x1",
    fidelity="training",
    rounds=3,
    dtype="float64",
    device="cpu",
    cohort_size=3,
    learning_rate=0.02,
    local_steps=2,
    batch_size=4,
    split="iid",
)
TARGETS = {
    "bert": ("attention.self.query", "intermediate.dense"),
    "gpt2": ("attn.c_attn", "attn.c_proj"),
}
LAYERS = {"bert": "bert.encoder.layer", "gpt2": "transformer.h"}
WORDS = "the cat dog sat ran road ball goal team bank stock price"


def tiny_task(architecture="bert", heads=("classifier",), dtype=torch.float64):
    """Return a random model of two blocks and 40 samples of random tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (40, 6), generator=generator)
    labels = torch.randint(2, (40,), generator=generator) if architecture == "bert" else tokens
    halves = (slice(0, 32), slice(32, 40))
    parts = [Examples({"input_ids": tokens[half]}, labels[half]) for half in halves]
    names = [
        f"{LAYERS[architecture]}.{i}.{name}" for i in range(2) for name in TARGETS[architecture]
    ]
    model = base_model(architecture, dtype).requires_grad_(False)
    if architecture == "gpt2":
        return Task(model, *parts, tuple(names), objective=Completion())
    return Task(model, *parts, tuple(names), heads, class_names=("0", "1"))


def keep_run(folder, task, rule="raflora", **changes):
    """Return a run on a custom task with all rounds stored, opened."""
    scenario = TINY.replace(**changes)
    run_training(scenario, get_rule(rule), [3], task=task, checkpoints=folder, keep="all")
    return KeptRun(folder / "seed-3", task)


def logits(task, deltas, heads):
    """Return the outputs of a task's model on the test part with updates and heads."""
    replaced = add_deltas(task.model, deltas)
    for name, own in heads.items():
        replaced |= {f"{name}.{key}": x for key, x in zip(("weight", "bias"), own, strict=False)}

    class Changed(torch.nn.Module):
        def forward(self, **given):
            return functional_call(task.model, replaced, (), given)

    with torch.no_grad():
        return logits_of(Changed(), task.test.inputs)


def write_text_task(folder: Path, headless: bool = True) -> Scenario:
    """Return a folder with a tiny BERT and its tokenizer, and a file of short labeled texts."""
    model = base_model("bert", torch.float32)
    (model.base_model if headless else model).save_pretrained(folder / "model")
    wordpiece(WORDS, longest=16).save_pretrained(folder / "model")
    topics = {"animals": "the cat sat", "money": "stock price", "sport": "goal team"}
    if not headless:
        topics.pop("money")  # the model's head has two classes
    lines = [
        f"{' '.join(t.split()[: 1 + i % 3])} road\t{n}"
        for i in range(10)
        for n, t in topics.items()
    ]
    (folder / "texts.tsv").write_text("\n".join(lines) + "\n")
    given = {"model": str(folder / "model"), "data": str(folder / "texts.tsv"), "max_length": 8}
    return replace(TINY, task="text", dtype="float32", **given)
