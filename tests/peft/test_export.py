"""Exported adapters: the clients' updates and the server's adapter, both read by PEFT."""

from __future__ import annotations

import json

import pytest
import torch
from adapter_cases import (
    assert_same,
    base_model,
    lora_layers,
    third_party_warnings_ignored,
)
from export_cases import TINY, keep_run, logits, tiny_task, write_text_task
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from fedlora_sim.finetune.checkpoints import load_state
from fedlora_sim.finetune.run import FederatedRun, run_training
from fedlora_sim.peft import AdapterFolder, aggregate_adapters
from fedlora_sim.peft.export import KeptRun, task_options
from fedlora_sim.rules import get_rule
from fedlora_sim.runtime import one_thread
from fedlora_sim.tasks.huggingface import silent_transformers

PRUNING = {"pruning_decay": 0.6, "pruning_penalty": 5.0, "local_steps": 8, "lora_alpha": 4.0}
RULES = ("fedavg", "raflora", "zero_pad", "hetlora", "rbla", "ffa", "flora", "fedex")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def alone():
    """Provide one thread, as in a run."""
    with one_thread():
        yield


def load_folder(base, folder):
    """Return a model with the adapter of a folder, through PEFT; every key must find its place."""
    with third_party_warnings_ignored():
        model = PeftModel.from_pretrained(base, folder)
        result = model.load_adapter(folder, adapter_name="default")
    assert list(result.missing_keys) == []
    assert list(result.unexpected_keys) == []
    return model.eval()


def peft_logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def aggregated(kept, t, folder):
    """Return the exported cohort of a round, aggregated as the round did; the result's folder."""
    cohort = kept.export_clients(t, None, folder)
    kept.export_global(t - 1, folder / "previous")
    aggregate_adapters(
        cohort.folders,
        cohort.num_samples,
        kept.run.rule.label,
        folder / "out",
        rank_levels=cohort.rank_levels,
        previous=folder / "previous" / ("adapter" if cohort.has_base else "."),
        empty_partition=kept.scenario.empty_partition,
    )
    return AdapterFolder(folder / "out")


def assert_round_is_reproduced(kept, t, folder):
    """Compare the product of every module, and the heads, with the run's states."""
    result, cpu, dtype = aggregated(kept, t, folder), torch.device("cpu"), kept.run.task.dtype
    before, after = (load_state(kept.place, s, cpu) for s in (t - 1, t))
    for name, delta in after.deltas().items():
        increment = delta - before.base[name] if name in before.base else delta
        assert_same(result.factors(name, dtype, cpu).delta(), increment, dtype=dtype)
    for name, (weight, bias) in after.heads.items():
        for key, wanted in (("weight", weight), ("bias", bias)):
            found = result.tensor(f"base_model.model.{name}.{key}")
            assert_same(found, wanted, "reduction", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [*RULES, "raflora:canonicalize=true", "fedex:residual_rank=3"])
def test_the_exported_cohort_aggregates_to_the_next_state(tmp_path, rule):
    kept = keep_run(tmp_path, tiny_task(), rule, lora_alpha=4.0)
    for t in (1, 3):
        assert_round_is_reproduced(kept, t, tmp_path / str(t))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("raflora", {"dtype": "float32"}),
        ("flora", {"dtype": "float32", "use_rslora": True, "lora_alpha": 4.0}),
        ("raflora", {"empty_partition": "zero", "sampling": "with_replacement"}),
        ("fedavg", {"sampling": "size_weighted", "use_rslora": True, "lora_alpha": 3.0}),
        ("hetlora", PRUNING),
        ("rbla", {"nonfinite": "drop-client", "client_learning_rates": (*[0.02] * 5, 1e300)}),
        ("flora", {"initializer": "slora"}),
        ("ffa", {"initializer": "slora"}),
    ],
    ids=str,
)
def test_exported_cohorts_of_other_federations_aggregate_too(tmp_path, rule, changes):
    task = tiny_task(dtype=getattr(torch, changes.get("dtype", "float64")))
    kept = keep_run(tmp_path, task, rule, cohort_size=4, **changes)
    assert_round_is_reproduced(kept, 2, tmp_path / "2")


@pytest.mark.slow
def test_clients_have_the_ranks_that_they_were_pruned_to(tmp_path):
    kept = keep_run(tmp_path, tiny_task(), "hetlora", cohort_size=6, **PRUNING)
    exported = kept.export_clients(2, None, tmp_path / "out")
    assert exported.ranks == tuple(kept.checkpoints.rows(2)[2]["client_rank"])
    assert exported.ranks != kept.scenario.ranks
    assert exported.rank_levels == tuple(sorted(set(exported.ranks)))
    levels = [AdapterFolder(folder).config for folder in exported.folders]
    for config, rank, before in zip(levels, exported.ranks, kept.scenario.ranks, strict=True):
        assert config.rank == rank
        scaling = config.scaling_of(kept.run.task.target_modules[0])
        assert scaling == pytest.approx(kept.scenario.client_scaling(before))


@pytest.mark.slow
def test_clients_come_out_bit_for_bit(tmp_path, monkeypatch):
    sent, train = [], FederatedRun.train

    def remember(run, t):
        sent.append(train(run, t))
        return sent[-1]

    with monkeypatch.context() as patch:
        patch.setattr(FederatedRun, "train", remember)
        kept = keep_run(tmp_path, tiny_task(dtype=torch.float32), dtype="float32")
    for t, upload in enumerate(sent, start=1):
        exported = kept.export_clients(t, upload.clients.tolist(), tmp_path / f"round-{t}")
        assert exported.num_samples == tuple(upload.weights)
        for slot, folder in enumerate(exported.folders):
            found = AdapterFolder(folder)
            for name, updates in upload.updates.items():
                update = found.factors(name, torch.float32, torch.device("cpu"))
                assert torch.equal(update.lora_A, updates[slot].lora_A)
                assert torch.equal(update.lora_B, updates[slot].lora_B)
                assert update.scaling == updates[slot].scaling


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("rule", ["raflora", "fedex"])
def test_peft_loads_the_global_adapter(tmp_path, architecture, rule):
    task = tiny_task(architecture)
    kept = keep_run(tmp_path, task, rule, lora_alpha=4.0)
    for t in (0, 3):
        kept.export_global(t, tmp_path / f"global-{t}")
        model = load_folder(base_model(architecture), tmp_path / f"global-{t}")
        state = load_state(kept.place, t, torch.device("cpu"))
        wanted = logits(task, state.deltas(), state.heads)
        assert_same(peft_logits(model, task.test.inputs), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("rule", ["raflora", "ffa", "flora"])
def test_the_global_adapter_is_what_the_largest_client_starts_from(tmp_path, rule, use_rslora):
    """To the bit: A and B share the product as in the run, so that training continues equally."""
    changes = {"lora_alpha": 16.0, "use_rslora": use_rslora, "cohort_size": 6}
    kept = keep_run(tmp_path, tiny_task(), rule, **changes)
    run, cpu = kept.run, torch.device("cpu")
    kept.export_global(1, tmp_path / "global")
    client = kept.export_clients(2, [5], tmp_path / "clients").folders[0]
    whole = AdapterFolder(tmp_path / "global" / ("adapter" if rule == "flora" else "."))
    assert (whole.config.rank, whole.config.alpha, whole.config.use_rslora) == (8, 16, use_rslora)
    assert AdapterFolder(client).config.alpha == whole.config.alpha
    state = load_state(kept.place, 1, cpu)
    run.received.start_round(1)
    held = {name: [torch.arange(8)] for name in state.adapters}
    start = run.received.stack(state, held, [kept.scenario.client_scaling(8)])
    for name, (lora_a, lora_b) in start.adapters.items():
        found = whole.factors(name, run.task.dtype, cpu)
        assert found.scaling == kept.scenario.client_scaling(8) != 1
        assert torch.equal(found.lora_A, lora_a[0])
        assert torch.equal(found.lora_B, lora_b[0])
        assert_same(found.delta(), state.adapters[name].delta())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_peft_loads_a_client(tmp_path, architecture):
    task = tiny_task(architecture)
    kept = keep_run(tmp_path, task, lora_alpha=3.0, use_rslora=True, cohort_size=6)
    exported = kept.export_clients(2, [5, 1], tmp_path / "out")
    assert [folder.name for folder in exported.folders] == ["client-5", "client-1"]
    assert exported.ranks == (8, 2)
    kept.run.state = load_state(kept.place, 1, torch.device("cpu"))
    upload = kept.run.train(1)
    for k, folder in zip(exported.clients, exported.folders, strict=True):
        model = load_folder(base_model(architecture), folder)
        deltas = {name: own[k].delta() for name, own in upload.updates.items()}
        heads = {name: tuple(x[k] for x in own) for name, own in upload.heads.items()}
        assert_same(peft_logits(model, task.test.inputs), logits(task, deltas, heads))
        scalings = {s for _, _, s in lora_layers(model).values()}
        assert scalings == {kept.scenario.client_scaling(kept.scenario.ranks[k])}


@pytest.mark.parametrize("rule", ["flora", "fedex"])
def test_a_correction_of_the_base_is_also_written_separately(tmp_path, rule):
    kept = keep_run(tmp_path, tiny_task(), rule)
    kept.export_global(2, tmp_path / "out")
    whole, adapter, base = (AdapterFolder(tmp_path / "out" / p) for p in ("", "adapter", "base"))
    assert base.extras == ()
    for name in whole.layers:
        parts = [
            f.factors(name, torch.float64, torch.device("cpu")) for f in (whole, adapter, base)
        ]
        assert_same(parts[1].delta() + parts[2].delta(), parts[0].delta())
        assert parts[1].rank == 8
        assert not parts[1].lora_A.norm(dim=1).eq(0).any()  # otherwise no client could train it


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_keys_and_options_are_those_that_peft_writes(tmp_path, architecture):
    task = tiny_task(architecture)
    kept = keep_run(tmp_path, task, cohort_size=6)
    kept.export_clients(1, [3], tmp_path)
    options = json.loads((tmp_path / "client-3" / CONFIG).read_text())
    config = LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=list(task.target_modules),
        modules_to_save=list(task.head_modules) or None,
        fan_in_fan_out=architecture == "gpt2",
    )
    with third_party_warnings_ignored():
        get_peft_model(base_model(architecture), config).save_pretrained(tmp_path / "peft")
    theirs = json.loads((tmp_path / "peft" / CONFIG).read_text())
    for made in (options, theirs):
        made["target_modules"] = sorted(made["target_modules"])
        made.pop("base_model_name_or_path")
    assert options.items() <= theirs.items()
    shapes = [
        {key: x.shape for key, x in load_file(folder / WEIGHTS).items()}
        for folder in (tmp_path / "client-3", tmp_path / "peft")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("name", "kind"), [("digits", None), ("arithmetic", "CAUSAL_LM"), ("causal", "CAUSAL_LM")]
)
def test_tasks_are_named_as_peft_names_them(name, kind):
    scenario = TINY.replace(task=name, model="some/model", data="some.jsonl")
    options = task_options(tiny_task("gpt2"), scenario, is_own=False)
    assert (options["task_type"], options["base_model_name_or_path"]) == (kind, "some/model")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("headless", "train_head"), [(True, None), (True, False), (False, None), (False, True)]
)
def test_a_text_task_from_its_folder(tmp_path, monkeypatch, headless, train_head):
    """Also a classifier that was drawn when the task was loaded and not trained."""
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "cache"))
    scenario = write_text_task(tmp_path, headless).replace(train_head=train_head, cohort_size=6)
    run_training(scenario, get_rule("raflora"), [3], checkpoints=tmp_path / "run", keep="all")
    kept = KeptRun(tmp_path / "run" / "seed-3")
    assert bool(kept.run.task.head_modules) is (headless if train_head is None else train_head)
    kept.export_global(3, tmp_path / "out")
    options = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert options["base_model_name_or_path"] == scenario.model
    assert options["task_type"] == "SEQ_CLS"
    assert options["modules_to_save"] == ["classifier"]
    with silent_transformers():
        labels = len(kept.run.task.class_names)
        base = AutoModelForSequenceClassification.from_pretrained(scenario.model, num_labels=labels)
    model = load_folder(base, tmp_path / "out")
    task, state = kept.run.task, load_state(kept.place, 3, torch.device("cpu"))
    wanted = logits(task, state.deltas(), state.heads)
    assert_same(peft_logits(model, task.test.inputs), wanted, dtype=torch.float32)
