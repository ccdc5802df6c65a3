"""Untrusted files: no code in them is run, and each refusal is one line.

Code in a crafted file would create a canary file.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
from functools import partial
from pathlib import Path
from types import UnionType

import numpy as np
import pytest
import torch
from image_cases import digit_images, write_cifar
from promises import NO_CODE, Promise

from fedlora_sim.errors import LINE, InputError
from fedlora_sim.peft import AdapterFolder
from fedlora_sim.tasks.huggingface import (
    FORBID,
    from_pretrained,
    load_huggingface_parts,
    load_pretrained,
    tensors_only,
)
from fedlora_sim.tasks.vision import load_image_data

CLASSIFIER = "AutoModelForSequenceClassification"
TENSORS_ONLY = (
    "`pytorch_model.bin` of a model is read as tensors only (`weights_only=True`); pickles of a "
    "client are refused."
)


class Canary:
    """What writes a file when `pickle` loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def one_line_refusal(call, canary: Path) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert not canary.exists()
    assert message.isprintable()
    assert len(message) <= LINE
    assert ": expected " in message
    return message


def test_the_canary_is_made_when_a_pickle_is_loaded(canary, tmp_path):
    # Otherwise the tests below would show nothing.
    torch.save(Canary(canary), tmp_path / "x")
    torch.load(tmp_path / "x", weights_only=False)
    assert canary.exists()


def test_weights_are_tensors_whatever_a_library_asks_for(
    canary, tmp_path, monkeypatch, promise: Promise
):
    count = promise(TENSORS_ONLY, "crafted files")
    torch.save(Canary(canary), tmp_path / "x")
    monkeypatch.setenv(FORBID, "1")
    before = dict(os.environ)
    with tensors_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x", weights_only=False)
    assert dict(os.environ) == before
    assert not canary.exists()
    count()


def test_pickled_weights_of_a_model(tiny_folder, canary, promise: Promise):
    count = promise(TENSORS_ONLY, "crafted files")
    folder = Path(tiny_folder())
    (folder / "model.safetensors").unlink()
    torch.save({"bert.pooler.dense.weight": Canary(canary)}, folder / "pytorch_model.bin")
    for auto_class in (CLASSIFIER, "AutoModelForImageClassification"):
        load = partial(load_pretrained, auto_class, str(folder), torch.float32, 0)
        one_line_refusal(load, canary)
        count()


def test_pickled_weights_that_are_tensors_are_read(tiny_folder, tiny_model):
    folder = Path(tiny_folder())
    (folder / "model.safetensors").unlink()
    saved = tiny_model().state_dict()
    torch.save(saved, folder / "pytorch_model.bin")
    loaded = load_pretrained(CLASSIFIER, str(folder), torch.float64, 0, num_labels=3)
    weight = loaded.model.bert.pooler.dense.weight
    torch.testing.assert_close(weight, saved["bert.pooler.dense.weight"].double(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["model", "tokenizer"])
def test_code_next_to_a_model(tiny_folder, canary, kind, promise: Promise):
    count = promise(NO_CODE, "crafted files")
    folder = Path(tiny_folder())
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n", encoding="utf-8")
    name = "config.json" if kind == "model" else "tokenizer_config.json"
    path = folder / name
    options = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    classes = {"AutoConfig": "evil.C", CLASSIFIER: "evil.M", "AutoTokenizer": ["evil.T", None]}
    options |= {"auto_map": classes, "model_type": "unknown", "tokenizer_class": "Unknown"}
    path.write_text(json.dumps(options), encoding="utf-8")
    if kind == "model":
        one_line_refusal(lambda: from_pretrained(CLASSIFIER, str(folder)), canary)
    else:  # transformers loads its own tokenizer for the folder
        assert from_pretrained("AutoTokenizer", str(folder)).vocab_size > 0
        assert not canary.exists()
    count()


def test_code_next_to_a_data_set(tmp_path, canary, promise: Promise):
    count = promise(NO_CODE, "crafted files")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n", encoding="utf-8")
    one_line_refusal(lambda: load_huggingface_parts("data", str(folder), "a file"), canary)
    count()


def test_pickles_next_to_a_data_set(tmp_path, canary, promise: Promise):
    count = promise(NO_CODE, "crafted files")
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.pkl", "train.pickle", "train.pt"):
        (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    one_line_refusal(lambda: load_huggingface_parts("data", str(folder), "a file"), canary)
    count(3)


@pytest.mark.parametrize("name", ["x_train", "y_train", "groups_train"])
def test_an_archive_with_an_array_of_objects(tmp_path, canary, name, promise: Promise):
    count = promise(NO_CODE, "crafted files")
    x, y = digit_images(8)
    arrays = {"x_train": x, "y_train": y, name: np.array([Canary(canary)], dtype=object)}
    np.savez(tmp_path / "data.npz", **arrays)
    message = one_line_refusal(lambda: load_image_data(str(tmp_path / "data.npz")), canary)
    assert "a readable .npz file of numbers" in message
    count()


@pytest.mark.parametrize("part", ["train", "test", "meta"])
def test_a_crafted_cifar_file(tmp_path, canary, part, promise: Promise):
    count = promise(NO_CODE, "crafted files")
    folder = write_cifar(tmp_path / "cifar-100-python")
    (folder / part).write_bytes(pickle.dumps({b"data": Canary(canary)}))
    message = one_line_refusal(lambda: load_image_data(str(folder)), canary)
    assert "it asks for posix.mkdir" in message
    count()


NESTED = (
    b"\x80\x02]q\x00"
    + b"".join(b"](h" + bytes([k]) + b"h" + bytes([k]) + b"eq" + bytes([k + 1]) for k in range(99))
    + b"."
)
"""A list of lists of lists, 2**99 items once it is unfolded, in 700 bytes."""


@pytest.mark.parametrize("key", ["data", "fine_labels"])
def test_a_small_file_of_endless_lists(tmp_path, canary, key):
    folder = write_cifar(tmp_path / "cifar-100-python")
    # data as a list is refused at once; the labels are looked at when the data are right
    good = (folder / "train").read_bytes()
    assert good.endswith(b"u.")
    name = b"T" + len(key).to_bytes(4, "little") + key.encode()
    (folder / "train").write_bytes(good[:-2] + name + NESTED[2:-1] + b"u.")
    one_line_refusal(lambda: load_image_data(str(folder)), canary)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin", "adapter_model.pt"])
def test_a_pickled_adapter(tmp_path, canary, name, promise: Promise):
    count = promise(TENSORS_ONLY, "crafted files")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save({"q": Canary(canary)}, tmp_path / name)
    message = one_line_refusal(lambda: AdapterFolder(tmp_path), canary)
    assert "a pickle can run any code" in message
    count()


LOADERS = re.compile(r"\.from_pretrained$|^datasets\.load_dataset$|\.create_model$")
UNSAFE = re.compile(r"^(joblib\.load|(_?pickle|cloudpickle)\.\w+)$")
CONCERNED = re.compile(r"from_pretrained|load_dataset|create_model|torch\.load|joblib|pickle")


@pytest.mark.slow
def test_libraries_are_called_so_that_they_run_no_code(promise: Promise):
    count = promise(
        "Libraries load models and data sets with `trust_remote_code=False` or as tensors only; "
        "`torch.load` has `weights_only=True`; `pickle` and `allow_pickle=True` are not used.",
        "source files",
    )
    found = {}
    for package in ("fedlora_sim", "analysis", "paper_figs", "fedlora_cli"):
        for path in (Path(__file__).parents[2] / package).rglob("*.py"):
            count()
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(trust_remote_code|allow_pickle) *= *True", text), path
            if CONCERNED.search(text):
                tree = ast.parse(text)
                assert not [name for name in parts(tree, ast.Attribute) if UNSAFE.search(name)]
                calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
                for call in calls:
                    if ast.unparse(call.func) == "torch.load":
                        assert "weights_only=True" in map(ast.unparse, call.keywords), path
                found |= {
                    node.name: parts(node, ast.keyword | ast.Call)
                    for node in ast.walk(tree)
                    if isinstance(node, ast.FunctionDef)
                    and any(LOADERS.search(name) for name in parts(node, ast.Attribute))
                }
    assert set(found) == {"from_pretrained", "load_huggingface_parts", "_from_timm"}
    assert "trust_remote_code=False" in found["from_pretrained"] & found["load_huggingface_parts"]
    assert "tensors_only()" in found["from_pretrained"] & found["_from_timm"]


def parts(tree: ast.AST, kind: type | UnionType) -> set[str]:
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, kind)}
