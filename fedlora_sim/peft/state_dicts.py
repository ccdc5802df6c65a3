"""Aggregate adapters in memory: state dicts as `peft.get_peft_model_state_dict` returns them.

A state dict has no configuration. Ranks follow from the shapes; alpha, which they do not show, is
an argument without default. The same code aggregates state dicts and folders.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from fedlora_sim.errors import (
    MOST_ITEMS,
    InputError,
    check_choice,
    check_positive_int,
    check_seed,
    check_sequence,
    expected,
)
from fedlora_sim.federation import check_num_samples
from fedlora_sim.lora import FLOATS, LoRAFactors, as_tensor
from fedlora_sim.peft.aggregate import (
    aggregate_modules,
    average_extras,
    check_request,
    relative_weights,
)
from fedlora_sim.peft.agreement import MODULES, AdapterCohort, check_mergeable
from fedlora_sim.peft.config import (
    FUSED_PATTERNS,
    AdapterConfig,
    check_alpha,
    check_options,
    check_plain_lora,
    check_rank,
    checked_pattern,
)
from fedlora_sim.peft.layers import LayerReport
from fedlora_sim.peft.patterns import fits_end, most_common, pattern_key
from fedlora_sim.peft.read import (
    DTYPES,
    Adapter,
    FileWeights,
    resized,
    unwrapped,
)
from fedlora_sim.peft.write import Factors, stored, with_fresh_components
from fedlora_sim.rules import get_rule
from fedlora_sim.storage import write_tensors

StateDict = Mapping[str, Tensor]

# One state dict: its tensors, and a configuration from its shapes and the arguments

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_WHOLE = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
# Options of a configuration that the shapes or the arguments replace.
_REPLACED = ("peft_type", "r", "rank_pattern", "target_modules", "target_parameters")


class MemoryWeights:
    """Tensors of a state dict; NumPy arrays are converted.

    Raises:
        InputError: names the key and what was expected.
    """

    def __init__(self, name: str, state_dict: Mapping[str, Any]) -> None:
        self._tensors = {key: _tensor(name, key, value) for key, value in state_dict.items()}

    def keys(self) -> Iterable[str]:
        """Return the names of all tensors."""
        return self._tensors.keys()

    def tensor(self, key: str) -> Tensor:
        """Return a tensor, not copied."""
        return self._tensors[key]

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._tensors[key].shape)

    def dtype(self, key: str) -> str:
        """Return the dtype of a tensor under the name that safetensors gives it."""
        dtype = self._tensors[key].dtype
        return _NAMES.get(dtype, str(dtype))

    def to_file(self, path: Path) -> FileWeights:
        """Write the tensors to a file and return them as they are read from there."""
        write_tensors(path, {key: tensor.cpu() for key, tensor in self._tensors.items()})
        return FileWeights(path)


def _tensor(name: str, key: object, value: object) -> Tensor:
    if not isinstance(key, str):
        raise expected(f"{name}: key", key, "text, as PEFT names tensors")
    tensor = as_tensor(f"{name}: {key}", value).detach()
    given = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if not tensor.is_nested else "nested"
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta:
        raise expected(f"{name}: {key}", given, "a dense tensor with values")
    if tensor.dtype not in FLOATS and tensor.dtype not in _WHOLE:
        wanted = f"a tensor of {', '.join(DTYPES)} or of whole numbers"
        raise expected(f"{name}: {key}", given, wanted)
    return tensor


@dataclass(frozen=True, eq=False)
class ShapeConfig(AdapterConfig):
    """The configuration of a state dict, whose ranks follow from the shapes.

    Args:
        experts: number of experts that each parameter stacks, by the end of its name.
        ranks: rank of each module.
    """

    experts: Mapping[str, int] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """Return the rank of a module."""
        return self.ranks.get(module, self.rank)

    def rank_multiple(self, module: str) -> int | None:
        """Return the factor between the usual rank and a module's; None if it is an exception."""
        multiple, rest = divmod(self.rank_of(module), self.rank)
        is_fused = any(fits_end(pattern, module) for pattern in FUSED_PATTERNS)
        return multiple if rest == 0 and (multiple == 1 or is_fused) else None

    def experts_of(self, module: str) -> int:
        """Return the number of experts that a parameter stacks; 1 for a module."""
        named = [name for name in self.experts if f".{module}".endswith(f".{name}")]
        return self.experts[max(named, key=len)] if named else 1

    def fits_rows(self, module: str, rows: int) -> bool:
        """Return True if the stored A of a parameter may have that many rows."""
        return rows % self.experts_of(module) == 0

    def targets(self, module: str) -> bool:
        """Return True for a module; False for a parameter, and for a module of such parameters."""
        is_parameter = any(f".{module}".endswith(f".{name}") for name in self.experts)
        return not is_parameter and not self.targeted_parameters(unwrapped(module))


class StateDictAdapter(Adapter):
    """One checked state dict.

    Args:
        name: argument, for messages: `state_dicts[2]`.
        state_dict: tensors by key, as PEFT names them.
        config: alphas and options; the ranks are read from the shapes.

    Raises:
        InputError: names the key and what was expected.
    """

    kind = "state_dict"
    config: ShapeConfig

    def __init__(self, name: str, state_dict: object, config: ShapeConfig) -> None:
        if not isinstance(state_dict, Mapping):
            given = f"<{type(state_dict).__name__}>"
            wanted = "a state dict, as get_peft_model_state_dict returns it"
            raise expected(name, given, wanted)
        weights = MemoryWeights(name, state_dict)
        super().__init__(name, name, replace(config, ranks={}), weights)
        # The usual rank is what PEFT calls r; modules of other ranks have a rank_pattern.
        ranks = sorted(self.config.ranks.values(), reverse=True)
        self.config = replace(self.config, rank=most_common(ranks))

    @property
    def _key(self) -> str:
        return f"{self.name}: key"

    @property
    def rank_source(self) -> str:
        """Where the rank of a module is stated, for messages."""
        return "lora_A"

    def refused(self, expectation: str) -> InputError:
        """Return the error for a state dict that is refused as a whole."""
        return expected(self.name, f"{len(self.keys)} tensors", expectation)

    def stored_rank(self, module: str, rows: int) -> int:
        """Return the rank of a module whose stored A has that many rows, and remember it."""
        experts = self.config.experts_of(module)
        if rows % experts or not rows:
            wanted = f"a multiple of {experts}, the number of experts in target_parameters"
            raise expected(f"{self.name}: rows of lora_A of {module}", rows, wanted)
        self.config.ranks[module] = rows // experts
        return rows // experts

    def spool(self, path: Path) -> None:
        """Move the tensors to a file, from which they are read when they are needed."""
        assert isinstance(self._weights, MemoryWeights)
        self._weights = self._weights.to_file(path)


def state_dict_config(
    alpha: object,
    use_rslora: object,
    options: Mapping[str, Any] | None,
    target_parameters: Mapping[str, int] | None,
    argument: str = "lora_alpha",
) -> ShapeConfig:
    """Return the checked configuration of a state dict, without its ranks."""
    if not isinstance(options, Mapping | None):
        raise expected("options", options, "options of LoraConfig by name")
    if not isinstance(target_parameters, Mapping | None):
        wanted = "the number of experts that each parameter stacks, by name"
        raise expected("target_parameters", target_parameters, wanted)
    if not isinstance(use_rslora, bool):
        raise expected("use_rslora", use_rslora, "True or False")
    scalar: Any = alpha
    alpha = check_alpha(argument, scalar.item() if getattr(alpha, "ndim", None) == 0 else alpha)
    experts = {
        _parameter(name): check_positive_int(f"target_parameters[{name!r}]", count)
        for name, count in (target_parameters or {}).items()
    }
    given = {str(name): _plain(value) for name, value in (options or {}).items()}
    for name, argued in (("lora_alpha", alpha), ("use_rslora", use_rslora)):
        if given.get(name, argued) != argued:
            raise expected(f"options: {name}", given[name], f"the same as the argument, {argued}")
    known = {
        "peft_type": "LORA",
        **{name: value for name, value in given.items() if name not in _REPLACED[1:]},
        "target_modules": "all-linear",
        "target_parameters": list(experts) or None,
    }
    check_plain_lora("options", known)
    check_options("options", known)
    patterns = checked_pattern("options", known, "alpha_pattern", check_alpha)
    return ShapeConfig("options", known, 1, alpha, use_rslora, {}, patterns, experts)


def _parameter(name: object) -> str:
    if not isinstance(name, str) or not all(name.split(".")) or "." not in name:
        wanted = "a parameter with its module, such as 'mlp.experts.down_proj'"
        raise expected("target_parameters", name, wanted)
    return name


def _plain(value: object) -> object:
    """Return lists for tuples and sets, which LoraConfig allows and JSON does not have."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return list(value) if isinstance(value, tuple) else value


# The clients' state dicts, in memory or one at a time

_END = object()


class _Clients:
    """Clients that are read once, in order.

    Args:
        state_dicts: see `aggregate_state_dicts`.
        configs: configuration of the client of a number.
        folder: folder for the tensors of clients that are not kept in memory.
    """

    def __init__(
        self, state_dicts: object, configs: Callable[[int], ShapeConfig], folder: Path
    ) -> None:
        wanted = "one state dict per client, functions that return them, or an iterable of either"
        unfit = isinstance(state_dicts, str | bytes | Mapping)
        if unfit or not isinstance(state_dicts, Iterable):
            raise expected("state_dicts", f"<{type(state_dicts).__name__}>", wanted)
        self._is_kept = isinstance(state_dicts, Sequence)
        self._items, self._configs, self._folder = iter(state_dicts), configs, folder
        self.adapters: list[StateDictAdapter] = []
        self.counts: list[object] = []
        while self._read_next():
            pass
        if not self.adapters:
            raise expected("state_dicts", [], "at least one state dict")

    def _read_next(self) -> bool:
        """Read a client; on return nothing here refers to a state dict that is not kept."""
        number = len(self.adapters)
        item = next(self._items, _END)
        if item is _END:
            return False
        if number == MOST_ITEMS:
            raise expected("state_dicts", "more clients", f"at most {MOST_ITEMS:,}")
        if isinstance(item, tuple) and len(item) == 2:
            item, count = item
            self.counts.append(count)
        if len(self.counts) not in (0, number + 1):
            wanted = "pairs (state_dict, num_samples) for all clients or for none"
            raise expected(f"state_dicts[{number}]", f"<{type(item).__name__}>", wanted)
        is_kept = self._is_kept and not callable(item)
        config = self._configs(number)
        found = item() if callable(item) else item
        adapter = StateDictAdapter(f"state_dicts[{number}]", found, config)
        if not is_kept:
            adapter.spool(self._folder / f"{number}.safetensors")
        self.adapters.append(adapter)
        return True


class _PerClient:
    """An argument with one value for all clients, or one value per client."""

    def __init__(self, argument: str, value: object) -> None:
        self._argument, self._value = argument, value
        is_one = isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable)
        is_one = is_one or getattr(value, "ndim", None) == 0
        self._values = None if is_one else check_sequence(argument, value)

    def of(self, number: int) -> object:
        """Return the value of a client."""
        if self._values is None:
            return self._value
        if number >= len(self._values):
            raise expected(self._argument, self._values, "one value per client, or one for all")
        return self._values[number]

    def check(self, clients: int) -> None:
        """Refuse more values than clients."""
        if self._values is not None and len(self._values) != clients:
            wanted = f"{clients} values, one per client, or one for all"
            raise expected(self._argument, self._values, wanted)


# `aggregate_state_dicts` and `truncate_state_dict`


@dataclass(frozen=True, eq=False)
class AggregatedStateDicts:
    """Results of an aggregation in memory; all in the scaling of `result_alpha`.

    Args:
        total: the whole update as one adapter.
        adapter: what the clients receive, to be truncated. It is `total` unless the rule merges a
            correction into the base weights.
        base: this correction as an adapter, merged by every client; None for rules without one.
        layers: one report per module.
        left_out: modules that a client has and the result has not.
    """

    total: dict[str, Tensor]
    adapter: dict[str, Tensor]
    base: dict[str, Tensor] | None
    layers: tuple[LayerReport, ...]
    left_out: tuple[str, ...]


_StateDicts = Iterable[
    StateDict | Callable[[], StateDict] | tuple[StateDict | Callable[[], StateDict], float]
]


@overload
def aggregate_state_dicts(
    state_dicts: _StateDicts,
    num_samples: Sequence[float] | None = None,
    *,
    rule: str = ...,
    lora_alpha: float | Sequence[float],
    use_rslora: bool | Sequence[bool] = ...,
    rank_levels: Sequence[int] | None = ...,
    previous: StateDict | Callable[[], StateDict] | None = ...,
    target_rank: int | None = ...,
    uniform_rank: bool = ...,
    modules: str = ...,
    empty_partition: str = ...,
    result_alpha: float | None = ...,
    options: Mapping[str, Any] | None = ...,
    target_parameters: Mapping[str, int] | None = ...,
    device: str = ...,
    seed: int = ...,
    details: Literal[False] = ...,
) -> dict[str, Tensor]: ...


@overload
def aggregate_state_dicts(
    state_dicts: _StateDicts,
    num_samples: Sequence[float] | None = None,
    *,
    rule: str = ...,
    lora_alpha: float | Sequence[float],
    use_rslora: bool | Sequence[bool] = ...,
    rank_levels: Sequence[int] | None = ...,
    previous: StateDict | Callable[[], StateDict] | None = ...,
    target_rank: int | None = ...,
    uniform_rank: bool = ...,
    modules: str = ...,
    empty_partition: str = ...,
    result_alpha: float | None = ...,
    options: Mapping[str, Any] | None = ...,
    target_parameters: Mapping[str, int] | None = ...,
    device: str = ...,
    seed: int = ...,
    details: Literal[True],
) -> AggregatedStateDicts: ...


@torch.no_grad()
def aggregate_state_dicts(
    state_dicts: _StateDicts,
    num_samples: Sequence[float] | None = None,
    *,
    rule: str = "raflora",
    lora_alpha: float | Sequence[float],
    use_rslora: bool | Sequence[bool] = False,
    rank_levels: Sequence[int] | None = None,
    previous: StateDict | Callable[[], StateDict] | None = None,
    target_rank: int | None = None,
    uniform_rank: bool = False,
    modules: str = "same",
    empty_partition: str = "carry",
    result_alpha: float | None = None,
    options: Mapping[str, Any] | None = None,
    target_parameters: Mapping[str, int] | None = None,
    device: str = "auto",
    seed: int = 0,
    details: bool = False,
) -> dict[str, Tensor] | AggregatedStateDicts:
    """Aggregate PEFT state dicts in memory.

    The update of a module is `alpha / r * B @ A`, with A (r, d_in) under `....lora_A.weight` and B
    (d_out, r) under `....lora_B.weight`. Ranks may differ between clients and are read from the
    shapes. The updates are those of `aggregate_adapters` on the same adapters; the factors are in
    the scaling of `result_alpha`.

    Args:
        state_dicts: one per client, keys as `peft.get_peft_model_state_dict` returns them
            (`base_model.model....lora_A.weight`); tensors on any device, or NumPy arrays. Instead
            of a state dict, a function that returns it, which is called once. Any other iterable,
            such as a generator, is read once. Items may be pairs `(state_dict, num_samples)`.
            What a function or a generator returns is copied to a temporary file and released
            before the next client is read, so that at most one of them is in memory at a time.
        num_samples: sample count of each client; equal when None. Must be None for pairs.
        rule: name of a rule, with options after a colon.
        lora_alpha: alpha of every client, or one value per client.
        use_rslora: whether the scaling is `alpha / sqrt(r)`, of every client or per client.
        rank_levels: ranks of the federation, for modules that have the usual rank in every client
            (the most common rank of its modules). For the others, and when None, the distinct ranks
            of the clients and of `previous`.
        previous: the last global adapter as this function returned it, which `carry` keeps.
        target_rank: truncate the result to this rank (best approximation).
        uniform_rank: pad all modules to one rank. Otherwise this is done for those modules that
            have the usual rank in every client.
        modules: `same | shared | owners`, see `aggregate_adapters`.
        empty_partition: `zero | carry | error`, see `aggregate`.
        result_alpha: alpha of the result. Required if the alphas of the clients differ. The result
            uses `alpha / sqrt(r)` if all clients do.
        options: other options of the clients' LoraConfig by name, which explain their tensors:
            `modules_to_save`, `bias`, `alpha_pattern`, `trainable_token_indices`,
            `ensure_weight_tying`.
        target_parameters: number of experts that each of PEFT's target_parameters stacks, such as
            `{"mlp.experts.down_proj": 8}`; 1 for a matrix.
        device: compute device: `auto | cpu | cuda | mps`.
        seed: seed for components without energy, see `aggregate_adapters`. Use a new one each
            round.
        details: return an `AggregatedStateDicts`, with the reports, and the adapter and the base
            correction separately.

    Returns:
        The global adapter at the highest rank, as new tensors on the CPU in the clients' dtype. For
        rules with a base correction (`flora`, `fedex`) it is the sum of adapter and correction, of
        a higher rank.

    Raises:
        InputError: names the argument or the key (`state_dicts[2]: key=...`), its value and what
            was expected.

    Memory:
        The state dicts that the caller holds, or one client at a time (see `state_dicts`); all
        factors of the one module that is being aggregated; and the results. The temporary files
        take the space of all clients' tensors in `tempfile.gettempdir()`, which may itself be in
        memory: `TMPDIR` chooses another place. They are mapped: their pages count in the resident
        size of the process, but the system can drop them.
    """
    request = check_request(rule, rank_levels, empty_partition, target_rank)
    check_choice("modules", modules, MODULES)
    seed = check_seed("seed", seed)
    alphas = _PerClient("lora_alpha", lora_alpha)
    conventions = _PerClient("use_rslora", use_rslora)

    def config(number: int) -> ShapeConfig:
        return state_dict_config(
            alphas.of(number), conventions.of(number), options, target_parameters
        )

    with tempfile.TemporaryDirectory(prefix="fedlora-sim-", ignore_cleanup_errors=True) as folder:
        read = _Clients(state_dicts, config, Path(folder))
        clients = read.adapters
        for argument in (alphas, conventions):
            argument.check(len(clients))
        if read.counts and num_samples is not None:
            raise expected("num_samples", num_samples, "None, because the clients come with theirs")
        counts: Any = read.counts or ([1.0] * len(clients) if num_samples is None else num_samples)
        weights = relative_weights(check_num_samples(counts, len(clients)))
        configs = [client.config for client in clients]
        result = _result_config(result_alpha, configs, options, target_parameters)
        last = None
        if previous is not None:
            found = previous() if callable(previous) else previous
            last = StateDictAdapter("previous", found, result)
        cohort = AdapterCohort(clients, weights, last, modules)
        check_mergeable(cohort, rule)
        results, layers = aggregate_modules(cohort, request, device)
        extras = average_extras(cohort)

        def tensors(factors: Factors, others: StateDict) -> dict[str, Tensor]:
            frozen_a = get_rule(rule).frozen_a
            sizes = _sizes(cohort, factors, result, uniform_rank=uniform_rank)
            written = {m: resized(own, *sizes[m], frozen_a=frozen_a) for m, own in factors.items()}
            if not frozen_a:
                written = with_fresh_components(cohort, written, seed)
            return copies({**stored(cohort, written), **others})

        total = tensors(results.total, extras)
        if not details:
            return total
        if not results.base:
            return AggregatedStateDicts(total, total, None, layers, cohort.left_out)
        trained = {key: x for key, x in extras.items() if not cohort.is_frozen(key)}
        adapter = tensors(results.adapter, trained)
        sizes = _sizes(cohort, results.base, result, uniform_rank=uniform_rank)
        base = {m: resized(own, *sizes[m], frozen_a=False) for m, own in results.base.items()}
        return AggregatedStateDicts(
            total, adapter, copies(stored(cohort, base)), layers, cohort.left_out
        )


def _result_config(
    result_alpha: float | None,
    configs: Sequence[ShapeConfig],
    options: Mapping[str, Any] | None,
    target_parameters: Mapping[str, int] | None,
) -> ShapeConfig:
    """Return alpha and convention of the result."""
    alphas = {config.alpha for config in configs}
    if result_alpha is None:
        if len(alphas) > 1:
            wanted = "the alpha of the returned adapter, because the clients' alphas differ"
            raise expected("result_alpha", None, wanted)
        (result_alpha,) = alphas
    use_rslora = all(config.use_rslora for config in configs)
    alike = {k: v for k, v in (options or {}).items() if k not in ("lora_alpha", "use_rslora")}
    return state_dict_config(result_alpha, use_rslora, alike, target_parameters, "result_alpha")


def _sizes(
    cohort: AdapterCohort, factors: Factors, config: AdapterConfig, *, uniform_rank: bool
) -> dict[str, tuple[int, float]]:
    """Return the rank and the scaling with which each module is returned.

    Modules of a client's usual rank are returned with one rank, the highest, as a `LoraConfig`
    without rank_pattern requires.
    """

    def is_usual(module: str) -> bool:
        configs = [adapter.config for adapter in cohort.holders(module)]
        return all(own.rank_of(module) == own.rank for own in configs)

    usual = [module for module in factors if uniform_rank or is_usual(module)]
    highest = max((factors[module].rank for module in usual), default=0)
    ranks = {module: update.rank for module, update in factors.items()}
    ranks |= dict.fromkeys(usual, highest)
    return {module: (rank, config.scaling_at(module, rank)) for module, rank in ranks.items()}


def copies(tensors: StateDict) -> dict[str, Tensor]:
    """Return copies on the CPU that share no memory with each other or with a client's tensors."""
    form = torch.contiguous_format
    return {key: tensor.cpu().clone(memory_format=form) for key, tensor in tensors.items()}


@torch.no_grad()
def truncate_state_dict(
    state_dict: StateDict,
    rank: int,
    *,
    lora_alpha: float,
    use_rslora: bool = False,
    client_alpha: float | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    frozen_a: bool = False,
    options: Mapping[str, Any] | None = None,
    target_parameters: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Return what a client of a rank receives of a global adapter: its first rank components.

    The scaling alpha / r depends on r. The factors change with it, so that the update
    `scaling * B @ A` is the truncation of the global one.

    Args:
        state_dict: a global adapter, as `aggregate_state_dicts` returns it.
        rank: the client's rank, at most that of the adapter. Modules of a lower rank keep theirs.
        lora_alpha: alpha of the global adapter, and of the client.
        use_rslora: whether the scaling is `alpha / sqrt(r)`.
        client_alpha: alpha of the client, if it is another one.
        rank_pattern: the client's ranks of modules by pattern, as in LoraConfig.
        frozen_a: change B only and leave A as it is, for the rule `ffa`.
        options: see `aggregate_state_dicts`.
        target_parameters: see `aggregate_state_dicts`.

    Returns:
        New tensors on the CPU, in the dtype of the global adapter. Other tensors are unchanged, and
        so are components whose product is zero: a random A next to a zero B keeps its size.

    Raises:
        InputError: names the argument or the key, its value and what was expected.
    """
    config = state_dict_config(lora_alpha, use_rslora, options, target_parameters)
    alpha = check_alpha("client_alpha", lora_alpha if client_alpha is None else client_alpha)
    adapter = StateDictAdapter("state_dict", state_dict, config)
    cohort = AdapterCohort([adapter], [1.0])
    highest = max(adapter.config.ranks.values())
    if check_positive_int("rank", rank) > highest:
        raise expected("rank", rank, f"at most the rank of the adapter, {highest}")
    if not isinstance(rank_pattern, Mapping | None):
        raise expected("rank_pattern", rank_pattern, "ranks by pattern, as in LoraConfig")
    given = {"rank_pattern": None if rank_pattern is None else dict(rank_pattern)}
    patterns = checked_pattern("argument", given, "rank_pattern", check_rank)
    received = replace(adapter.config, alpha=alpha)
    cut = {}
    for module in adapter.layers:
        wanted = patterns.get(pattern_key(patterns, module), rank)
        own = min(wanted, adapter.config.rank_of(module))
        update = adapter.factors(module, torch.float64, torch.device("cpu"))
        cut[module] = _cut(update, own, received.scaling_at(module, own), frozen_a=frozen_a)
    others = {key: adapter.tensor(key) for key in adapter.extras}
    return copies({**stored(cohort, cut), **others})


def _cut(update: LoRAFactors, rank: int, scaling: float, *, frozen_a: bool) -> LoRAFactors:
    """Return the first components in another scaling; a factor next to a zero one is unchanged."""
    first = update.truncate(rank)
    result = resized(first, rank, scaling, frozen_a=frozen_a)
    no_b = (first.lora_B == 0).all(dim=-2)
    no_a = (first.lora_A == 0).all(dim=-1)
    lora_a = torch.where(no_b.unsqueeze(-1), first.lora_A, result.lora_A)
    lora_b = torch.where(no_a.unsqueeze(-2), first.lora_B, result.lora_B)
    return LoRAFactors(lora_a, lora_b, scaling)
