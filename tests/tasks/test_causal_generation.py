"""Generated text: greedy, independent of the batch, and scored by its last number."""

from __future__ import annotations

from decimal import Decimal

import pytest
import torch
from causal_cases import causal_model, causal_tokenizer
from transformers import GenerationConfig

from fedlora_sim.errors import InputError
from fedlora_sim.tasks.causal import (
    Question,
    answer_accuracy,
    continue_greedily,
    encode,
    final_answer,
    generate_answers,
)
from fedlora_sim.tasks.task import IGNORED, Completion

END, LENGTH = 1, 8
PROMPTS = ("Question: 2+3?\nAnswer:", "a", "Question: 1,200.5 - 7 = ?\nAnswer:", "bc #### ", "=9")


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    """Return random weights in float64: no two tokens are equally likely."""
    return causal_model(request.param).double()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She sells 48/2 = <<48/2=24>>24.\n#### 72", "72"),
        ("#### 1 no, #### -$1,200.50 and 3", "-1200.5"),
        ("#### 42.", "42"),
        ("7, then 8 #### nothing", "8"),
        ("it is 3,000.", "3000"),
        ("10-5", "5"),
        ("f(2)-5", "5"),
        ("is -.5", "-0.5"),
        ("$-3", "-3"),
        ("18.00", "18"),
        ("none", None),
        ("", None),
    ],
)
def test_final_answers(text, number):
    assert final_answer(text) == (None if number is None else Decimal(number))


def test_batches_write_the_same_as_single_prompts(model):
    tokenizer = causal_tokenizer()
    together = generate_answers(model, tokenizer, PROMPTS, 12, 3)
    alone = [generate_answers(model, tokenizer, [prompt], 12, 1)[0] for prompt in PROMPTS]
    assert together == alone
    assert len(set(together)) == len(PROMPTS)
    assert max(map(len, together)) == 12


def test_hits_equal_greedy_decoding(model):
    """Generated completions, and the same with one token changed at any place."""
    prompts = encode(causal_tokenizer(), PROMPTS)
    for prompt, new in zip(prompts, continue_greedily(model, prompts, LENGTH, END), strict=True):
        right = torch.tensor(new if len(new) == LENGTH else [*new, END])
        wrong = right.repeat(len(right), 1)
        wrong[range(len(right)), range(len(right))] += 1
        completions = torch.cat([right[None], wrong % len(causal_tokenizer())])
        tokens = torch.cat([torch.tensor([prompt] * len(completions)), completions], dim=1)
        labels = tokens.clone()
        labels[:, : len(prompt)] = IGNORED
        hits = Completion().hits(model(input_ids=tokens).logits, labels)
        assert hits.tolist() == [True] + [False] * len(right)


def test_an_answer_ends_at_its_end(model):
    tokenizer = causal_tokenizer()
    (new,) = continue_greedily(model, encode(tokenizer, PROMPTS[:1]), 6, END)
    stop = new[-1]
    text = tokenizer.decode(new[: new.index(stop)])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop)
    assert generate_answers(model, tokenizer, PROMPTS[:1], 6, 1) == [text]


def test_a_models_own_settings_for_sampling_do_not_count(model):
    tokenizer = causal_tokenizer()
    plain = generate_answers(model, tokenizer, PROMPTS, 12, 8)
    own = GenerationConfig(
        do_sample=True,
        temperature=9.0,
        top_k=3,
        repetition_penalty=5.0,
        num_beams=2,
        eos_token_id=7,
    )
    model.generation_config = own
    before = torch.random.get_rng_state()
    assert generate_answers(model, tokenizer, PROMPTS, 12, 8) == plain
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.generation_config is own


@pytest.mark.slow
def test_accuracy_is_the_share_of_right_numbers(model):
    tokenizer = causal_tokenizer()
    prompts = [f"Question: {i}\nAnswer:" for i in range(40)]
    numbers = [final_answer(t) for t in generate_answers(model, tokenizer, prompts, 20, 8)]
    # The wrong numbers are longer than any number in 20 characters of a random model.
    right = [number is not None and i % 2 == 0 for i, number in enumerate(numbers)]
    assert any(right)
    questions = [
        Question(str(i), f"#### {number if ok else 10**30}")
        for i, (number, ok) in enumerate(zip(numbers, right, strict=True))
    ]
    found = answer_accuracy(model, tokenizer, questions, max_new_tokens=20, batch_size=8)
    assert found == sum(right) / len(right)


def test_refused(model):
    tokenizer = causal_tokenizer()
    with pytest.raises(InputError, match=r"^questions="):
        answer_accuracy(model, tokenizer, [])
    questions = [Question("2", "3"), Question("a", "b")]
    with pytest.raises(InputError, match=r"^questions\[1\].answer='b'"):
        answer_accuracy(model, tokenizer, questions)
    with pytest.raises(InputError, match=r"^max_new_tokens=0"):
        generate_answers(model, tokenizer, PROMPTS, 0, 1)
    with pytest.raises(InputError, match=r"^batch_size=0"):
        generate_answers(model, tokenizer, PROMPTS, 1, 0)
