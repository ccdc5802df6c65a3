"""The text task: matching tokens and labels, adapted maps, and heads trained in full."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertModel, MPNetModel, OPTModel, RobertaModel

from fedlora_sim.errors import InputError
from fedlora_sim.tasks.huggingface import text_positions
from fedlora_sim.tasks.prefix import cache_prefix
from fedlora_sim.tasks.targets import USUAL_TARGETS
from fedlora_sim.tasks.task import TaskOptions, logits_of
from fedlora_sim.tasks.text import load_text_task
from fedlora_sim.tolerances import relative

ARCHITECTURES = ["bert", "roberta", "distilbert", "gpt2", "llama"]
TOPICS = {"animals": "the cat sat", "money": "stock price fell", "sport": "goal match team"}
HEADS = {
    "bert": ("classifier",),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "distilbert": ("pre_classifier", "classifier"),
    "gpt2": ("score",),
    "llama": ("score",),
}


@pytest.fixture
def options(tmp_path, tiny_folder):
    """Return options of a task on a tiny model and thirty short texts by five writers."""
    lines = [
        f"{' '.join(words.split()[: 1 + i % 3])} road\t{topic}\tw{i % 5}"
        for i in range(10)
        for topic, words in TOPICS.items()
    ]
    path = tmp_path / "train.tsv"
    path.write_text("\n".join(lines))

    def make(architecture: str = "bert", headless: bool = True, **changes: object) -> TaskOptions:
        model = tiny_folder(architecture, headless=headless)
        given = TaskOptions(task="text", model=model, data=str(path), max_length=8)
        return replace(given, **changes)

    return make


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_usual_targets_and_the_new_head(options, architecture):
    task = load_text_task(options(architecture, adapted_layers=2))
    names = USUAL_TARGETS[architecture]
    assert len(task.target_modules) == 2 * len(names)
    assert all(target.endswith(names) for target in task.target_modules)
    assert task.head_modules == HEADS[architecture]
    logits = logits_of(task.model, task.test.inputs)
    assert logits.shape == (len(task.test), 3)
    assert not logits.requires_grad


def test_samples(options, tiny_tokenizer):
    task = load_text_task(options())
    assert task.class_names == ("animals", "money", "sport")
    assert (len(task.train), len(task.test)) == (24, 6)
    assert np.bincount(task.train.skew_classes).tolist() == [8, 8, 8]
    assert task.train.inputs["input_ids"].shape == (24, 8)
    assert set(task.train.groups) == set(range(5))
    first_words = [words.split()[0] for words in TOPICS.values()]
    tokens = tiny_tokenizer().convert_tokens_to_ids(first_words)
    first = task.train.inputs["input_ids"][:, 1]  # after [CLS]
    assert torch.equal(first, torch.tensor(tokens)[task.train.labels])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_makes_no_difference(options, architecture):
    task = load_text_task(options(architecture, dtype="float64"))
    together = logits_of(task.model, task.train.inputs)
    tight = relative("factorization", "float64")
    for i, whole in enumerate(together):
        alone = logits_of(task.model, task.train.take(torch.tensor([i])).inputs)[0]
        torch.testing.assert_close(alone, whole, rtol=tight, atol=tight)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["roberta", "gpt2"])
def test_whether_the_head_is_trained(options, architecture):
    heads = HEADS[architecture]
    for headless, train_head, expected in (
        (True, None, heads),
        (True, True, heads),
        (True, False, ()),
        (False, None, ()),
        (False, True, heads),
        (False, False, ()),
    ):
        task = load_text_task(options(architecture, headless, train_head=train_head))
        assert task.head_modules == expected


def test_modules_trained_in_full_have_no_adapter(options):
    task = load_text_task(options("roberta", target_modules=("dense",)))
    assert not set(task.target_modules) & set(task.head_modules)
    assert "roberta.encoder.layer.0.output.dense" in task.target_modules
    with pytest.raises(InputError, match=r"target_modules=.'out_proj',."):
        load_text_task(options("roberta", target_modules=("out_proj",)))


def test_subsets_are_seeded_and_keep_the_classes(options):
    few = options(max_train=9, max_test=3)
    task = load_text_task(few)
    assert np.bincount(task.train.skew_classes).tolist() == [3, 3, 3]
    assert np.bincount(task.test.skew_classes).tolist() == [1, 1, 1]
    again = load_text_task(few)
    assert torch.equal(again.train.inputs["input_ids"], task.train.inputs["input_ids"])
    other = load_text_task(replace(few, task_seed=1))
    assert not torch.equal(other.model.classifier.weight, task.model.classifier.weight)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cached_prefix_changes_nothing(options, architecture):
    given = options(architecture, adapted_layers=1, dtype="float64")
    plain = load_text_task(given)
    cached = cache_prefix(plain)
    assert cached.target_modules == plain.target_modules
    assert cached.head_modules == plain.head_modules
    index = torch.tensor([5, 0, 3])
    tight = relative("factorization", "float64")
    found, exact = (logits_of(t.model, t.test.take(index).inputs) for t in (cached, plain))
    torch.testing.assert_close(found, exact, rtol=tight, atol=tight)
    assert "prefix" in cached.test.inputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "^model=None"),
        ({"model": "no-such/model"}, "^model='no-such/model'"),
        ({"data": None}, "^data=None"),
        ({"max_length": 2}, "^max_length=2: expected a number of tokens from 3 to 24"),
        ({"max_length": 25}, "^max_length=25: expected a number of tokens from 3 to 24"),
        ({"adapted_layers": 9}, "^adapted_layers=9: expected at most 4"),
        ({"target_modules": ("q_proj",)}, "^target_modules='q_proj': expected a linear map's name"),
    ],
)
def test_refusals(options, changes, message):
    with pytest.raises(InputError, match=message):
        load_text_task(options(**changes))


def test_positions_that_start_after_the_padding_index(options, tiny_folder):
    """RoBERTa has a row of positions for padding, and none before it is used."""
    folder = tiny_folder("roberta")
    with pytest.raises(InputError, match=r"^max_length=25: expected .* from 3 to 24"):
        load_text_task(options(model=folder, max_length=25))
    task = load_text_task(options(model=folder, max_length=24))
    full = {name: torch.ones((1, 24), dtype=torch.int64) for name in task.train.inputs}
    assert logits_of(task.model, full).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "padding", "limit"),
    [(RobertaModel, 1, 22), (MPNetModel, 1, 22), (BertModel, 0, 24), (OPTModel, 1, 24)],
)
def test_how_many_tokens_a_model_has_positions_for(kind, padding, limit):
    sizes = {"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    own = {"word_embed_proj_dim": 8} if kind is OPTModel else {}
    config = kind.config_class(**sizes, **own, max_position_embeddings=24, pad_token_id=padding)
    model = kind(config).eval()
    assert text_positions(model) == limit
    words = torch.full((1, limit + 1), 5)
    assert model(words[:, :limit]).last_hidden_state.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(words)


@pytest.mark.parametrize("pad_token", [None, "[NEW]"])
def test_a_tokenizer_without_padding_that_the_model_knows(options, tiny_folder, pad_token):
    folder = tiny_folder(pad_token=pad_token)
    with pytest.raises(InputError, match=r"^model=.*has a pad_token among the model's 24 tokens"):
        load_text_task(options(model=folder))


def test_silent(options, capfd, caplog):
    given = options(adapted_layers=1)
    capfd.readouterr()
    caplog.clear()
    cache_prefix(load_text_task(given))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
