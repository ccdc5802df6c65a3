"""Recognize what a federated run leaves behind, and read its adapters one module at a time.

Known layouts, by the path of an adapter relative to the run's folder:

    own             run.json and measures-<round>, as `fedlora-sim train` writes them
    flowertune      peft_<round>/adapter_config.json, one global adapter per round
    fedfm           peft_<round>/group_<i>/adapter_config.json, one adapter per rank group
    openfedllm      checkpoint-<round>/adapter_config.json
    flora           <round>/adapter_model.bin and <round>/local_output_<client>/pytorch_model.bin
    nvflare         round in the path, {"model": state dict} in a .pt file
    federatedscope  {"cur_round": round, "model": state dict} in a file
    rounds          any other path with the round as the name of a folder

Pickles are read by `torch.load(weights_only=True)` alone, which refuses all others.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.diagnose.layout_names import LAYOUTS
from fedlora_sim.errors import MOST_ROUNDS, check_choice, expected
from fedlora_sim.finetune.checkpoints import RUN_FILE
from fedlora_sim.lora import LoRAFactors, check_tensor_finite
from fedlora_sim.peft.config import CONFIG_FILE, AdapterConfig, check_no_pointer, read_config
from fedlora_sim.peft.read import MOST_TENSORS, WEIGHTS_FILE, AdapterFolder, wide_factors
from fedlora_sim.peft.server import CORRECTION

MOST_FILES = 1_000_000
SHOWN = 4
PICKLED = (".bin", ".pt", ".pth")
TRAINER_FILES = {"training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth"}
"""Files next to a checkpoint by the Trainer of transformers; none holds an adapter."""
_IN_FOLDER = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_KEY = re.compile(
    r"(?P<module>.+?)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])"
    r"(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?"
)
_PREFIXES = ("base_model.model.", "model.")
_CLIENT = re.compile(r"(?:local_output|client|site)[-_]?(\w+)")
_GROUP = re.compile(r"group_(\d+)")
# Each pattern matches a whole part of the path; the last one a part of a file's name.
_ROUND = {
    "flowertune": re.compile(r"peft_(\d+)"),
    "openfedllm": re.compile(r"checkpoint-(\d+)"),
    "rounds": re.compile(r"(?:round[-_]?)?(\d+)", re.IGNORECASE),
}
_IN_NAME = re.compile(r".*?(?:round|_)[-_]?(\d+)", re.IGNORECASE)


# One adapter


class SavedAdapter:
    """One adapter, read module by module.

    Args:
        where: file or folder, for messages.
        modules: names without the prefixes of frameworks.
        read: returns a module's factors.
        is_scaled: whether the factors have their scaling; otherwise it is 1.
    """

    def __init__(
        self,
        where: str,
        modules: Sequence[str],
        read: Callable[[str], LoRAFactors],
        *,
        is_scaled: bool,
    ) -> None:
        self.where, self.modules, self._read = where, tuple(modules), read
        self.is_scaled = is_scaled

    def factors(self, module: str) -> LoRAFactors:
        """Return the factors of a module in float64, (..., r, d_in) and (..., d_out, r)."""
        return self._read(module).to(torch.float64)


def state_dict_adapter(
    state: Mapping[str, Any],
    where: str,
    *,
    alpha: float | None,
    use_rslora: bool,
    config: AdapterConfig | None = None,
) -> SavedAdapter:
    """Return the adapter in a state dict.

    Args:
        state: tensors by key. Keys without LoRA factors and base corrections (`AdapterServer`) are
            ignored; the prefixes `model.` and `base_model.model.` and the adapter's name are
            removed.
        where: its file, for messages.
        alpha: `lora_alpha`, if there is no configuration; None: unknown.
        use_rslora: whether the scaling is `alpha / sqrt(r)`.
        config: the adapter's configuration, if there is one.

    Raises:
        InputError: names the file and the key.
    """
    if not isinstance(state, Mapping):
        raise expected(where, type(state).__name__, "a state dict: tensors by key")
    if len(state) > MOST_TENSORS:
        raise expected(where, f"{len(state):,} tensors", f"at most {MOST_TENSORS:,}")
    pairs: dict[str, dict[str, str]] = {}
    names: set[str] = set()
    for key in state:
        found = _KEY.fullmatch(key) if isinstance(key, str) else None
        if found is None or CORRECTION in key:
            continue
        names.add(found["adapter"] or "default")
        own = pairs.setdefault(_bare(found["module"]), {})
        if found["factor"] in own:
            raise expected(where, key, f"one factor {found['factor']} for each module")
        own[found["factor"]] = key
    if not pairs:
        raise expected(where, sorted(map(str, state))[:SHOWN], "keys with lora_A and lora_B")
    if len(names) > 1:
        raise expected(where, sorted(names), "one adapter, not several with names")
    for own in pairs.values():
        if len(own) < 2:
            raise expected(where, next(iter(own.values())), "A and B of each module")

    def read(module: str) -> LoRAFactors:
        a, b = (_matrix(where, pairs[module][factor], state) for factor in "AB")
        if a.shape[0] != b.shape[1]:
            wanted = f"{a.shape[0]} columns, as lora_A has rows"
            raise expected(f"{where}: {pairs[module]['B']}", tuple(b.shape), wanted)
        if config is not None:
            key = pairs[module]["A"].removeprefix(_PREFIXES[0]).partition(".lora_")[0]
            scaling = config.scaling_of(key)
        else:
            rank = a.shape[0]
            scaling = 1.0 if alpha is None else alpha / (math.sqrt(rank) if use_rslora else rank)
        return wide_factors(a, b, scaling)

    return SavedAdapter(
        where, tuple(pairs), read, is_scaled=alpha is not None or config is not None
    )


def _bare(module: str) -> str:
    while any(module.startswith(prefix) for prefix in _PREFIXES):
        for prefix in _PREFIXES:
            module = module.removeprefix(prefix)
    return module


def _matrix(where: str, key: str, state: Mapping[str, Any]) -> Tensor:
    tensor = state[key]
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.ndim < 2:
        raise expected(f"{where}: {key}", tensor, "a floating-point matrix")
    check_tensor_finite(f"{where}: {key}", tensor)
    return tensor.detach().to("cpu", torch.float64).flatten(1)


def read_pickle(path: Path) -> Any:
    """Return the content of a torch file of plain tensors, mapped into memory if possible.

    Raises:
        InputError: for any other pickle, and for a damaged file.
    """
    check_no_pointer("weights", path)
    wanted = "a file of plain tensors, which torch.load reads with weights_only=True"
    reason: Exception | None = None
    for mapped in (True, False):  # files of older formats cannot be mapped
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on the protocol of a file that it then refuses
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # a crafted file makes the reader raise anything
            reason = error
    text = str(reason).partition("\n")[0]
    raise expected("weights", str(path), f"{wanted} ({text})") from None


@dataclass(frozen=True)
class Scalings:
    """Scaling of adapters whose files do not state it.

    Args:
        alpha: `lora_alpha`; None: unknown.
        use_rslora: whether the scaling is `alpha / sqrt(r)` instead of `alpha / r`.
    """

    alpha: float | None = None
    use_rslora: bool = False


def folder_adapter(folder: Path, scalings: Scalings) -> SavedAdapter:
    """Return the adapter of a PEFT folder; its configuration states the scaling.

    Raises:
        InputError: if it cannot be read, or states another alpha than the given one.
    """
    if (folder / WEIGHTS_FILE).is_file():
        opened = AdapterFolder(folder)
        _check_alpha(opened.config, scalings)
        modules = {_bare(name): name for name in opened.layers}
        return SavedAdapter(
            str(folder),
            tuple(modules),
            lambda name: opened.factors(modules[name], torch.float64, torch.device("cpu")),
            is_scaled=True,
        )
    config = read_config(folder)
    _check_alpha(config, scalings)
    path = next(folder / name for name in _IN_FOLDER if (folder / name).is_file())
    return state_dict_adapter(
        _state_of(read_pickle(path)), str(path), alpha=None, use_rslora=False, config=config
    )


def _check_alpha(config: AdapterConfig, scalings: Scalings) -> None:
    if scalings.alpha not in (None, config.alpha):
        raise expected("alpha", scalings.alpha, f"{config.alpha:g}, as in {config.source}")


def file_adapter(path: Path, scalings: Scalings) -> SavedAdapter:
    """Return the adapter of a torch file: a state dict, or one under the key `model`."""
    state = _state_of(read_pickle(path))
    return state_dict_adapter(
        state, str(path), alpha=scalings.alpha, use_rslora=scalings.use_rslora
    )


def _state_of(content: Any) -> Any:
    inner = content.get("model") if isinstance(content, Mapping) else None
    return inner if isinstance(inner, Mapping) else content


# The rounds of a run


@dataclass(frozen=True)
class RoundFiles:
    """The adapters of one round; files are opened when they are read.

    Args:
        number: the round.
        open_global: returns the global adapter; the one of the highest rank, if there are several.
        clients: client name to a function that returns the client's adapter.
    """

    number: int
    open_global: Callable[[], SavedAdapter]
    clients: Mapping[str, Callable[[], SavedAdapter]] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundRun:
    """A recognized run.

    Args:
        layout: one of `LAYOUTS`.
        rounds: its rounds, ascending.
        group_ranks: ranks of the groups, if there is an adapter for each.
    """

    layout: str
    rounds: tuple[RoundFiles, ...]
    group_ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Place:
    """One adapter: a folder with a configuration, or a file."""

    path: Path
    number: int
    kind: str
    client: str | None
    group: int | None
    run: tuple[str, ...]


def is_own(folder: Path) -> bool:
    """Return True if a folder holds a run of `fedlora-sim train`."""
    return (folder / RUN_FILE).is_file()


def find_run(run: Path, layout: str | None, scalings: Scalings) -> FoundRun:
    """Return the rounds of a run's folder.

    Args:
        run: the folder.
        layout: one of `LAYOUTS`, or a regular expression with one group, the round, which is
            searched in the path of each adapter; None: recognized.
        scalings: for files that do not state the scaling.

    Raises:
        InputError: if nothing is found, or several runs are.
    """
    pattern = None
    if layout is not None and "(" in layout:
        pattern = _compiled(layout)
    elif layout is not None:
        check_choice("layout", layout, LAYOUTS)
    places = [
        place
        for path in _adapters(run)
        if (place := _place(run, path, pattern)) is not None
        and (pattern is not None or layout is None or _is_of(place, layout))
    ]
    if not places:
        what = "adapters of" if layout is None else f"{layout}:"
        wanted = f"a folder with {what} rounds, with the round in the path ({', '.join(LAYOUTS)})"
        raise expected("run", str(run), wanted)
    runs = sorted({place.run for place in places})
    if len(runs) > 1:
        names = ", ".join(str(run.joinpath(*parts)) for parts in runs[:SHOWN])
        raise expected("run", str(run), f"one run; there are {len(runs)}: give one of {names}")
    by_round: dict[int, list[_Place]] = {}
    for place in places:
        by_round.setdefault(place.number, []).append(place)
    kind = "flora" if any(place.client is not None for place in places) else places[0].kind
    ranks: set[int] = set()
    rounds = [
        found
        for number in sorted(by_round)
        if (found := _round(number, by_round[number], scalings, ranks)) is not None
    ]
    if not rounds:
        raise expected("run", str(run), "a global adapter in at least one round")
    return FoundRun(layout or kind, tuple(rounds), tuple(sorted(ranks)))


def _is_of(place: _Place, layout: str) -> bool:
    """Return True if an adapter belongs to a run of a layout; clients' adapters always do."""
    named_by_round = layout == "rounds" and place.kind == "flora"
    return place.client is not None or place.kind == layout or named_by_round


def _compiled(layout: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(layout)
    except re.error as error:
        raise expected("layout", layout, f"a regular expression ({error})") from None
    if pattern.groups != 1:
        raise expected("layout", layout, "a regular expression with one group, the round")
    return pattern


def _round(
    number: int, places: Sequence[_Place], scalings: Scalings, ranks: set[int]
) -> RoundFiles | None:
    """Return the round of its adapters; None if it has no global one."""
    clients = {
        str(place.client): _opener(place.path, scalings)
        for place in sorted(places, key=lambda p: natural(str(p.client)))
        if place.client is not None
    }
    own = [place for place in places if place.client is None]
    if not own:
        return None
    if all(place.group is not None for place in own) and len(own) > 1:
        configs = {place.path: read_config(place.path).rank for place in own}
        ranks |= set(configs.values())
        own = [max(own, key=lambda place: configs[place.path])]
    if len(own) > 1:
        names = ", ".join(str(place.path) for place in own[:SHOWN])
        raise expected(f"round {number}", names, "one global adapter for each round")
    return RoundFiles(number, _opener(own[0].path, scalings), clients)


def _opener(path: Path, scalings: Scalings) -> Callable[[], SavedAdapter]:
    return lambda: (folder_adapter if path.is_dir() else file_adapter)(path, scalings)


def _adapters(run: Path) -> Iterator[Path]:
    """Yield folders with a configuration and weights, and pickled files of other folders."""
    seen = 0
    for name, folders, files in os.walk(run):
        folders.sort()
        folder, names = Path(name), set(files)
        seen += len(files)
        if seen > MOST_FILES:
            raise expected("run", str(run), f"at most {MOST_FILES:,} files")
        if CONFIG_FILE in names and names & {WEIGHTS_FILE, *_IN_FOLDER}:
            yield folder
            continue
        pickled = (name for name in sorted(names - TRAINER_FILES) if name.endswith(PICKLED))
        yield from (folder / name for name in pickled)


def _place(run: Path, path: Path, pattern: re.Pattern[str] | None) -> _Place | None:
    """Return round, client and group of an adapter by its path; None without a round."""
    parts = path.relative_to(run).parts
    is_file = path.is_file()
    client = _first(_CLIENT, parts[:-1] if is_file else parts)
    group = _first(_GROUP, parts)
    if pattern is not None:
        found = pattern.search(Path(*parts).as_posix() if parts else "")
        if found is None or not (found[1] or "").isdecimal():
            return None
        return _Place(path, _number(found[1]), "rounds", client, _int(group), ())
    for kind, one in _ROUND.items():
        folders = parts[:-1] if is_file else parts
        for i in reversed(range(len(folders))):  # the innermost: other numbers may stand before it
            part = folders[i]
            match = one.fullmatch(part)
            if match is not None and not _CLIENT.fullmatch(part):
                named = "fedfm" if kind == "flowertune" and group is not None else kind
                if kind == "rounds" and is_file and client is None:
                    named = _kind_of(path, "flora")
                return _Place(path, _number(match[1]), named, client, _int(group), parts[:i])
    if not is_file:
        return None
    match = _IN_NAME.fullmatch(path.stem)
    kind, written = _read_kind(path)
    if match is None and written is None:
        return None
    number = _number(match[1]) if written is None and match is not None else int(written or 0)
    return _Place(path, number, kind, client, _int(group), parts[:-1])


def _kind_of(path: Path, otherwise: str) -> str:
    return otherwise if path.name == "adapter_model.bin" else _read_kind(path)[0]


def _read_kind(path: Path) -> tuple[str, int | None]:
    """Return the layout of a pickled file, and the round that it states."""
    content = read_pickle(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        number = content.get("cur_round")
        if isinstance(number, int):
            return "federatedscope", number
        return "nvflare", None
    return "rounds", None


def _first(pattern: re.Pattern[str], parts: Sequence[str]) -> str | None:
    return next((found[1] for part in parts if (found := pattern.fullmatch(part))), None)


def _number(text: str) -> int:
    if len(text) > len(str(MOST_ROUNDS)):
        raise expected("round", text, f"at most {MOST_ROUNDS:,}")
    return int(text)


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)


def natural(name: str) -> tuple[int, str]:
    """Return a key by which names that are numbers are sorted by value."""
    return (int(name), "") if name.isdecimal() else (-1, name)
