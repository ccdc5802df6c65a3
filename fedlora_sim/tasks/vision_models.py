"""Pretrained image classifiers of transformers and timm, and the images that they were made for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedlora_sim.errors import expected
from fedlora_sim.randomness import library_draws, stream
from fedlora_sim.tasks.pretrained import from_pretrained, load_pretrained
from fedlora_sim.tasks.targets import inside, linear_ends
from fedlora_sim.tasks.untrusted import reason_of, tensors_only

TIMM = "timm:"
CHANNELS = 3
QUERY_VALUE_MAPS = (("query", "value"), ("q_proj", "v_proj"), ("qkv",))
"""Query and value maps of attention, as libraries and their versions call them."""


@dataclass(frozen=True, eq=False)
class VisionModel:
    """A frozen image classifier in evaluation mode.

    Args:
        model: on the CPU, called with one tensor of images (n, 3, H, W).
        input_name: the argument that takes the images.
        size: H and W that the model was made for, pixels.
        mean: of the images' channels in [0, 1]; subtracted.
        std: divided by.
        head: full names of the classifier's modules.
        head_is_new: whether the checkpoint had no classifier for so many classes.
    """

    model: nn.Module
    input_name: str
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: tuple[str, ...]
    head_is_new: bool

    @property
    def query_value_maps(self) -> tuple[str, ...]:
        """Ends of the names of the query and value maps; the most common ones if it has none."""
        ends = linear_ends(self.model)
        found = (names for names in QUERY_VALUE_MAPS if {*names} <= {*ends})
        return next(found, QUERY_VALUE_MAPS[0])


def load_vision_model(
    name: str | None, num_classes: int, dtype: torch.dtype, seed: int
) -> VisionModel:
    """Load a classifier for so many classes.

    Args:
        name: hub name or folder for transformers, or `timm:name` for timm.
        num_classes: of the data; a classifier of another number is drawn anew.
        dtype: of the parameters.
        seed: of a new classifier.

    Raises:
        InputError: if the package is not installed, the model cannot be had, or it does not say
            for which size of colour images it was made.
    """
    if isinstance(name, str) and name.startswith(TIMM):
        return _from_timm(name, num_classes, dtype, seed)
    return _from_transformers(name, num_classes, dtype, seed)


def _from_transformers(
    name: str | None, num_classes: int, dtype: torch.dtype, seed: int
) -> VisionModel:
    auto_class = "AutoModelForImageClassification"
    found = load_pretrained(auto_class, name, dtype, seed, num_labels=num_classes)
    model: Any = found.model
    side = getattr(model.config, "image_size", None)
    if side is None or getattr(model.config, "num_channels", CHANNELS) != CHANNELS:
        raise expected("model", name, "a model of colour images whose config gives image_size")
    mean, std = _normalisation(str(name))
    head = tuple(
        module_name
        for module_name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not inside(module_name, model.base_model_prefix)
    )
    return VisionModel(
        *(model, "pixel_values", _pair(side), mean, std, head),
        head_is_new=bool({*head} & {*found.new_linear}),
    )


def _normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the model's image processor; 0.5 where a folder has none."""
    if Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").is_file():
        return (0.5,) * CHANNELS, (0.5,) * CHANNELS
    processor = from_pretrained("AutoImageProcessor", name)
    if not processor.do_normalize:
        return (0.0,) * CHANNELS, (1.0,) * CHANNELS
    return tuple(processor.image_mean), tuple(processor.image_std)


def _from_timm(name: str, num_classes: int, dtype: torch.dtype, seed: int) -> VisionModel:
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        raise expected("model", name, "timm to load it with: pip install timm") from None
    with library_draws(int(stream(seed, "new parameters").integers(2**31))), tensors_only():
        try:
            model = timm.create_model(
                name.removeprefix(TIMM), pretrained=True, num_classes=num_classes
            )
        except Exception as error:  # a damaged or crafted file can fail anywhere in it
            wanted = f"timm:name of a model that timm can load ({reason_of(error)})"
            raise expected("model", name, wanted) from error
    wanted, classifier = timm.data.resolve_model_data_config(model), model.get_classifier()
    head = tuple(n for n, module in model.named_modules() if module is classifier)
    return VisionModel(
        *(model.to(dtype).eval().requires_grad_(False), "x", _pair(wanted["input_size"][1:])),
        *(tuple(wanted["mean"]), tuple(wanted["std"]), head),
        head_is_new=model.pretrained_cfg["num_classes"] != num_classes,
    )


def _pair(side: Any) -> tuple[int, int]:
    """Height and width, of one number or two."""
    height, width = (side, side) if isinstance(side, int) else side
    return int(height), int(width)
