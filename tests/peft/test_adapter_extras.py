"""Tensors in addition to the factors, keys, the last global adapter, and the report."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from adapter_cases import RANKS, SAMPLES, assert_same, load, outputs, third_party_warnings_ignored
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from fedlora_sim.errors import InputError
from fedlora_sim.peft import AdapterFolder, aggregate_adapters
from fedlora_sim.randomness import library_draws
from fedlora_sim.tolerances import relative

WEIGHTS = "adapter_model.safetensors"
SETTINGS = [{"r": r, "lora_alpha": 8} for r in RANKS]
BIASES = [{"r": r, "bias": "all"} for r in RANKS]
TRAINED = [{"r": r, "bias": "lora_only", "modules_to_save": ["classifier"]} for r in RANKS]


def changed(folder, to, change):
    """Return a copy of an adapter folder with its tensors changed."""
    shutil.copytree(folder, to)
    tensors = load_file(to / WEIGHTS)
    save_file(change(tensors) or tensors, to / WEIGHTS)
    return to


@pytest.mark.parametrize("settings", [SETTINGS, BIASES, TRAINED], ids=["classifier", "all", "lora"])
def test_trained_tensors_are_averaged_by_samples(clients, tmp_path, settings):
    folders = clients("bert", *settings)
    aggregate_adapters(folders, SAMPLES, "fedavg", tmp_path / "out")
    files = [load_file(folder / WEIGHTS) for folder in folders]
    out = load_file(tmp_path / "out" / WEIGHTS)
    extras = [key for key in out if ".lora_" not in key]
    assert any(key.endswith("classifier.weight") for key in extras)
    for key in extras:
        wanted = sum(n * file[key] for n, file in zip(SAMPLES, files, strict=True)) / sum(SAMPLES)
        assert_same(out[key], wanted, "reduction")
    assert any((files[0][key] != files[1][key]).any() for key in extras)
    load("bert", tmp_path / "out")


@pytest.mark.parametrize("unit", [5e-324, 5e307])
def test_sample_counts_are_relative(clients, tmp_path, unit):
    folders = clients("bert", *TRAINED)
    aggregate_adapters(folders, [1, 1, 1], "fedavg", tmp_path / "one")
    aggregate_adapters(folders, [unit] * 3, "fedavg", tmp_path / "other")
    one, other = (load_file(tmp_path / name / WEIGHTS) for name in ("one", "other"))
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


def test_averaged_tensors_arrive_in_the_model(clients, tmp_path):
    folders = clients("bert", *TRAINED)
    aggregate_adapters(folders, SAMPLES, "fedavg", tmp_path / "out")
    out, model = load_file(tmp_path / "out" / WEIGHTS), load("bert", tmp_path / "out")
    classifier = model.base_model.model.classifier.modules_to_save["default"]
    assert torch.equal(classifier.weight, out["base_model.model.classifier.weight"])
    bias = "bert.encoder.layer.1.attention.self.query.base_layer.bias"
    assert torch.equal(model.base_model.model.get_parameter(bias), out[f"base_model.model.{bias}"])


def test_frozen_embeddings_must_agree_and_stay(clients, tmp_path):
    folders = clients("llama", *SETTINGS)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    aggregate_adapters(folders, SAMPLES, "fedavg", tmp_path / "out")
    assert torch.equal(
        load_file(tmp_path / "out" / WEIGHTS)[key], load_file(folders[2] / WEIGHTS)[key]
    )

    def move(tensors):
        tensors[key][0, 0] += 1

    other = changed(folders[1], tmp_path / "other", move)
    with pytest.raises(InputError, match=r"embed_tokens.base_layer.weight in .*other.*frozen"):
        aggregate_adapters([folders[0], other], [1, 1], "fedavg", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_peft_would_notice_a_wrongly_keyed_file(clients, tmp_path):
    """Other tests rely on this check: PEFT reports missing and unexpected keys."""
    aggregate_adapters(clients("gpt2", *SETTINGS), SAMPLES, "fedavg", tmp_path / "out")

    def rename(tensors):
        return {key.replace(".h.0.", ".g.0."): tensor for key, tensor in tensors.items()}

    wrong = changed(tmp_path / "out", tmp_path / "wrong", rename)
    with pytest.warns(UserWarning, match="missing adapter keys"), pytest.raises(AssertionError):
        load("gpt2", wrong)


def test_the_keys_are_those_that_peft_itself_saves(clients, tmp_path):
    for architecture in ("bert", "gpt2", "llama", "conv"):
        out = tmp_path / architecture
        aggregate_adapters(clients(architecture, *SETTINGS), SAMPLES, "raflora", out)
        model = load(architecture, out)
        with third_party_warnings_ignored():
            model.save_pretrained(tmp_path / "again", selected_adapters=["default"])
        again, ours = load_file(tmp_path / "again" / WEIGHTS), load_file(out / WEIGHTS)
        assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in ours.items()}
        for key, tensor in ours.items():
            assert torch.equal(again[key], tensor), key


def test_received_adapters_are_aggregated_in_the_next_round(clients, tmp_path):
    """In the next round the received adapters are aggregated again."""
    folders = clients("bert", *SETTINGS)
    aggregate_adapters(folders, SAMPLES, "raflora", tmp_path / "one", client_folders=True)
    received = [tmp_path / "one" / "clients" / f"rank-{r}" for r in RANKS]
    aggregate_adapters(received, SAMPLES, "raflora", tmp_path / "two", previous=tmp_path / "one")
    assert outputs(load("bert", tmp_path / "two")).isfinite().all()


def test_carry_keeps_the_partition_without_contributor(clients, tmp_path):
    folders = clients("gpt2", *SETTINGS)
    aggregate_adapters(folders, SAMPLES, "raflora", tmp_path / "one")
    arguments = (folders[:2], SAMPLES[:2], "raflora")
    levels = {"rank_levels": RANKS, "previous": tmp_path / "one"}
    aggregate_adapters(*arguments, tmp_path / "carried", **levels)
    aggregate_adapters(*arguments, tmp_path / "zero", **levels, empty_partition="zero")
    aggregate_adapters(*arguments, tmp_path / "implied", previous=tmp_path / "one")
    carried, zero, implied = (
        AdapterFolder(tmp_path / name) for name in ("carried", "zero", "implied")
    )
    last = AdapterFolder(tmp_path / "one")
    for module in last.layers:
        given = [
            f.factors(module, torch.float64, torch.device("cpu"))
            for f in (last, carried, zero, implied)
        ]
        kept = given[0].lora_B[:, 4:] @ given[0].lora_A[4:]
        assert float(kept.norm()) > 0
        # The clients' part has rank at most 6, and "zero" lost nothing of it.
        assert_same(given[1].delta(), given[3].delta())
        whole = given[2].delta() + given[0].scaling * kept
        assert_same(
            given[1].delta(),
            torch.linalg.svd(whole)[0][:, :8] @ torch.linalg.svd(whole)[0][:, :8].T @ whole,
        )
    with pytest.raises(InputError, match=r"h\.0.*contributor to every partition"):
        aggregate_adapters(
            *arguments, tmp_path / "never", rank_levels=RANKS, empty_partition="error"
        )


def test_rank_levels_are_for_modules_whose_rank_no_pattern_sets(clients, tmp_path):
    patterns = {"rank_pattern": {"h.0.attn.c_attn": 3}}
    folders = clients("gpt2", {"r": 2, **patterns}, {"r": 4, **patterns})
    report = aggregate_adapters(
        folders, [1, 2], "raflora", tmp_path / "out", rank_levels=[2, 4, 6], empty_partition="zero"
    )
    levels = {layer.module: layer.levels for layer in report.layers}
    assert levels.pop("transformer.h.0.attn.c_attn") == (3,)
    assert set(levels.values()) == {(2, 4, 6)}
    load("gpt2", tmp_path / "out")


def test_the_report_is_written_next_to_the_adapter(clients, tmp_path):
    folders = clients("gpt2", *SETTINGS)
    report = aggregate_adapters(folders, SAMPLES, "fedavg", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "aggregation.json").read_text())
    assert written["num_samples"] == list(SAMPLES)
    assert [layer["module"] for layer in written["layers"]] == [x.module for x in report.layers]
    layer = report.layers[0]
    assert layer.levels == RANKS
    assert layer.client_ranks == RANKS
    cpu = torch.device("cpu")
    share, energy = 0.0, torch.zeros(8, dtype=torch.float64)
    for folder, n in zip(folders, SAMPLES, strict=True):
        delta = AdapterFolder(folder).factors(layer.module, torch.float64, cpu).delta()
        own = torch.linalg.svdvals(delta)[:8].square()
        share += n / sum(SAMPLES) * float(own[:2].sum() / own.sum())
        energy += n / sum(SAMPLES) * own
    assert layer.rho_before == pytest.approx(share, rel=relative("factorization"))
    assert_same(torch.tensor(layer.energy_before, dtype=torch.float64), energy)
    after = AdapterFolder(tmp_path / "out").factors(layer.module, torch.float64, cpu).delta()
    own = torch.linalg.svdvals(after)[:8].square()
    assert_same(torch.tensor(layer.energy_after, dtype=torch.float64), own)
    after_share = float(own[:2].sum() / own.sum())
    assert layer.rho_after == pytest.approx(after_share, rel=relative("factorization"))


def test_adapters_that_are_zero_have_no_ratio(clients, tmp_path):
    def no_update(tensors):
        for key in tensors:
            if ".lora_B" in key:
                tensors[key].zero_()

    zero = changed(clients("bert", *TRAINED)[0], tmp_path / "zero", no_update)
    report = aggregate_adapters([zero, zero], [1, 2], "raflora", tmp_path / "out")
    assert {(layer.rho_before, layer.rho_after) for layer in report.layers} == {(None, None)}
    json.loads((tmp_path / "out" / "aggregation.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float64", "float16", "bfloat16")])
def test_frozen_embeddings_may_differ_in_precision(clients, tmp_path, dtypes):
    """One base model loaded in two precisions; the more exact one is written."""
    key = "base_model.model.model.embed_tokens.base_layer.weight"

    def stored_in(dtype):
        return lambda tensors: {**tensors, key: tensors[key].to(getattr(torch, dtype))}

    whole = clients("llama", *SETTINGS)
    folders = [
        changed(folder, tmp_path / dtype, stored_in(dtype))
        for folder, dtype in zip(whole, dtypes, strict=False)
    ]
    best = max(dtypes, key=lambda dtype: -torch.finfo(getattr(torch, dtype)).eps)
    for order in (folders, folders[::-1]):
        aggregate_adapters(order, None, "fedavg", tmp_path / "out", force=True)
        written = load_file(tmp_path / "out" / WEIGHTS)[key]
        assert torch.equal(written, load_file(tmp_path / best / WEIGHTS)[key])

    def another(tensors):
        tensors[key][0, 0] *= 1.02

    other = changed(folders[-1], tmp_path / "another", another)
    with pytest.raises(InputError, match="frozen weights that differ"):
        aggregate_adapters([folders[0], other], None, "fedavg", tmp_path / "never")


def test_averaged_tensors_of_two_precisions_are_kept_in_the_wider_one(clients, tmp_path):
    folders = clients("bert", *TRAINED[:2])

    def halved(tensors):
        return {key: x.to(torch.bfloat16) for key, x in tensors.items()}

    half = changed(folders[0], tmp_path / "half", halved)
    key = "base_model.model.classifier.weight"
    wanted = (load_file(half / WEIGHTS)[key].double() + load_file(folders[1] / WEIGHTS)[key]) / 2
    for number, order in enumerate(([half, folders[1]], [folders[1], half])):
        aggregate_adapters(order, None, "fedavg", tmp_path / str(number))
        written = load_file(tmp_path / str(number) / WEIGHTS)[key]
        assert written.dtype == torch.float64
        assert_same(written, wanted, "reduction")


def test_counters_are_not_averaged(tmp_path):
    """BatchNorm's statistics are averaged by samples; the largest counter is kept."""
    folders = []
    for number, steps in enumerate((3, 5, 9)):
        with library_draws(number):
            model = nn.ModuleDict({"line": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)})
            config = LoraConfig(r=2, target_modules=["line"], modules_to_save=["norm"])
            config.init_lora_weights = False
            model = get_peft_model(model, config)
            norm = model.base_model.model["norm"].modules_to_save["default"].train()
            for _ in range(steps):
                norm(torch.randn(8, 4))
            model.save_pretrained(tmp_path / str(number))
        folders.append(tmp_path / str(number))
    aggregate_adapters(folders, [3, 1, 0], "fedavg", tmp_path / "out")
    one, two, _ = (load_file(folder / WEIGHTS) for folder in folders)
    out, path = load_file(tmp_path / "out" / WEIGHTS), "base_model.model.norm"
    assert int(out[f"{path}.num_batches_tracked"]) == 5
    for name in ("running_mean", "running_var", "weight", "bias"):
        wanted = 0.75 * one[f"{path}.{name}"] + 0.25 * two[f"{path}.{name}"]
        assert_same(out[f"{path}.{name}"], wanted, "reduction", torch.float32)

    def spoil(tensors):
        return {**tensors, f"{path}.table": torch.arange(len(tensors) - 1)}

    def spoil_otherwise(tensors):
        return {**tensors, f"{path}.table": torch.arange(len(tensors) - 1) + 1}

    spoilt = [
        changed(folders[0], tmp_path / "a", spoil),
        changed(folders[1], tmp_path / "b", spoil_otherwise),
    ]
    with pytest.raises(InputError, match=r"norm\.table in .*whole numbers that differ"):
        aggregate_adapters(spoilt, None, "fedavg", tmp_path / "never")


def test_nothing_of_peft_is_needed_to_read(monkeypatch):
    """The package itself imports neither PEFT nor transformers."""
    import ast
    from pathlib import Path

    import fedlora_sim.peft

    for path in Path(fedlora_sim.peft.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"peft", "transformers"}
    assert PeftModel
