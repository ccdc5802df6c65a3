"""Pretrained models: new parameters are known and drawn by the seed; failures give one line."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from fedlora_sim.errors import InputError
from fedlora_sim.randomness import library_draws
from fedlora_sim.tasks.huggingface import from_pretrained, load_pretrained

CLASSIFIER = "AutoModelForSequenceClassification"


def load(folder: str, seed: int = 0, dtype: torch.dtype = torch.float32, **kwargs: object):
    return load_pretrained(CLASSIFIER, folder, dtype, seed, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frozen_in_evaluation_mode_with_the_head_that_the_checkpoint_lacks(
    tiny_folder, tiny_model, dtype
):
    loaded = load(tiny_folder(), dtype=dtype, num_labels=5)
    assert loaded.new_parameters == {"classifier.weight", "classifier.bias"}
    assert loaded.new_linear == ("classifier",)
    assert loaded.model.classifier.weight.shape == (5, 16)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert {p.dtype for p in loaded.model.parameters()} == {dtype}
    saved = tiny_model().float().bert.state_dict()
    for name, value in loaded.model.bert.state_dict().items():
        torch.testing.assert_close(value.float(), saved[name], rtol=0, atol=0)


def test_nothing_is_new_in_a_whole_checkpoint(tiny_folder, tiny_model):
    loaded = load(tiny_folder(headless=False), num_labels=3)
    assert not loaded.new_parameters
    assert loaded.new_linear == ()
    saved = tiny_model().float().classifier.weight
    torch.testing.assert_close(loaded.model.classifier.weight, saved, rtol=0, atol=0)


def test_a_head_of_other_classes_is_new(tiny_folder):
    loaded = load(tiny_folder(headless=False), num_labels=7)
    assert loaded.new_linear == ("classifier",)
    assert loaded.model.classifier.weight.shape == (7, 16)


def test_a_head_of_several_maps(tiny_folder):
    loaded = load(tiny_folder("roberta"), num_labels=3)
    assert loaded.new_linear == ("classifier.dense", "classifier.out_proj")


def test_the_head_depends_on_the_seed_alone(tiny_folder):
    folder = tiny_folder()
    with library_draws(1):
        before = torch.random.get_rng_state()
        first = load(folder, 3).model.classifier.weight
        torch.testing.assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)
    with library_draws(2):
        torch.testing.assert_close(load(folder, 3).model.classifier.weight, first, rtol=0, atol=0)
    assert not torch.equal(load(folder, 4).model.classifier.weight, first)


def test_silent(tiny_folder, capfd, caplog):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    folder = tiny_folder()
    capfd.readouterr()
    caplog.clear()
    load(folder)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("name", ["no-such-model", "no/such", "/no/such/folder", "bad name!"])
def test_unknown_names(name):
    with pytest.raises(InputError, match=f"^model='{name}': expected a Hugging Face hub name, or"):
        load(name)


@pytest.mark.parametrize("name", [None, ""])
def test_no_name(name):
    with pytest.raises(InputError, match=r"^model="):
        load(name)


def test_a_folder_without_a_model(tmp_path: Path):
    with pytest.raises(InputError, match=r"^model=.*that AutoTokenizer can load"):
        from_pretrained("AutoTokenizer", str(tmp_path))


def test_a_file_of_weights_cut_short(tiny_folder):
    weights = Path(tiny_folder()) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(InputError, match=r"^model="):
        load(str(weights.parent))


def test_without_transformers(monkeypatch):
    def missing(name: str):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"^model='x': .*pip install 'fedlora-sim\[lora\]'"):
        load("x")
