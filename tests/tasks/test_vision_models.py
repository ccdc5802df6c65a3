"""Models of transformers and timm: image settings, heads, and refusals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from image_cases import fake_package, vision_options, write_vit
from torch import nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
)

from fedlora_sim.errors import InputError
from fedlora_sim.tasks.huggingface import silent_transformers
from fedlora_sim.tasks.task import logits_of
from fedlora_sim.tasks.vision import load_vision_model, load_vision_task

MakeModel = Callable[..., str]


@pytest.fixture
def tiny_vit(tmp_path: Path) -> MakeModel:
    """Return a function that writes a ViT into the test's folder."""
    return partial(write_vit, tmp_path)


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        (None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        (
            {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
            (0.1, 0.2, 0.3),
            (0.4, 0.5, 0.6),
        ),
        ({"do_normalize": False}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ],
)
def test_normalization_is_the_models_own(
    tiny_vit: MakeModel,
    processor: dict[str, Any] | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    found = load_vision_model(tiny_vit(processor=processor), 10, torch.float32, 0)
    assert (found.mean, found.std, found.size) == (mean, std, (16, 16))


def test_models_of_other_images_are_refused(tmp_path: Path, tiny_vit: MakeModel) -> None:
    with pytest.raises(InputError, match="model="):
        load_vision_model(tiny_vit(num_channels=1), 10, torch.float32, 0)
    folder = str(tmp_path / "resnet")
    with silent_transformers():
        ResNetForImageClassification(
            ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])
        ).save_pretrained(folder)
    with pytest.raises(InputError, match="whose config gives image_size"):
        load_vision_model(folder, 10, torch.float32, 0)


class TimmViT(nn.Module):
    """The used part of timm's VisionTransformer; its argument is called x."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.pretrained_cfg = {"num_classes": 7}
        self.patch_embed = nn.Conv2d(3, 12, 8, 8)
        attention = (nn.ModuleDict({"qkv": nn.Linear(12, 36)}) for _ in range(2))
        self.blocks = nn.Sequential(*(nn.ModuleDict({"attn": each}) for each in attention))
        self.head = nn.Linear(12, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embed(x).flatten(2).mT
        for block in self.blocks:
            tokens = tokens + block["attn"]["qkv"](tokens)[..., :12]
        return self.head(tokens.mean(1))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return a stand-in for the package timm."""

    def create_model(name: str, *, pretrained: bool, num_classes: int) -> TimmViT:
        assert pretrained
        if name != "vit_tiny":
            raise RuntimeError(f"Unknown model ({name})")
        return TimmViT(num_classes)

    wanted = {"input_size": (3, 24, 16), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    data = SimpleNamespace(resolve_model_data_config=lambda model: wanted)
    monkeypatch.setitem(
        sys.modules, "timm", fake_package("timm", create_model=create_model, data=data)
    )


@pytest.mark.usefixtures("timm")
def test_the_task_of_timm(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    task = load_vision_task(vision_options(tmp_path, "timm:vit_tiny", dtype="float64"))
    assert torch.equal(torch.get_rng_state(), before)
    assert task.train.inputs["x"].shape == (60, 3, 24, 16)
    assert task.target_modules == ("blocks.0.attn.qkv", "blocks.1.attn.qkv")
    assert task.head_modules == ("head",)
    assert task.dtype == torch.float64
    assert not any(p.requires_grad for p in task.model.parameters())
    assert logits_of(task.model, task.test.inputs).shape == (20, 10)
    found = load_vision_model("timm:vit_tiny", 7, torch.float32, 0)
    assert not found.head_is_new
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with pytest.raises(InputError, match="model='timm:vit_huge'"):
        load_vision_model("timm:vit_huge", 7, torch.float32, 0)


def test_timm_if_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="model='timm:vit_tiny'"):
        load_vision_model("timm:vit_tiny", 7, torch.float32, 0)
