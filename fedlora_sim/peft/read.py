"""Read adapter folders of clients, and check that they can be aggregated."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedlora_sim.errors import InputError, expected
from fedlora_sim.lora import LoRAFactors, check_tensor_finite
from fedlora_sim.lowrank import pad_last
from fedlora_sim.peft.config import (
    AdapterConfig,
    check_no_pointer,
    read_config,
)
from fedlora_sim.peft.patterns import check_time

# Padding of factors with zeros.
#
# PEFT allows a rank above min(d_in, d_out): the common rank of a federation may exceed that of
# narrow modules, such as a router or a value head. The engine requires matrices that can have the
# rank. Appending rows of zeros to B, or columns to A, does not change the result of any rule: they
# stay zero, and are removed when the factors are written.


def wide_factors(lora_a: Tensor, lora_b: Tensor, scaling: float, width: int = 0) -> LoRAFactors:
    """Return factors whose dimensions are at least `width` and at least their rank.

    Args:
        lora_a: (..., r, d_in).
        lora_b: (..., d_out, r).
        scaling: the LoRA scaling.
        width: minimum of d_in and d_out.
    """
    width = max(width, lora_a.shape[-2])
    if lora_a.shape[-1] < width:
        lora_a = pad_last(lora_a, width)
    if lora_b.shape[-2] < width:
        lora_b = pad_last(lora_b.mT, width).mT
    return LoRAFactors(lora_a, lora_b, scaling)


def resized(update: LoRAFactors, rank: int, scaling: float, *, frozen_a: bool) -> LoRAFactors:
    """Return the leading components of an update with another rank and scaling.

    Args:
        update: an update of any rank; components of zeros are appended if its rank is too low.
        rank: requested rank.
        scaling: requested scaling.
        frozen_a: whether the change of scaling goes to B only, instead of being split evenly.
    """
    lora_a = pad_last(update.lora_A.mT, max(rank, update.rank)).mT[..., :rank, :]
    lora_b = pad_last(update.lora_B, max(rank, update.rank))[..., :rank]
    if frozen_a:
        return wide_factors(lora_a, lora_b * (update.scaling / scaling), scaling)
    cut = wide_factors(lora_a, lora_b, update.scaling)
    return cut if scaling == update.scaling else cut.rescale(scaling)


# An adapter: its layers and other tensors, each read on demand, from a folder or from memory.
#
# A and B are distinguished by name, never by shape. Every key of the file must be understood: keys
# that PEFT would drop silently or could not map to a module are refused.

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "pytorch_model.bin")
PREFIX = "base_model.model."
DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

MOST_TENSORS, LONGEST_NAME = 200_000, 500
# Characters with a meaning in a regular expression. A dot has one too, but also matches itself.
_PATTERN_SIGNS = set("*+?()[]{}|^$\\")
_FACTOR = re.compile(r"(?P<module>.+)\.(?P<kind>lora_(?:embedding_)?)(?P<factor>[AB])(?P<end>.*)")
_NAMED = re.compile(r"\.(?!weight$|bias$)[^.]+(\.weight)?")
_ENDS = {"lora_": ".weight", "lora_embedding_": ""}
# PEFT wraps a layer once for each of its target_parameters, and gives the inner layer this name.
_WRAPPED = ".base_layer"
# Rows of an embedding that were trained separately, in the order of their token indices.
_TOKENS = ".token_adapter.trainable_tokens_delta"
# The order in which layers of stacked experts register their parameters in transformers.
_REGISTERED = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
_MOST_ORDERS = 1000  # for parameters with other names, tried one by one
# PEFT saves the input and the output embeddings as a whole when the vocabulary was resized.
_MOST_WHOLE_MODULES = 2


@dataclass(frozen=True)
class Layer:
    """The factors of one module, or of one parameter, in the file.

    Args:
        key_A: name of the tensor A, (r, d_in); for a convolution (r, channels, *kernel), for
            stacked experts (experts * r, d_in).
        key_B: name of the tensor B, (d_out, r), (d_out, r, 1, ...) or (d_out, r * experts).
        shape_A: stored shape of A.
        shape_B: stored shape of B.
        dtype: floating-point type that can hold both.
        experts: number of experts that a three-dimensional parameter stacks. PEFT stores A expert
            by expert and B rank component by rank component (`peft.tuners.lora.ParamWrapper`).
    """

    key_A: str
    key_B: str
    shape_A: tuple[int, ...]
    shape_B: tuple[int, ...]
    dtype: torch.dtype
    experts: int = 1

    @property
    def form(self) -> tuple[tuple[int, ...], ...]:
        """All information on the shapes that does not depend on the rank."""
        form = self.shape_A[1:], (self.shape_B[0], *self.shape_B[2:])
        return form if self.experts == 1 else (*form, (self.experts,))

    def unpacked(self, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return stored tensors as A (r, d_in) and B (d_out, r), with stacked experts in front."""
        lora_a, lora_b = lora_a.flatten(1), lora_b.flatten(1)
        if self.experts == 1:
            return lora_a, lora_b
        lora_a = lora_a.unflatten(0, (self.experts, -1))
        return lora_a, lora_b.unflatten(1, (-1, self.experts)).permute(2, 0, 1)

    def packed(self, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return A and B of any rank in their stored shapes, the inverse of `unpacked`.

        Padding of their dimensions is removed.
        """
        lora_a, lora_b = lora_a[..., : self.d_in], lora_b[..., : self.d_out, :]
        if self.experts > 1:
            return lora_a.flatten(0, 1), lora_b.permute(1, 2, 0).flatten(1)
        rank = lora_a.shape[0]
        lora_a = lora_a.reshape(rank, *self.shape_A[1:])
        return lora_a, lora_b.reshape(self.shape_B[0], rank, *self.shape_B[2:])

    @property
    def d_in(self) -> int:
        """Columns of A; for a convolution this includes the kernel."""
        return math.prod(self.shape_A[1:])

    @property
    def d_out(self) -> int:
        """Rows of B."""
        return self.shape_B[0]

    @property
    def limit(self) -> int:
        """The highest possible rank of the module's update, min(d_in, d_out)."""
        return min(self.d_out, self.d_in)

    @property
    def shapes_tied(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B of a layer that is tied to this one."""
        return self.shape_B[::-1], self.shape_A[::-1]

    @property
    def is_embedding(self) -> bool:
        """True for an embedding, for which PEFT draws B and sets A to zero."""
        return self.key_A.endswith(".lora_embedding_A")


class Weights(Protocol):
    """Tensors by key, in a file or in memory."""

    def keys(self) -> Iterable[str]:
        """Return the names of all tensors."""

    def tensor(self, key: str) -> Tensor:
        """Return a tensor; may raise `SafetensorError`."""

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading its entries."""

    def dtype(self, key: str) -> str:
        """Return the dtype of a tensor under the name that safetensors gives it."""


class FileWeights:
    """Tensors of a safetensors file, read when they are needed.

    Raises:
        SafetensorError: if the file is not a whole safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(path, framework="pt")

    def keys(self) -> Iterable[str]:
        """Return the names of all tensors."""
        names: list[str] = self._file.keys()
        return names

    def tensor(self, key: str) -> Tensor:
        """Return a tensor."""
        tensor: Tensor = self._file.get_tensor(key)
        return tensor

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the file's header."""
        return tuple(self._file.get_slice(key).get_shape())

    def dtype(self, key: str) -> str:
        """Return the dtype of a tensor, from the file's header."""
        return str(self._file.get_slice(key).get_dtype())


class Adapter:
    """One checked adapter: configuration, LoRA layers and other tensors.

    Args:
        name: folder or argument of the adapter, for messages.
        file: file or argument of the tensors, for messages.
        config: options, ranks and scalings.
        weights: the tensors.

    Raises:
        InputError: names the file or the key and what was expected.
    """

    kind = "folder"
    """What holds the adapter, for messages."""

    @property
    def rank_source(self) -> str:
        """Where the rank of a module is stated, for messages."""
        return self.config.source

    def __init__(self, name: str, file: str, config: AdapterConfig, weights: Weights) -> None:
        self.name, self._file, self.config, self._weights = name, file, config, weights
        self.keys = frozenset(weights.keys())
        self._check_names()
        self.layers = dict(self._find_layers())
        if not self.layers:
            raise expected(self._file, sorted(self.keys)[:3], "at least one pair of LoRA factors")
        self.tied = self._find_tied()
        layers = (*self.layers.values(), *(layer for layer, _ in self.tied.values()))
        used = {key for layer in layers for key in (layer.key_A, layer.key_B)}
        self.extras = tuple(key for key in sorted(self.keys - used) if not self._is_copy(key))
        self._check_extras()

    @property
    def _key(self) -> str:
        """Argument of messages about the name of a tensor."""
        return self._file

    def refused(self, expectation: str) -> InputError:
        """Return the error for an adapter that is refused as a whole."""
        return expected("folder", self.name, expectation)

    def stored_rank(self, module: str, rows: int) -> int:
        """Return the rank of a module or parameter whose stored A has that many rows."""
        return self.config.rank_of(module)

    def factors(
        self,
        module: str,
        dtype: torch.dtype,
        device: torch.device,
        width: int = 0,
        *,
        is_checked: bool = True,
    ) -> LoRAFactors:
        """Return a module's update with its scaling: A (r, d_in), B (d_out, r), kernels flattened.

        Entries that are not finite are refused, unless the caller checks them with others
        (`is_checked=False`). For stacked experts the shapes are (experts, r, d_in) and
        (experts, d_out, r). If d_in or d_out is below the rank or below `width`, zeros are
        appended.
        """
        layer = self.layers[module]
        lora_a, lora_b = (
            self.tensor(key, is_checked=is_checked).to(device, dtype)
            for key in (layer.key_A, layer.key_B)
        )
        return wide_factors(*layer.unpacked(lora_a, lora_b), self.config.scaling_of(module), width)

    def tensor(self, key: str, *, is_checked: bool = True) -> Tensor:
        """Return a stored tensor; refuse one with an entry that is not finite if `is_checked`."""
        try:
            tensor = self._weights.tensor(key)
        except SafetensorError as error:
            raise expected(self._file, key, f"a readable tensor ({error})") from None
        if tensor.is_floating_point():
            if tensor.dtype not in DTYPES.values():
                wanted = f"a tensor of {', '.join(DTYPES)} or of whole numbers"
                raise expected(f"{self._file}: {key}", str(tensor.dtype), wanted)
            if is_checked:
                check_tensor_finite(f"{self._file}: {key}", tensor)
        return tensor

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a stored tensor."""
        return self._weights.shape(key)

    def is_frozen(self, key: str) -> bool:
        """Return True if a tensor is the base model's own, saved next to an embedding's LoRA."""
        path, _, leaf = key.rpartition(".")
        is_trained = leaf == "bias" and self.config.trains_biases
        return path.endswith(".base_layer") and not is_trained

    def token_indices(self, key: str) -> list[int] | None:
        """Return the token of each row of a tensor of separately trained rows, else None.

        Raises:
            InputError: if trainable_token_indices does not name the tokens.
        """
        if not key.endswith(_TOKENS):
            return None
        module = key.removeprefix(PREFIX).removesuffix(_TOKENS)
        option: Any = self.config.options.get("trainable_token_indices")
        if isinstance(option, dict):
            named = [name for name in option if f".{module}".endswith(f".{name}")]
            option = option[max(named, key=len)] if named else None
        tokens = option if isinstance(option, list) else []
        rows = self.shape(key)[0] if self.shape(key) else 0
        are_indices = all(type(token) is int and token >= 0 for token in tokens)
        if not are_indices or len(set(tokens)) != len(tokens) or len(tokens) != rows:
            where = f"{self.config.source}: trainable_token_indices of {module}"
            raise expected(where, option, f"{rows} distinct tokens, one for each row of {key}")
        return tokens

    def _is_copy(self, key: str) -> bool:
        """Return True if a tensor is a duplicate.

        With bias="all" PEFT saves the bias of a whole module a second time, under a name that it
        does not recognize when it loads the file.
        """
        return key.replace(".modules_to_save.", ".", 1) in self.keys - {key}

    def _check_names(self) -> None:
        """Refuse names that cannot be a module's, and patterns that are slow to match with them.

        Names are printed, and written as patterns if their rank differs from that of other modules.
        """
        if len(self.keys) > MOST_TENSORS:
            raise expected(self._file, f"{len(self.keys):,} tensors", f"at most {MOST_TENSORS:,}")
        for key in self.keys:
            if not key.isprintable() or _PATTERN_SIGNS & set(key) or len(key) > LONGEST_NAME:
                signs = " ".join(sorted(_PATTERN_SIGNS))
                wanted = f"printable names of at most {LONGEST_NAME} characters, without {signs}"
                raise expected(self._key, key, wanted)
        found = {key.removeprefix(PREFIX).partition(".lora_")[0] for key in self.keys}
        targets = self.config.options.get("target_modules")
        check_time(
            self.config.source,
            sorted(found),
            [targets] if isinstance(targets, str) else [],
            [*self.config.rank_pattern, *self.config.alpha_pattern],
        )

    def _find_layers(self) -> Iterator[tuple[str, Layer]]:
        """Yield the layers by the module or parameter name with which PEFT looks up their rank."""
        pairs: dict[tuple[str, str], set[str]] = {}
        for key in sorted(self.keys):
            if ".lora_" in key:
                found = self._split(key)
                pairs.setdefault((found["module"], found["kind"]), set()).add(found["factor"])
        wrapped: dict[str, list[str]] = {}
        for (path, kind), factors in sorted(pairs.items(), key=lambda pair: _natural(pair[0][0])):
            end = _ENDS[kind]
            for factor in "AB":
                if factor not in factors:
                    missing, other = f"{path}.{kind}{factor}{end}", "B" if factor == "A" else "A"
                    expectation = f"{missing!r} next to it (A without B, or B without A)"
                    raise expected(self._key, f"{path}.{kind}{other}{end}", expectation)
            module = path.removeprefix(PREFIX)
            if self.config.targets(module) or self._is_tied(module):
                yield module, self._layer(module, f"{path}.{kind}A{end}", f"{path}.{kind}B{end}")
            else:
                wrapped.setdefault(unwrapped(module), []).append(path)
        for module, paths in wrapped.items():
            inner_first = sorted(paths, key=len, reverse=True)
            names = self._parameters(module, inner_first)
            for path, name in zip(inner_first, names, strict=True):
                a, b = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
                yield f"{module}.{name}", self._layer(f"{module}.{name}", a, b)

    def _find_tied(self) -> dict[str, tuple[Layer, str]]:
        """Return modules whose factors are those of an embedding, transposed, and the embedding.

        PEFT creates them for the output layer of a model with tied weights (ensure_weight_tying).
        """
        tied: dict[str, tuple[Layer, str]] = {}
        for module in [name for name in self.layers if self._is_tied(name)]:
            layer = self.layers.pop(module)
            for name, own in self.layers.items():
                if not own.is_embedding or (layer.shape_A, layer.shape_B) != own.shapes_tied:
                    continue
                pairs = ((layer.key_A, own.key_B), (layer.key_B, own.key_A))
                same = all(torch.equal(self.tensor(a), self.tensor(b).mT) for a, b in pairs)
                if same and self.config.scaling_of(module) == self.config.scaling_of(name):
                    tied[module] = layer, name
            if module not in tied:
                expectation = "the factors and the scaling of a LoRA on the embedding, transposed"
                raise expected(f"{self._file}: tied factors of", module, expectation)
        return tied

    def _is_tied(self, module: str) -> bool:
        """Return True if a module is not targeted and PEFT ties its LoRA to the embedding's."""
        ties = self.config.options.get("ensure_weight_tying") is True
        return ties and not self.config.targets(module) and not self._parameters_of(module)

    def _split(self, key: str) -> re.Match[str]:
        """Return the module, kind and factor of a LoRA key; refuse anything else."""
        found = _FACTOR.fullmatch(key)
        if found is None or found["end"] != _ENDS[found["kind"]]:
            expectation = (
                "only keys '....lora_A.weight', '....lora_B.weight', '....lora_embedding_A' and "
                "'....lora_embedding_B', as PEFT saves plain LoRA"
            )
            if found is not None and _NAMED.fullmatch(found["end"]):
                expectation += " (without the name of the adapter, as save_pretrained writes them)"
            raise expected(self._key, key, expectation)
        if not key.startswith(PREFIX):
            raise expected(self._key, key, f"a key that starts with {PREFIX!r}, as PEFT writes it")
        path = found["module"].removeprefix(PREFIX)
        module, is_module = unwrapped(path), self.config.targets(path) or self._is_tied(path)
        parameters = () if is_module else self._parameters_of(path)
        if "base_layer" in (module if parameters else path).split("."):
            raise expected(self._key, key, "LoRA on a module, not inside of another LoRA layer")
        if not is_module and not (parameters and found["kind"] == "lora_"):
            targets = self.config.options.get("target_modules")
            raise expected(self._key, key, f"a module among target_modules={targets!r}")
        return found

    def _parameters_of(self, path: str) -> tuple[str, ...]:
        return self.config.targeted_parameters(unwrapped(path))

    def _parameters(self, module: str, paths: Sequence[str]) -> tuple[str, ...]:
        """Return the parameter that each wrapped layer of a module adapts, innermost first.

        The file does not name them. PEFT wraps a module once for each of its targeted parameters,
        in the order in which the module registers them.
        """
        names = self.config.targeted_parameters(module, len(paths))
        orders: Iterator[tuple[str, ...]]
        if set(names) <= set(_REGISTERED):
            orders = itertools.combinations(sorted(names, key=_REGISTERED.index), len(paths))
        else:
            count = math.perm(len(names), len(paths))
            orders = itertools.permutations(names if count <= _MOST_ORDERS else (), len(paths))
        shapes = [self.shape(f"{path}.lora_A.weight") for path in paths]
        fitting = [
            order
            for order in orders
            if all(
                shape and self.config.fits_rows(f"{module}.{name}", shape[0])
                for name, shape in zip(order, shapes, strict=True)
            )
        ]
        if len(fitting) != 1:
            given = [shape[0] if shape else 0 for shape in shapes]
            expectation = (
                f"{len(paths)} of the parameters {list(names)}, experts times rank each, named "
                f"by the ranks in {self.config.source} or by the order {', '.join(_REGISTERED)}"
            )
            raise expected(f"{self._file}: rows of lora_A of {module}", given, expectation)
        return fitting[0]

    def _layer(self, module: str, key_a: str, key_b: str) -> Layer:
        """Return the shapes of a pair of factors, which must form a LoRA of the stated rank."""
        shapes, dtypes = {}, {}
        for key in (key_a, key_b):
            shapes[key], name = self.shape(key), self._weights.dtype(key)
            if name not in DTYPES:
                raise expected(f"{self._file}: {key}", name, f"one of {', '.join(DTYPES)}")
            dtypes[key] = DTYPES[name]
        a, b = shapes[key_a], shapes[key_b]
        for key, shape in shapes.items():
            if len(shape) < 2 or 0 in shape:
                raise expected(f"{self._file}: {key}", shape, "a matrix that is not empty")
        rank = self.stored_rank(module, a[0])
        is_module = self.config.targets(module) or self._is_tied(module)
        experts = 1 if is_module else max(1, a[0] // rank)
        for key, found in ((key_a, a[0]), (key_b, b[1])):
            if found != rank * experts:
                wanted = f"rank {rank}, as {self.rank_source} says"
                raise expected(f"{self._file}: {key}", shapes[key], wanted)
        if any(size != 1 for size in b[2:]):
            raise expected(f"{self._file}: {key_b}", b, "a kernel of size 1")
        dtype = torch.promote_types(dtypes[key_a], dtypes[key_b])
        return Layer(key_a, key_b, a, b, dtype, experts)

    def _check_extras(self) -> None:
        """Refuse a tensor that neither the configuration nor a resized vocabulary explains.

        A resized vocabulary is saved as whole modules, under the model's name of its embeddings:
        `lm_head`, `proj_out`, `cls.predictions.decoder`.
        """
        unknown = [key for key in self.extras if not self._is_configured(key)]
        whole = [key for key in unknown if self._is_of_whole_module(key)]
        modules = {key.rpartition(".")[0] for key in whole}
        wrong = sorted(set(unknown) - set(whole)) or (
            whole if len(modules) > _MOST_WHOLE_MODULES else []
        )
        if wrong:
            expectation = (
                f"LoRA factors, or a tensor that {self.config.source} accounts for "
                f"(modules_to_save, bias), or the whole input or output embeddings, under the "
                f"prefix {PREFIX!r}"
            )
            raise expected(self._key, wrong[0], expectation)

    def _is_configured(self, key: str) -> bool:
        if not key.startswith(PREFIX):
            return False
        path, _, leaf = key.removeprefix(PREFIX).rpartition(".")
        parts = path.split(".")
        ancestors = [".".join(parts[: i + 1]) for i in range(len(parts))]
        saved, adapted = self.config.modules_to_save, {*self.layers, *self.tied}
        return (
            (leaf == "bias" and self.config.trains_biases)
            or self.token_indices(key) is not None
            or any(ancestor.endswith(name) for ancestor in ancestors for name in saved)
            or (self.is_frozen(key) and path.removesuffix(".base_layer") in adapted)
        )

    def _is_of_whole_module(self, key: str) -> bool:
        """Return True if a tensor is the weight or bias of an embedding or an output layer."""
        path, _, leaf = key.rpartition(".")
        weight = f"{path}.weight"
        if not key.startswith(PREFIX) or leaf not in ("weight", "bias") or weight not in self.keys:
            return False
        shape = self.shape(weight)
        return len(shape) >= 2 and (leaf == "weight" or self.shape(key) == shape[:1])


class AdapterFolder(Adapter):
    """One checked adapter folder; tensors stay on disk until they are needed.

    Args:
        folder: a folder with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        InputError: names the folder, the file or the key and what was expected.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        if not self.path.is_dir():
            is_file = ", not a file in it" if self.path.is_file() else ""
            raise expected("folder", str(folder), f"a folder with a PEFT adapter{is_file}")
        config, weights = read_config(self.path), _open(self.path)
        super().__init__(str(self.path), str(self.path / WEIGHTS_FILE), config, weights)


def unwrapped(module: str) -> str:
    """Return a module's name without the layers that PEFT wrapped around it."""
    while module.endswith(_WRAPPED):
        module = module.removesuffix(_WRAPPED)
    return module


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key in which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _open(folder: Path) -> FileWeights:
    """Open the weights of a folder without loading any."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickles = [name for name in PICKLES if (folder / name).exists()]
        shards = sorted(path.name for path in folder.glob("adapter_model-*-of-*.safetensors"))
        if shards:
            expectation = f"{WEIGHTS_FILE}, one file as PEFT reads it, not {len(shards)} shards"
            raise expected("weights", str(folder / shards[0]), expectation)
        if pickles:
            check_no_pointer("weights", folder / pickles[0])
            expectation = (
                f"{WEIGHTS_FILE} (a pickle can run any code when it is read; save the adapter "
                "again with safe_serialization=True)"
            )
            raise expected("weights", str(folder / pickles[0]), expectation)
        raise expected("folder", str(folder), f"a PEFT adapter folder (it has no {WEIGHTS_FILE})")
    check_no_pointer("weights", path)
    try:
        return FileWeights(path)
    except SafetensorError as error:
        raise expected("weights", str(path), f"a whole safetensors file ({error})") from None
