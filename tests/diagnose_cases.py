"""Toy federations without training, whose adapters are written in the layouts of frameworks."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from fedlora_sim.lora import LoRAFactors
from fedlora_sim.rules import aggregate

RANKS = (2, 2, 4, 4)
MODULES = ("layers.0.q_proj", "layers.0.v_proj")
ALPHA = 8.0
DIRECTIONS = 4


@dataclass(frozen=True)
class Toy:
    """Rounds of a federation: global adapters, and the clients' adapters that gave them.

    Args:
        adapters: by round, module to factors with the scaling `ALPHA / 4`.
        clients: by round from 1 on, for each client, module to factors.
    """

    adapters: tuple[dict[str, LoRAFactors], ...]
    clients: tuple[list[dict[str, LoRAFactors]], ...]


@cache
def toy(rule: str, rounds: int = 8, noise: float = 0.02) -> Toy:
    """Return rounds in which clients return their truncation, with a little relative noise."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    now = {
        name: LoRAFactors.from_delta(random(10, 12), DIRECTIONS, ALPHA / DIRECTIONS)
        for name in MODULES
    }
    adapters, cohorts = [now], []
    for _ in range(rounds):
        cohort = []
        for rank in RANKS:
            own = {}
            for name, factors in now.items():
                cut = factors.truncate(rank)
                lora_b = cut.lora_B * (1 + noise * random(1, 1))
                own[name] = LoRAFactors(cut.lora_A, lora_b, cut.scaling).rescale(ALPHA / rank)
            cohort.append(own)
        now = {
            name: aggregate(
                [own[name] for own in cohort],
                None,
                rule,
                rank_levels=(2, 4),
                previous=now[name],
                scaling=ALPHA / DIRECTIONS,
            ).adapter
            for name in MODULES
        }
        adapters.append(now)
        cohorts.append(cohort)
    return Toy(tuple(adapters), tuple(cohorts))


def state(adapter: dict[str, LoRAFactors], before: str = "", inside: str = "") -> dict:
    """Return a state dict with a prefix, and the adapter's name in its keys."""
    found = {}
    for name, factors in adapter.items():
        found[f"{before}{name}.lora_A{inside}.weight"] = factors.lora_A.float().contiguous()
        found[f"{before}{name}.lora_B{inside}.weight"] = factors.lora_B.float().contiguous()
    return found


def write_peft(folder: Path, adapter: dict[str, LoRAFactors], *, pickled: bool = False) -> None:
    """Write an adapter folder as PEFT does; its alpha gives the factors' scaling."""
    folder.mkdir(parents=True)
    first = next(iter(adapter.values()))
    config = {
        "peft_type": "LORA",
        "r": first.rank,
        "lora_alpha": first.scaling * first.rank,
        "target_modules": ["q_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = state(adapter, "base_model.model.model.")
    if pickled:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors")


def flowertune(run: Path, toy: Toy) -> None:
    for t, adapter in enumerate(toy.adapters[1:], 1):
        write_peft(run / "2026-01-01" / f"peft_{t}", adapter)


def fedfm(run: Path, toy: Toy) -> None:
    for t, adapter in enumerate(toy.adapters[1:], 1):
        for i, rank in enumerate((2, 4)):
            cut = {name: factors.truncate(rank) for name, factors in adapter.items()}
            write_peft(run / f"peft_{t}" / f"group_{i}", cut)


def openfedllm(run: Path, toy: Toy) -> None:
    for t, adapter in enumerate(toy.adapters[1:], 1):
        write_peft(run / f"checkpoint-{t}", adapter, pickled=t % 2 == 0)
        for name in ("training_args.bin", "optimizer.pt"):  # the Trainer's, pickles of code
            (run / f"checkpoint-{t}" / name).write_bytes(pickle.dumps(Path("x")))


def flora(run: Path, toy: Toy) -> None:
    for t, adapter in enumerate(toy.adapters):
        (run / str(t)).mkdir(parents=True)
        torch.save(state(adapter, "base_model.model."), run / str(t) / "adapter_model.bin")
        for k, own in enumerate(toy.clients[t - 1] if t else ()):
            folder = run / str(t) / f"local_output_{k}"
            folder.mkdir()
            torch.save(state(own, "base_model.model."), folder / "pytorch_model.bin")


def nvflare(run: Path, toy: Toy) -> None:
    run.mkdir()
    for t, adapter in enumerate(toy.adapters[1:], 1):
        content = {"model": state(adapter, "model.base_model.model.", ".default")}
        content["train_conf"] = {"train": {"model": "peft"}}
        torch.save(content, run / f"FL_global_model_round_{t}.pt")


def federatedscope(run: Path, toy: Toy) -> None:
    run.mkdir()
    for t, adapter in enumerate(toy.adapters[1:], 1):
        content = {"cur_round": t, "model": state(adapter, "model.base_model.model.")}
        torch.save(content, run / f"save_{'abcdefghij'[-t]}.pt")


WRITERS = {
    write.__name__: write
    for write in (flowertune, fedfm, openfedllm, flora, nvflare, federatedscope)
}
