"""Adapters are aggregated in memory as in folders, and load into PEFT."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from adapter_cases import (
    RANKS,
    SAMPLES,
    SETTINGS,
    assert_same,
    base_model,
    cut,
    dense_average,
    load,
    lora_layers,
    merged_model,
    outputs,
    share_a,
    third_party_warnings_ignored,
)
from designs import pairwise
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from state_dict_cases import ALPHA, KEY, assert_bits_of_folder, client, product, states

from fedlora_sim.errors import InputError
from fedlora_sim.peft import (
    aggregate_adapters,
    aggregate_state_dicts,
    truncate_state_dict,
)
from fedlora_sim.randomness import library_draws
from fedlora_sim.rules import rule_names
from fedlora_sim.tolerances import EPS, ROUNDING_UNITS

CONVENTIONS = {
    "alpha": [{"r": r, "lora_alpha": ALPHA} for r in RANKS],
    "rslora": [{"r": r, "lora_alpha": ALPHA, "use_rslora": True} for r in RANKS],
    "pattern": [
        {"r": r, "lora_alpha": ALPHA, "rank_pattern": {"h.1.attn.c_attn": r + 1}} for r in RANKS
    ],
    "mixed": [{"r": r, "lora_alpha": 3 + r} for r in RANKS],
}


@pytest.mark.slow
@pairwise(
    architecture=SETTINGS,
    convention=["alpha", "rslora", "mixed"],
    rule=[*rule_names(), "raflora:canonicalize=true", "fedex:residual_rank=1"],
)
def test_equal_to_the_folders_bit_by_bit(clients, tmp_path, architecture, convention, rule):
    settings = CONVENTIONS[convention]
    folders = clients(architecture, *settings)
    if rule == "ffa":
        folders = share_a(folders, tmp_path)
    aggregate_adapters(folders, SAMPLES, rule, tmp_path / "out", seed=5)
    use_rslora = convention == "rslora"
    found = aggregate_state_dicts(
        states(folders),
        SAMPLES,
        rule=rule,
        lora_alpha=[own["lora_alpha"] for own in settings],
        result_alpha=ALPHA,
        use_rslora=use_rslora,
        seed=5,
    )
    frozen_a = rule == "ffa"
    assert_bits_of_folder(found, tmp_path / "out", ALPHA, use_rslora=use_rslora, frozen_a=frozen_a)


@pytest.mark.parametrize("rule", ["raflora", "flora"])
def test_ranks_of_single_modules(clients, tmp_path, rule):
    folders = clients("gpt2", *CONVENTIONS["pattern"])
    aggregate_adapters(folders, SAMPLES, rule, tmp_path / "out")
    found = aggregate_state_dicts(states(folders), SAMPLES, rule=rule, lora_alpha=ALPHA)
    ranks = {found[key].shape[0] for key in found if ".lora_A" in key}
    assert len(ranks) == 2
    assert_bits_of_folder(found, tmp_path / "out", ALPHA)


@pytest.mark.parametrize(
    "options",
    [
        {"target_rank": 3},
        {"uniform_rank": True},
        {"rank_levels": [2, 4, 8, 9], "empty_partition": "zero"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_folder_command(clients, tmp_path, options):
    folders = clients("gpt2", *CONVENTIONS["alpha"])
    aggregate_adapters(folders, SAMPLES, "raflora", tmp_path / "out", **options)
    found = aggregate_state_dicts(states(folders), SAMPLES, lora_alpha=ALPHA, **options)
    assert_bits_of_folder(found, tmp_path / "out", ALPHA)


def test_carry_keeps_the_previous_partition(clients, tmp_path):
    folders = clients("gpt2", *CONVENTIONS["alpha"])
    first = aggregate_state_dicts(states(folders), SAMPLES, lora_alpha=ALPHA)
    with pytest.raises(InputError, match="the last global adapter"):
        aggregate_state_dicts(states(folders[:2]), SAMPLES[:2], lora_alpha=ALPHA, rank_levels=RANKS)
    found = aggregate_state_dicts(
        states(folders[:2]), SAMPLES[:2], lora_alpha=ALPHA, rank_levels=RANKS, previous=first
    )
    key = next(key for key in found if key.endswith("c_attn.lora_A.weight"))
    pair = (key, key.replace("lora_A", "lora_B"))
    views = [
        (*(state[k].double() for k in pair), ALPHA / state[key].shape[0])
        for state in states(folders[:2])
    ]
    wanted = dense_average(views, SAMPLES[:2], "raflora")
    a, b = (first[k] for k in pair)
    wanted += ALPHA / 8 * b[:, 4:] @ a[4:]
    assert_same(product(found, key=key.replace("lora_A", "lora_{}")), cut(wanted, 8))


def peft_model(architecture, state, rank):
    config = LoraConfig(**SETTINGS[architecture], r=rank, lora_alpha=ALPHA)
    with third_party_warnings_ignored(), library_draws(0):
        model = get_peft_model(base_model(architecture), config)
        result = set_peft_model_state_dict(model, state)
    assert list(result.unexpected_keys) == []
    assert set(get_peft_model_state_dict(model)) == set(state)
    return model.eval()


@pytest.mark.parametrize("rule", ["fedavg", "raflora", "flora"])
def test_the_result_loads_into_peft(clients, rule):
    """Its outputs, and those of every client's truncation, are those of a dense merge."""
    folders = clients("gpt2", *CONVENTIONS["alpha"])
    found = aggregate_state_dicts(states(folders), SAMPLES, rule=rule, lora_alpha=ALPHA)
    views = [lora_layers(load("gpt2", folder)) for folder in folders]
    kind = "raflora" if rule == "raflora" else "fedavg"
    dense = {
        name: dense_average([view[name] for view in views], SAMPLES, kind) for name in views[0]
    }
    full = next(found[key].shape[0] for key in found if ".lora_A" in key)
    assert full == (sum(RANKS) if rule == "flora" else max(RANKS))
    for rank in {full, *RANKS}:
        received = truncate_state_dict(found, rank, lora_alpha=ALPHA)
        model = peft_model("gpt2", received, rank)
        merged = merged_model("gpt2", {name: cut(delta, rank) for name, delta in dense.items()})
        assert_same(outputs(model), outputs(merged))


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_product_of_a_truncation_is_the_truncation(use_rslora):
    state = client(6)
    received = truncate_state_dict(
        state, 2, lora_alpha=ALPHA, use_rslora=use_rslora, client_alpha=5
    )
    a, b = state[KEY.format("A")], state[KEY.format("B")]
    roots = (math.sqrt(6), math.sqrt(2)) if use_rslora else (6, 2)
    wanted = ALPHA / roots[0] * b[:, :2] @ a[:2]
    assert_same(product(received, alpha=5 * 2 / roots[1]), wanted, "reduction")
    frozen = truncate_state_dict(state, 2, lora_alpha=ALPHA, frozen_a=True)
    assert torch.equal(frozen[KEY.format("A")], a[:2])
    assert_same(product(frozen), ALPHA / 6 * b[:, :2] @ a[:2], "reduction")


def test_a_truncation_keeps_fresh_components_and_ranks_by_pattern():
    state = client(6)
    state[KEY.format("B")][:, 1] = 0
    received = truncate_state_dict(state, 3, lora_alpha=ALPHA)
    assert torch.equal(received[KEY.format("A")][1], state[KEY.format("A")][1])
    own = truncate_state_dict(state, 3, lora_alpha=ALPHA, rank_pattern={"layer": 2})
    assert own[KEY.format("A")].shape == (2, 9)
    with pytest.raises(InputError, match="rank=7: expected at most the rank of the adapter, 6"):
        truncate_state_dict(state, 7, lora_alpha=ALPHA)


@pytest.mark.parametrize("rule", ["flora", "fedex"])
def test_the_total_is_the_adapter_plus_the_base_correction(rule):
    own = [client(r, seed=r) for r in (2, 3)]
    found = aggregate_state_dicts(own, [1, 2], rule=rule, lora_alpha=ALPHA, details=True)
    wanted = (product(own[0]) + 2 * product(own[1])) / 3
    assert_same(product(found.total), wanted)
    assert_same(product(found.adapter) + product(found.base), wanted)
    assert found.layers[0].client_ranks == (2, 3)
    assert found.base.keys() == found.total.keys()


# One client at a time


@pytest.mark.parametrize("form", ["functions", "pairs", "generator of functions"])
def test_at_most_one_client_is_in_memory(form):
    """Arrays, whose memory tensors share, are dead when the next client is made."""
    ranks, arrays = (2, 4, 3, 4), []

    def make(k):
        assert not any(array() is not None for array in arrays), "an earlier client is alive"
        state = {key: x.numpy() for key, x in client(ranks[k], seed=k).items()}
        arrays.extend(weakref.ref(array) for array in state.values())
        return state

    wanted = aggregate_state_dicts(
        [client(r, seed=k) for k, r in enumerate(ranks)], (1, 2, 3, 4), lora_alpha=ALPHA
    )
    functions = [lambda k=k: make(k) for k in range(4)]
    given = {
        "functions": functions,
        "pairs": ((make(k), k + 1) for k in range(4)),
        "generator of functions": iter(functions),
    }[form]
    samples = None if form == "pairs" else (1, 2, 3, 4)
    found = aggregate_state_dicts(given, samples, lora_alpha=ALPHA)
    assert len(arrays) == 8
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_temporary_files_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    aggregate_state_dicts([lambda: client(2)], lora_alpha=ALPHA)
    with pytest.raises(InputError):
        aggregate_state_dicts([lambda: client(2), dict], lora_alpha=ALPHA)
    assert list(tmp_path.iterdir()) == []


# Forms of the tensors


def test_arrays_and_half_precision():
    own = [client(r, seed=r) for r in (2, 4)]
    wanted = aggregate_state_dicts(own, lora_alpha=ALPHA)
    arrays = [{key: x.numpy() for key, x in state.items()} for state in own]
    found = aggregate_state_dicts(arrays, lora_alpha=ALPHA)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    half = [client(r, seed=r, dtype=torch.bfloat16) for r in (2, 4)]
    found = aggregate_state_dicts(half, lora_alpha=ALPHA)
    assert {x.dtype for x in found.values()} == {torch.bfloat16}
    rounded = [{key: x.double() for key, x in state.items()} for state in half]
    wanted = aggregate_state_dicts(rounded, lora_alpha=ALPHA)
    error = (product(found) - product(wanted)).norm() / product(wanted).norm()
    assert error <= ROUNDING_UNITS * EPS["bfloat16"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu():
    own = [client(r, seed=r) for r in (2, 4)]
    wanted = aggregate_state_dicts(own, lora_alpha=ALPHA, device="cpu")
    there = [{key: x.cuda() for key, x in state.items()} for state in own]
    for given in (there, [lambda state=state: state for state in there]):
        found = aggregate_state_dicts(given, lora_alpha=ALPHA)
        assert {x.device.type for x in found.values()} == {"cpu"}
        assert_same(product(found), product(wanted))
    received = truncate_state_dict(there[1], 3, lora_alpha=ALPHA)
    assert {x.device.type for x in received.values()} == {"cpu"}


def test_inputs_are_untouched_and_not_shared():
    own = client(3)
    before = {key: x.clone() for key, x in own.items()}
    found = aggregate_state_dicts([own], rule="ffa", lora_alpha=ALPHA)
    for x in found.values():
        x.zero_()
    for x in truncate_state_dict(own, 3, lora_alpha=ALPHA).values():
        x.zero_()
    assert all(torch.equal(own[key], before[key]) for key in own)


def with_key(key, value):
    return {**client(2), key: value}


def without(factor):
    return {key: x for key, x in client(2).items() if f"lora_{factor}" not in key}


A, B = KEY.format("A"), KEY.format("B")


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({}, r"state_dicts\[1\]=\[\]: expected at least one pair of LoRA factors"),
        (None, r"state_dicts\[1\]='<NoneType>': expected a state dict"),
        (without("B"), rf"state_dicts\[1\]: key='{A}': expected '{B}' next to it"),
        (
            with_key(A, torch.full((2, 9), torch.nan)),
            rf"state_dicts\[1\]: {A}=nan: expected finite",
        ),
        (with_key(A, "text"), rf"state_dicts\[1\]: {A}='text': expected a tensor or an array"),
        (
            with_key(A, torch.zeros(3, 9)),
            r"lora_B.weight=\(7, 2\): expected rank 3, as lora_A says",
        ),
        (with_key(A, torch.zeros(2, 9, dtype=int)), rf"state_dicts\[1\]: {A}='torch.int64'"),
        (with_key(A, torch.zeros(2, 9).to_sparse()), r"expected a dense tensor with values"),
        (with_key(1, torch.zeros(2)), r"state_dicts\[1\]: key=1: expected text"),
        (client(2, d_in=8), r"shape of layer in state_dicts\[1\]=.*as in state_dicts\[0\]"),
        (with_key("base_model.model.x.lora_magnitude_vector", torch.ones(3)), "plain LoRA"),
        (with_key("base_model.model.norm.scale", torch.ones(3)), r"options accounts for"),
        (
            {key.replace("weight", "default.weight"): x for key, x in client(2).items()},
            "without the name of the adapter",
        ),
        (
            {key.replace("layer", "other"): x for key, x in client(2).items()},
            r"the modules and keys of state_dicts\[0\]: .*modules='owners'",
        ),
    ],
    ids=range(14),
)
def test_refusals_name_the_state_dict_and_the_key(state, named):
    with pytest.raises(InputError, match=named):
        aggregate_state_dicts([client(3), state], lora_alpha=ALPHA)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"lora_alpha": 0}, "lora_alpha=0: expected a positive number"),
        ({"lora_alpha": [1]}, r"lora_alpha=\[1.*\]: expected one value per client"),
        ({"lora_alpha": [1, 2, 3]}, r"lora_alpha=\[1, 2, 3\]: expected 2 values"),
        ({"lora_alpha": torch.ones(3)}, "lora_alpha=.*: expected 2 values"),
        ({"lora_alpha": [torch.ones(2)] * 2}, "lora_alpha=.*: expected a positive number"),
        ({"lora_alpha": [1, 2]}, "result_alpha=None: expected the alpha of the returned"),
        ({"use_rslora": "no"}, "use_rslora='no': expected True or False"),
        ({"options": {"use_dora": True}}, "options: use_dora=True: expected plain LoRA"),
        ({"options": {"lora_alpha": 3}}, "options: lora_alpha=3: expected the same as"),
        ({"target_parameters": {"x": 2}}, "target_parameters='x': expected a parameter"),
        ({"num_samples": [1]}, r"num_samples=\[1.0\]: expected 2 values"),
        ({"rule": "best"}, "rule='best'"),
        ({"modules": "any"}, "modules='any': expected one of owners, same, shared"),
        ({"state_dicts": client(2)}, "state_dicts='<dict>': expected one state dict per client"),
        ({"state_dicts": []}, r"state_dicts=\[\]: expected at least one"),
        ({"state_dicts": [(client(2), 1), client(2)]}, "pairs .* for all clients or for none"),
        ({"state_dicts": [(client(2), 1)], "num_samples": [1]}, "num_samples=.*expected None"),
    ],
    ids=range(17),
)
def test_arguments_are_checked(arguments, named):
    given = {"state_dicts": [client(2), client(3)], "lora_alpha": ALPHA, **arguments}
    with pytest.raises(InputError, match=named):
        aggregate_state_dicts(**given)


def test_trained_modules_that_options_name_are_averaged():
    own = [{**client(2), "base_model.model.norm.scale": torch.full((3,), float(k))} for k in (1, 4)]
    found = aggregate_state_dicts(
        own, [1, 2], lora_alpha=ALPHA, options={"modules_to_save": {"norm"}}
    )
    assert found["base_model.model.norm.scale"].tolist() == [3.0] * 3
