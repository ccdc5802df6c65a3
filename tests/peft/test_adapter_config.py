"""Configurations are read as by PEFT; each of its variants is accepted or refused explicitly."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from peft import LoraConfig, PeftType
from peft.utils.other import get_pattern_key

from fedlora_sim.errors import InputError
from fedlora_sim.peft.config import REFUSED, REFUSED_INITIALIZATIONS, read_config, written_config
from fedlora_sim.peft.patterns import pattern_key
from fedlora_sim.tolerances import relative

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
MODULES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.10.self_attn.q_proj",
    "model.layers.0.mlp.down_proj",
    "q_proj",
    "my_q_proj",
    "encoder.model.layers.0.self_attn.q_proj",
)
PATTERNS = (
    ["q_proj"],
    ["proj"],
    ["self_attn.q_proj", "q_proj"],
    ["q_proj", "self_attn.q_proj"],
    ["model.layers.0.self_attn.q_proj"],
    ["^model.layers.0.self_attn.q_proj"],
    [r"layers\.\d+\.self_attn\.q_proj"],
    ["q_proj|down_proj"],
    [".*down.*"],
    ["layers.1"],
    [],
)


def written(folder, **options):
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **options}))
    return folder


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
@pytest.mark.parametrize("module", MODULES)
def test_patterns_match_as_in_peft(patterns, module):
    assert pattern_key(patterns, module) == get_pattern_key(patterns, module)


def test_every_layer_variant_of_the_installed_peft_is_refused():
    variants = {
        field.name
        for field in dataclasses.fields(LoraConfig)
        if field.metadata.get("is_lora_variant")
    }
    # aLoRA adds B @ A to some of the tokens.
    assert variants <= set(REFUSED) | {"alora_invocation_tokens"}
    assert len(variants) >= 5


@pytest.mark.parametrize("option", sorted(REFUSED))
def test_variants_are_refused_by_name(tmp_path, option):
    with pytest.raises(InputError, match=rf"adapter_config.json: {option}=.*expected plain LoRA"):
        read_config(written(tmp_path, **{option: {"anything": 1}}))
    read_config(written(tmp_path, **{option: None}))


@pytest.mark.parametrize(
    "name",
    [*REFUSED_INITIALIZATIONS, "pissa_niter_4", "new", 3, {}],
)
def test_initializations_that_change_the_base_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="init_lora_weights="):
        read_config(written(tmp_path, init_lora_weights=name))


@pytest.mark.parametrize("name", [True, False, "gaussian", "orthogonal", "eva"])
def test_plain_initializations_are_not(tmp_path, name):
    assert read_config(written(tmp_path, init_lora_weights=name)).rank == 8


@pytest.mark.parametrize("name", [kind.value for kind in PeftType if kind != PeftType.LORA])
def test_other_types_are_refused_by_name(tmp_path, name):
    with pytest.raises(InputError, match=f"peft_type='{name}': expected 'LORA'"):
        read_config(written(tmp_path, peft_type=name))


def test_an_option_from_the_future_is_refused_only_when_it_is_on(tmp_path):
    read_config(written(tmp_path, use_newlora=False))
    with pytest.raises(InputError, match="use_newlora=True"):
        read_config(written(tmp_path, use_newlora=True))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"r": None}, "r=None"),
        ({"r": 0}, "r=0"),
        ({"r": -4}, "r=-4"),
        ({"r": 2.5}, "r=2.5"),
        ({"r": True}, "r=True"),
        ({"r": "8"}, "r='8'"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha=inf"),
        ({"lora_alpha": 0}, "lora_alpha=0"),
        ({"lora_alpha": 10**400}, "lora_alpha=<whole number of about 401 digits>"),
        ({"lora_alpha": "16"}, "lora_alpha='16'"),
        ({"rank_pattern": {"q": 0}}, "rank_pattern['q']=0"),
        ({"rank_pattern": {"(q": 4}}, "rank_pattern='(q'"),
        ({"rank_pattern": [4]}, "rank_pattern=[4]"),
        ({"alpha_pattern": {"q": -1}}, "alpha_pattern['q']=-1"),
        ({"use_rslora": "yes"}, "use_rslora='yes'"),
        ({"fan_in_fan_out": 1}, "fan_in_fan_out=1"),
        ({"bias": "some"}, "bias='some'"),
        ({"task_type": 3}, "task_type=3"),
        ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path=['a']"),
        ({"modules_to_save": "classifier"}, "modules_to_save='classifier'"),
        ({"target_modules": None}, "target_modules=None"),
        ({"target_modules": []}, "target_modules=[]"),
        ({"target_modules": "(q"}, "target_modules='(q'"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_options_are_named(tmp_path, options, named):
    with pytest.raises(
        InputError, match=re.escape(f"adapter_config.json: {named}") + ".*: expected "
    ):
        read_config(written(tmp_path, **options))


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(
    "layers",
    [
        {"a.q": (4, 1.0), "b.q": (4, 1.0)},
        {"a.q": (4, 1.0), "b.q": (6, 1.0), "c.q": (4, 2.5)},
        {"q": (4, 1.0), "a.q": (6, 0.3), "b.q": (6, 0.3)},
        {"a.q": (4, 1.0), "b.a.q": (6, 1.0), "c.b.a.q": (8, 1.0), "d": (8, 1.0)},
        {"a.q+": (4, 1.0), "b.q": (6, 1.0), "c.q": (6, 1.0)},
    ],
    ids=str,
)
def test_written_options_read_back_as_the_same_ranks_and_scalings(tmp_path, layers, use_rslora):
    options, sizes = written_config(PLAIN, layers, use_rslora, names=layers)
    for module, size in layers.items():
        assert sizes[module] == pytest.approx(size, rel=relative("reduction"))
    config = read_config(written(tmp_path, **options))
    for module, (rank, scaling) in layers.items():
        assert config.rank_of(module) == rank
        assert config.scaling_of(module) == pytest.approx(scaling, rel=relative("reduction"))
        assert (
            options["rank_pattern"].get(
                get_pattern_key(options["rank_pattern"], module), options["r"]
            )
            == rank
        )
