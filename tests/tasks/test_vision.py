"""A tiny ViT on digits: prepared images, targets, head, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_cases import (
    NAMES,
    digit_images,
    vision_options,
    write_cifar,
    write_npz,
    write_vit,
)
from torch import nn

from fedlora_sim.errors import InputError
from fedlora_sim.tasks import vision
from fedlora_sim.tasks.prefix import cache_prefix
from fedlora_sim.tasks.task import logits_of
from fedlora_sim.tasks.vision import VisionModel, load_vision_task, prepare_images
from fedlora_sim.tolerances import relative

TARGETS = tuple(f"vit.layers.{i}.attention.{name}" for i in (0, 1) for name in ("q_proj", "v_proj"))
MakeModel = Callable[..., str]


@pytest.fixture
def tiny_vit(tmp_path: Path) -> MakeModel:
    """Return a function that writes a ViT into the test's folder."""
    return partial(write_vit, tmp_path)


def plain(size: tuple[int, int] = (16, 16), mean: float = 0.5, std: float = 0.5) -> VisionModel:
    """Return a model that is only asked how it wants its images."""
    return VisionModel(nn.Identity(), "x", size, (mean,) * 3, (std,) * 3, (), False)


def test_the_task_of_a_vit(tmp_path: Path, tiny_vit: MakeModel) -> None:
    task = load_vision_task(vision_options(tmp_path, tiny_vit()))
    assert task.target_modules == TARGETS
    assert task.head_modules == ("classifier",)
    assert task.class_names == tuple("0123456789")
    assert (len(task.train), len(task.test)) == (60, 20)
    pixels = task.train.inputs["pixel_values"]
    assert (pixels.shape, pixels.dtype) == ((60, 3, 16, 16), torch.float32)
    assert torch.equal(task.train.labels, torch.from_numpy(digit_images(60)[1]))
    assert not task.model.training
    assert not any(p.requires_grad for p in task.model.parameters())
    logits = logits_of(task.model, task.test.take(torch.arange(4)).inputs)
    assert logits.shape == (4, 10)
    assert torch.isfinite(logits).all()


def test_the_same_seed_gives_the_same_new_head_and_no_other_draw(
    tmp_path: Path, tiny_vit: MakeModel
) -> None:
    model, before = tiny_vit(), torch.get_rng_state()
    first, again, other = (
        load_vision_task(vision_options(tmp_path, model, task_seed=seed)).model.get_parameter(
            "classifier.weight"
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_trained_heads(tmp_path: Path, tiny_vit: MakeModel) -> None:
    old, new = tiny_vit(head=True), tiny_vit()
    wanted = {(new, None): 1, (new, True): 1, (new, False): 0, (old, None): 0, (old, True): 1}
    for (model, train_head), number in wanted.items():
        task = load_vision_task(vision_options(tmp_path, model, train_head=train_head))
        assert task.head_modules == ("classifier",)[:number]
    # A classifier of another number of classes is replaced by a new one.
    x, y = digit_images(40)
    np.savez(tmp_path / "few.npz", x_train=x, y_train=y % 3, x_test=x, y_test=y % 3)
    few = load_vision_task(vision_options(tmp_path, old, data=str(tmp_path / "few.npz")))
    assert few.head_modules == ("classifier",)
    assert few.model.get_parameter("classifier.weight").shape == (3, 16)


def test_subsets_keep_the_shares_of_the_classes(tmp_path: Path, tiny_vit: MakeModel) -> None:
    _, labels = digit_images(60)
    few = vision_options(tmp_path, tiny_vit(), max_train=30, max_test=10, task_seed=3)
    task = load_vision_task(few)
    counts = np.bincount(task.train.labels, minlength=10)
    assert counts.sum() == 30
    assert np.abs(counts - np.bincount(labels, minlength=10) / 2).max() < 1
    assert len(task.test) == 10
    again, other = (
        load_vision_task(few),
        load_vision_task(
            vision_options(tmp_path, few.model, max_train=30, max_test=10, task_seed=4)
        ),
    )
    pixels = [t.train.inputs["pixel_values"] for t in (task, again, other)]
    assert torch.equal(pixels[0], pixels[1])
    assert not torch.equal(pixels[0], pixels[2])


def test_images_are_equal_in_all_chunks(
    tmp_path: Path, tiny_vit: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_vision_task(vision_options(tmp_path, tiny_vit()))
    monkeypatch.setattr(vision, "CHUNK", 7)
    pieces = load_vision_task(vision_options(tmp_path, tiny_vit()))
    tolerance = relative("reduction", torch.float32)
    torch.testing.assert_close(
        *(t.train.inputs["pixel_values"] for t in (whole, pieces)), rtol=tolerance, atol=tolerance
    )


def test_cifar_folder_and_writers_reach_the_task(tmp_path: Path, tiny_vit: MakeModel) -> None:
    folder = write_cifar(tmp_path / "cifar-100-python")
    task = load_vision_task(vision_options(tmp_path, tiny_vit(), data=str(folder)))
    assert task.class_names == NAMES
    assert task.train.groups is None
    writers = np.arange(60) // 6
    data = write_npz(tmp_path / "written.npz", groups_train=writers)
    task = load_vision_task(vision_options(tmp_path, tiny_vit(), data=data, max_train=30))
    assert task.train.groups is not None
    assert set(task.train.groups) <= set(writers)
    assert len(task.train.groups) == 30


def test_float64(tmp_path: Path, tiny_vit: MakeModel) -> None:
    task = load_vision_task(vision_options(tmp_path, tiny_vit(), dtype="float64"))
    assert task.dtype == torch.float64
    assert task.train.inputs["pixel_values"].dtype == torch.float64


def test_pixels_of_the_right_size_are_only_normalized() -> None:
    images = np.random.default_rng(0).integers(256, size=(3, 5, 4, 3), dtype=np.uint8)
    found = prepare_images(images, plain((5, 4), mean=0.25, std=2.0))
    wanted = torch.from_numpy((images / 255 - 0.25) / 2.0).permute(0, 3, 1, 2).float()
    tolerance = relative("reduction", torch.float32)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_scaling_keeps_a_flat_image_and_the_range() -> None:
    tolerance = relative("reduction", torch.float32)
    for size in ((16, 16), (3, 4), (5, 31)):
        flat = prepare_images(np.full((1, 8, 8), 51, dtype=np.uint8), plain(size, 0.0, 1.0))
        assert flat.shape == (1, 3, *size)
        torch.testing.assert_close(flat, torch.full_like(flat, 0.2), rtol=tolerance, atol=tolerance)
        edge = np.zeros((1, 8, 8), dtype=np.uint8)
        edge[:, :4] = 255
        scaled = prepare_images(edge, plain(size, 0.0, 1.0))
        assert (float(scaled.min()), float(scaled.max())) == (0.0, 1.0)


def test_images_that_may_not_be_written_to_are_taken() -> None:
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    images.flags.writeable = False  # as images of PIL are
    assert prepare_images(images, plain()).shape == (2, 3, 16, 16)


def test_gray_and_lists_become_the_same_color_images() -> None:
    gray = digit_images(4)[0]
    color = np.repeat(gray[..., None], 3, axis=3)
    wanted = prepare_images(color, plain())
    assert torch.equal(prepare_images(gray, plain()), wanted)
    tolerance = relative("reduction", torch.float32)
    torch.testing.assert_close(
        prepare_images(list(color), plain()), wanted, rtol=tolerance, atol=tolerance
    )
    assert prepare_images([color[0], color[1][:6]], plain()).shape == (2, 3, 16, 16)


def test_images_that_memory_cannot_hold_are_refused(
    tmp_path: Path, tiny_vit: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = 3 * 16 * 16 * 4
    monkeypatch.setattr(vision, "_physical_memory", lambda: 79 * each)
    message = "max_train=None: expected together with max_test at most 79 images, .* 16x16, not 80"
    with pytest.raises(InputError, match=message):
        load_vision_task(vision_options(tmp_path, tiny_vit()))
    assert len(load_vision_task(vision_options(tmp_path, tiny_vit(), max_train=59)).train) == 59


def test_the_memory_of_this_machine_holds_some_images() -> None:
    assert vision._physical_memory() > 2**20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "model=None"),
        ({"model": "no/such"}, "model='no/such'"),
        ({"target_modules": ("keys",)}, "target_modules='keys'"),
        ({"target_modules": ("classifier",)}, r"target_modules=\['classifier'\]"),
        ({"adapted_layers": 3}, "adapted_layers=3"),
        ({"data": None}, "data=None"),
    ],
)
def test_unavailable_models_and_data_are_named(
    tmp_path: Path, tiny_vit: MakeModel, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_vision_task(vision_options(tmp_path, **{"model": tiny_vit(), **changes}))


def test_targets_and_layers_of_choice(tmp_path: Path, tiny_vit: MakeModel) -> None:
    chosen = vision_options(
        tmp_path, tiny_vit(), target_modules=("fc1", "o_proj"), adapted_layers=1
    )
    task = load_vision_task(chosen)
    assert task.target_modules == ("vit.layers.1.attention.o_proj", "vit.layers.1.mlp.fc1")


def test_a_cached_prefix_changes_nothing(tmp_path: Path, tiny_vit: MakeModel) -> None:
    last = vision_options(tmp_path, tiny_vit(), adapted_layers=1, dtype="float64")
    whole = load_vision_task(last)
    cached = cache_prefix(whole)
    assert "prefix" in cached.test.inputs
    tolerance = relative("factorization")
    torch.testing.assert_close(
        *(logits_of(task.model, task.test.inputs) for task in (whole, cached)),
        rtol=tolerance,
        atol=tolerance,
    )
