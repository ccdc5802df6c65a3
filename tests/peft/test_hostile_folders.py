"""A client's folder can neither hang nor flood the server: it is quickly refused in one line."""

from __future__ import annotations

import json
import re
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples
from promises import ONE_LINE, Promise
from safetensors.torch import save_file

from fedlora_sim.errors import LINE, InputError
from fedlora_sim.peft import AdapterFolder, patterns, read
from fedlora_sim.peft.patterns import check_time, fits_end, fits_whole
from fedlora_sim.strict_json import DEEPEST, MOST_BYTES, read_json

SECONDS = 3.0
"""Maximum processor time of a refusal in this process; the matching process has 1 s more."""
REDOS = ("(a+)+$", "(a|aa)+$", r"(\w+\s?)*x", "(.*?a){20}x", "(.*.*.*.*.*.*.*.*)*=")
LONG = "a" * 48 + "!"
"""A name for which these patterns would take years."""
IN_TIME = "Regular expressions of a client are matched in bounded time; slower ones are refused."
HOSTILE = "A client's folder with damaged, oversized or ambiguous content is refused in one line."


def write_folder(folder: Path, module: str = "layer", keys: tuple[str, ...] = (), **options):
    """Return a client's folder with LoRA on one module, of rank 2."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [module]}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**config, **options})
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    path = f"base_model.model.{module}"
    names = keys or (f"{path}.lora_A.weight", f"{path}.lora_B.weight")
    shapes = ((2, 6), (5, 2))
    tensors = {name: torch.ones(shapes[k % 2]) for k, name in enumerate(names)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def refusal(call) -> str:
    start = time.thread_time()
    with pytest.raises(InputError) as caught:
        call()
    assert time.thread_time() - start < SECONDS
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) <= LINE
    assert ": expected " in message
    return message


@pytest.mark.slow
@pytest.mark.parametrize("pattern", REDOS)
def test_target_modules_of_exponential_time(tmp_path, pattern, monkeypatch, promise: Promise):
    count = promise(IN_TIME, "patterns")
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    folder = write_folder(tmp_path, LONG, target_modules=pattern)
    message = refusal(partial(AdapterFolder, folder))
    assert f"adapter_config.json: pattern={pattern!r}: expected patterns that" in message
    count()


@pytest.mark.parametrize("where", ["rank_pattern", "alpha_pattern"])
def test_patterns_of_exponential_time(tmp_path, where, monkeypatch, promise: Promise):
    count = promise(IN_TIME, "patterns")
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    folder = write_folder(tmp_path, LONG, **{where: {"q": 1, "(q|k)_proj": 1, "(a+)+$": 2}})
    message = refusal(partial(AdapterFolder, folder))
    assert "pattern='(a+)+$': expected patterns that" in message
    count()


@pytest.mark.slow
def test_many_slow_patterns(tmp_path, promise: Promise):
    count = promise(IN_TIME, "patterns")
    slow = {f"(a+)+{'a' * k}$|x{k}": 2 for k in range(300)}
    folder = write_folder(tmp_path, LONG[-23:], rank_pattern=slow)
    assert "pattern='(a+)+aa" in refusal(partial(AdapterFolder, folder))
    count(len(slow))


def test_more_patterns_and_modules_than_can_be_matched():
    names = [f"m{k}" for k in range(10_000)]
    message = refusal(lambda: check_time("config", names, [], [f"p{k}" for k in range(1001)]))
    assert "1,001 patterns x 10,000 modules" in message


@pytest.mark.parametrize(
    "pattern", ["(q", "a{99999999999}", "(" * 5000, "*", "q" * 20_000, "[[:x", r"(?P<a>.)(?P<a>.)"]
)
def test_invalid_patterns(tmp_path, pattern, promise: Promise):
    count = promise(IN_TIME, "patterns")
    folder = write_folder(tmp_path, rank_pattern={pattern: 2})
    assert "rank_pattern" in refusal(partial(AdapterFolder, folder))
    count()


WORDS = st.sampled_from(["q_proj", "k_proj", "layers", "0", "1", "11", "mlp", "down", "h", "attn"])
NAMES = st.lists(WORDS, min_size=1, max_size=5).map(".".join)
PARTS = WORDS | st.sampled_from(
    [".", r"\.", ".*", r"\d+", "(q|k)_proj", "[01]", "^", "$", "(?:mlp|h)", r"layers\.[0-9]+\."]
)
PATTERNS = st.lists(PARTS, min_size=1, max_size=5).map("".join) | NAMES.map(re.escape)


@settings(max_examples=examples(200))
@given(PATTERNS, NAMES)
def test_ordinary_patterns_match_as_with_re(pattern, name):
    assert fits_end(pattern, name) == bool(re.match(rf"(.*\.)?({pattern})$", name))
    assert fits_whole(pattern, name) == bool(re.fullmatch(pattern, name))


@pytest.mark.parametrize(
    "bad", ["a\x1b[2Jb", "a\nb", "a\u202eb", "a\x00b", "(a+)+$", "a*b", "x" * 600]
)
def test_names_that_cannot_be_a_modules(tmp_path, bad, promise: Promise):
    count = promise(HOSTILE, "folders")
    folder = write_folder(tmp_path, bad)
    assert "printable names of at most 500 characters" in refusal(partial(AdapterFolder, folder))
    count()


def test_control_characters_in_every_text_of_a_configuration(tmp_path, promise: Promise):
    count = promise(ONE_LINE, "texts of a configuration")
    evil = "\x1b[2J\x1b]0;owned\x07\r\n\u202e\x9b31m"
    for option in ("bias", "r", "peft_type", "init_lora_weights", "rank_pattern", evil):
        folder = write_folder(tmp_path, **{option: evil})
        assert "\\x1b[2J" in refusal(partial(AdapterFolder, folder))
        count()


@pytest.mark.slow
def test_errors_are_short_however_long_the_option(tmp_path, promise: Promise):
    count = promise(ONE_LINE, "texts of a configuration")
    flood = "x" * 10_000_000
    for options in ({"bias": flood}, {"modules_to_save": [flood, 1]}, {"r": [1] * 1_000_000}):
        refusal(partial(AdapterFolder, write_folder(tmp_path, **options)))
        count()


def test_more_tensors_than_a_model_has(tmp_path, monkeypatch, promise: Promise):
    count = promise(HOSTILE, "folders")
    monkeypatch.setattr(read, "MOST_TENSORS", 10)
    keys = tuple(f"base_model.model.m{k}.lora_{x}.weight" for k in range(6) for x in "AB")
    folder = write_folder(tmp_path, keys=keys)
    assert "12 tensors" in refusal(partial(AdapterFolder, folder))
    count()


@pytest.mark.parametrize("length", [2**62, 100_000_001, 10])
def test_invalid_headers(tmp_path, length, promise: Promise):
    count = promise(HOSTILE, "folders")
    folder = write_folder(tmp_path)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert "a whole safetensors file" in refusal(partial(AdapterFolder, folder))
    count()


def json_refusal(tmp_path, content: str) -> str:
    folder = write_folder(tmp_path)
    (folder / "adapter_config.json").write_text(content, encoding="utf-8")
    return refusal(partial(AdapterFolder, folder))


def test_a_configuration_of_any_size_and_form(tmp_path, promise: Promise):
    count = promise(HOSTILE, "folders")
    for content, named in (
        (" " * (MOST_BYTES + 1), "more than 16,000,000"),
        ("[" * 100_000 + "]" * 100_000, "within each other"),
        ('{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), "within each other"),
        ('{"r": 1, "peft_type": "LORA", "r": 2}', "'r' twice"),
        ('{"r": ' + "9" * 5000 + "}", "valid JSON"),
        ("\ufeff{}", "valid JSON"),
    ):
        assert named in json_refusal(tmp_path, content)
        count()


def test_valid_json_is_read(tmp_path):
    nested = json.loads("[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1))
    content = {"a": 1, "b": [True, None, {"c": "d"}], "c": 1.5, "e": nested[0]}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_json(path) == content


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_types_without_arithmetic(tmp_path, dtype, promise: Promise):
    count = promise(HOSTILE, "folders")
    folder = write_folder(tmp_path, modules_to_save=["head"])
    path = "base_model.model."
    tensors = {
        f"{path}layer.lora_A.weight": torch.ones(2, 6),
        f"{path}layer.lora_B.weight": torch.ones(5, 2),
        f"{path}head.weight": torch.ones(3, 3).to(dtype),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    opened = AdapterFolder(folder)
    assert "float8" in refusal(lambda: opened.tensor(f"{path}head.weight"))
    tensors[f"{path}layer.lora_A.weight"] = torch.ones(2, 6).to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors")
    assert "F8" in refusal(partial(AdapterFolder, folder))
    count()
