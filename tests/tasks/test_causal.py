"""Language models on questions: tokens, labels, lengths, targets, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from causal_cases import causal_folder, causal_model, sums, write_lines

from fedlora_sim.errors import InputError
from fedlora_sim.tasks.causal import _common, load_causal_task
from fedlora_sim.tasks.prefix import cache_prefix
from fedlora_sim.tasks.task import IGNORED, MASK, TaskOptions, logits_of
from fedlora_sim.tolerances import relative


@pytest.fixture
def options(tmp_path) -> TaskOptions:
    """Return a LLaMA and twenty questions."""
    data = write_lines(tmp_path / "questions.jsonl", sums(20))
    return TaskOptions(
        task="causal",
        model=causal_folder(tmp_path / "llama"),
        data=data,
        max_length=60,
        dtype="float64",
    )


def losses(task, batch) -> tuple[torch.Tensor, torch.Tensor]:
    return task.objective.losses(logits_of(task.model, batch.inputs), batch.labels)


def written(task, tokens) -> str:
    return task.tokenizer.decode(tokens)


@pytest.mark.parametrize("adds_end", [False, True])
def test_only_the_completion_is_labeled(options, tmp_path, adds_end):
    folder = causal_folder(tmp_path / "other", adds_end=adds_end)
    task = load_causal_task(replace(options, model=folder))
    assert (len(task.train), len(task.test)) == (16, 4)
    tokens, mask = task.test.inputs["input_ids"], task.test.inputs[MASK]
    for row, real, labels, asked in zip(
        tokens, mask, task.test.labels, task.test_questions, strict=True
    ):
        assert written(task, labels[labels != IGNORED]) == f" {asked.answer}</s>"
        text = f"<s>Question: {asked.question}\nAnswer: {asked.answer}</s>"
        assert written(task, row[real == 1]) == text
        assert torch.equal(real, real.sort(descending=True).values), "padding is on the right"
        assert (labels[real == 0] == IGNORED).all()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_sample_has_the_same_loss_alone_and_among_longer_ones(options, tmp_path, architecture):
    task = load_causal_task(replace(options, model=causal_folder(tmp_path / "m", architecture)))
    together, counts = task.objective.losses(
        logits_of(task.model, task.train.inputs), task.train.labels
    )
    lengths = task.train.inputs[MASK].sum(1)
    assert len(lengths.unique()) > 2
    for i, length in enumerate(lengths.tolist()):
        alone = task.train.take(torch.tensor([i]))
        assert alone.labels.shape == (1, length)
        (loss,), (count,) = losses(task, alone)
        assert count == counts[i]
        torch.testing.assert_close(loss, together[i], rtol=relative("factorization"), atol=0)


def test_the_loss_is_that_of_transformers(options):
    task = load_causal_task(options)
    totals, counts = task.objective.losses(
        logits_of(task.model, task.train.inputs), task.train.labels
    )
    theirs = task.model(**task.train.inputs, labels=task.train.labels).loss
    bound = relative("reduction", "float32")  # transformers' loss is computed in float32
    torch.testing.assert_close(
        (totals.sum() / counts.sum()).float(), theirs.float(), rtol=bound, atol=0
    )


def test_the_model_is_the_folders(options):
    task = load_causal_task(options)
    assert task.dtype == torch.float64
    assert not task.model.training
    assert not any(p.requires_grad for p in task.model.parameters())
    assert task.head_modules == ()
    for name, value in causal_model().state_dict().items():
        assert torch.equal(task.model.state_dict()[name], value.double())


def test_all_maps_of_a_block_are_adapted(options, tmp_path):
    llama = load_causal_task(options)
    ends = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert [name.rpartition(".")[2] for name in llama.target_modules] == ends * 2
    folder = causal_folder(tmp_path / "gpt2", "gpt2")
    gpt2 = load_causal_task(replace(options, model=folder, adapted_layers=1))
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert gpt2.target_modules == tuple(f"transformer.h.1.{name}" for name in names)
    folder = causal_folder(tmp_path / "opt", "opt")
    wanted = r"^target_modules=None: expected for OPTForCausalLM one or more of k_proj, v_proj,"
    with pytest.raises(InputError, match=wanted):
        load_causal_task(replace(options, model=folder))
    opt = load_causal_task(replace(options, model=folder, target_modules=("fc1",)))
    assert len(opt.target_modules) == 2


def test_samples_that_are_too_long_are_left_out(options):
    whole = load_causal_task(options).train
    lengths = whole.inputs[MASK].sum(1)
    limit = int(lengths.median())
    with pytest.warns(
        UserWarning, match=rf"max_length={limit} fits \d+ of 16 training and"
    ) as seen:
        task = load_causal_task(replace(options, max_length=limit))
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert torch.equal(task.train.labels, whole.labels[lengths <= limit, :limit])


def test_smaller_parts(options):
    one, again, other = (
        load_causal_task(replace(options, task_seed=seed, max_train=5, max_test=2))
        for seed in (0, 0, 1)
    )
    assert (len(one.train), len(one.test), len(one.test_questions)) == (5, 2, 2)
    assert torch.equal(one.train.labels, again.train.labels)
    assert not torch.equal(one.train.inputs["input_ids"], other.train.inputs["input_ids"])


def test_classes_and_groups(options, tmp_path):
    plain = load_causal_task(options)
    assert (plain.train.classes, plain.train.groups, plain.class_names) == (None, None, ())
    records = sums(20, topic=lambda i: "even" if i % 2 == 0 else "odd", writer=lambda i: i // 10)
    task = load_causal_task(replace(options, data=write_lines(tmp_path / "topics", records)))
    assert task.class_names == ("even", "odd")
    texts = [written(task, row[1:]) for row in task.train.inputs["input_ids"]]
    first = [int(text.removeprefix("Question: ").partition("+")[0]) for text in texts]
    assert task.train.skew_classes.tolist() == [i % 2 for i in first]
    assert task.train.groups.tolist() == [i // 10 for i in first]


def test_a_cached_prefix_changes_nothing(options):
    whole = load_causal_task(replace(options, adapted_layers=1))
    cached = cache_prefix(whole)
    found, wanted = losses(cached, cached.test)[0], losses(whole, whole.test)[0]
    torch.testing.assert_close(found, wanted, rtol=relative("factorization"), atol=0)
    assert cached.test_questions == whole.test_questions


def test_a_token_may_reach_from_prompt_into_completion():
    assert _common([0, 5, 6], [0, 5, 6, 7]) == 3
    assert _common([0, 5, 6], [0, 5, 9, 7]) == 2
    assert _common([0, 5, 6], [0, 5]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_head": True}, "^train_head=True"),
        ({"max_length": 0}, "^max_length=0"),
        ({"max_length": 97}, "^max_length=97: expected at most 96, the model's"),
        ({"max_length": 8}, "^max_length=8: expected more: it fits 0 of 16 training and 0 of 4"),
        ({"data": None}, "^data=None"),
        ({"model": None}, "^model=None"),
        ({"target_modules": ("qproj",)}, "closest is 'q_proj'"),
    ],
)
def test_refused(options, changes, message):
    with pytest.raises(InputError, match=message):
        load_causal_task(replace(options, **changes))


def test_a_model_without_its_head_is_refused(options, tmp_path):
    folder = causal_folder(tmp_path / "headless")
    causal_model().model.save_pretrained(folder)
    with pytest.raises(InputError, match=r"^model=.*its files lack lm_head.weight$"):
        load_causal_task(replace(options, model=folder))


def test_a_tokenizer_without_an_end_is_refused(options, tmp_path):
    folder = causal_folder(tmp_path / "endless", end=None)
    with pytest.raises(InputError, match=r"^model=.*whose tokenizer has an eos_token$"):
        load_causal_task(replace(options, model=folder))
