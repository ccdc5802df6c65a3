"""Modules of one shape are aggregated in one batch, of bounded size, as one by one."""

from __future__ import annotations

import json
import threading
import weakref

import numpy as np
import pytest
import torch
from adapter_cases import assert_same
from safetensors.torch import load_file, save_file

from fedlora_sim.errors import InputError
from fedlora_sim.peft import aggregate as aggregation
from fedlora_sim.peft import aggregate_adapters
from fedlora_sim.peft import layers as layers_module
from fedlora_sim.runtime import torch_threads

RANKS = (2, 4, 3)
WIDTHS = {"up": (12, 9), "down": (9, 12), "same": (12, 9)}
WEIGHTS = "adapter_model.safetensors"


def key(layer, target, factor):
    return f"base_model.model.layers.{layer}.{target}.lora_{factor}.weight"


def write(folder, rank, layers, seed, scale=1.0):
    """Write an adapter with modules of two shapes."""
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for target, (d_out, d_in) in WIDTHS.items():
            tensors[key(layer, target, "A")] = torch.randn(rank, d_in, generator=rng)
            tensors[key(layer, target, "B")] = scale * torch.randn(d_out, rank, generator=rng)
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": list(WIDTHS)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def clients(folder, layers, ranks=RANKS):
    return [write(folder / f"client-{k}", r, layers, seed=k) for k, r in enumerate(ranks)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rule", ["raflora", "fedavg", "zero_pad", "flora", "fedex", "hetlora"])
def test_a_batch_gives_what_its_modules_give_one_by_one(tmp_path, monkeypatch, rule, threads):
    folders = clients(tmp_path / "in", 3, (*RANKS[:2], 2))
    last = write(tmp_path / "last", 5, 3, seed=9)
    options = {"rank_levels": [2, 4, 5], "previous": last, "device": "cpu", "target_rank": 4}
    reports = {}
    for name, size in (("one", 1), ("all", 2**20)):
        monkeypatch.setattr(aggregation, "BATCH_BYTES", size)
        with torch_threads(threads):
            reports[name] = aggregate_adapters(
                folders, [3, 1, 2], rule, tmp_path / name, **options
            ).layers
    own, wanted = (load_file(tmp_path / name / WEIGHTS) for name in ("all", "one"))
    assert own.keys() == wanted.keys()
    for name in [name for name in own if ".lora_A." in name]:
        other = name.replace("lora_A", "lora_B")
        pair = [found[other].double() @ found[name].double() for found in (own, wanted)]
        assert_same(*pair, dtype=torch.float32)
    for one, batched in zip(reports["one"], reports["all"], strict=True):
        assert (one.module, one.client_ranks, one.rank) == (
            batched.module,
            batched.client_ranks,
            batched.rank,
        )
        for name in ("energy_before", "energy_after"):
            pair = [np.array(getattr(report, name)) for report in (batched, one)]
            assert np.allclose(*pair, rtol=1e-5, atol=1e-5 * max(pair[1]))


def test_results_do_not_depend_on_the_number_of_threads(tmp_path, monkeypatch):
    folders = clients(tmp_path / "in", 3)
    monkeypatch.setattr(aggregation, "BATCH_BYTES", 2000)
    for threads in (1, 2):
        with torch_threads(threads):
            aggregate_adapters(folders, None, "fedavg", tmp_path / str(threads), device="cpu")
    one, two = ((tmp_path / str(threads) / WEIGHTS).read_bytes() for threads in (1, 2))
    assert one == two


@pytest.mark.parametrize("num_samples", [None, [1, 1, 0]])
def test_an_entry_that_is_not_finite_is_named_from_within_a_batch(tmp_path, num_samples):
    folders = clients(tmp_path / "in", 3)
    tensors = load_file(folders[2] / WEIGHTS)
    tensors[key(1, "up", "B")][3, 1] = torch.nan
    save_file(tensors, folders[2] / WEIGHTS, {"format": "pt"})
    with pytest.raises(InputError, match=r"client-2.*layers\.1\.up\.lora_B\.weight=nan"):
        aggregate_adapters(folders, num_samples, "fedavg", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_memory_for_inputs_does_not_depend_on_the_number_of_modules(tmp_path, monkeypatch):
    """At most one batch a thread is in memory, and none afterwards."""
    threads, limit, lock = 2, 2**12, threading.Lock()
    monkeypatch.setattr(aggregation, "BATCH_BYTES", limit)
    plain, alive, peaks = layers_module.aggregate, {}, {}

    def watched(updates, *args, **options):
        tensors = [x for update in updates for x in (update.lora_A, update.lora_B)]
        with lock:
            for x in tensors:
                alive[id(x)] = x.numel() * x.element_size()
                weakref.finalize(x, alive.pop, id(x))
            peaks[layers] = max(peaks.get(layers, 0), sum(alive.values()))
        return plain(updates, *args, **options)

    monkeypatch.setattr(layers_module, "aggregate", watched)
    for layers in (2, 12):
        folders = clients(tmp_path / f"in-{layers}", layers)
        with torch_threads(threads):
            aggregate_adapters(folders, None, "raflora", tmp_path / f"out-{layers}", device="cpu")
        assert not alive
        assert 0 < peaks[layers] <= threads * limit
    total = sum((folder / WEIGHTS).stat().st_size for folder in folders)
    assert total > 2 * peaks[12]
