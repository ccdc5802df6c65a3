"""The configuration of a PEFT adapter: options, LoRA variants, and the base model's name."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora_sim.errors import check_choice, expected
from fedlora_sim.peft.patterns import (
    check_pattern,
    fits_whole,
    most_common,
    pattern_key,
    write_patterns,
)
from fedlora_sim.strict_json import read_json

# Options of a PEFT configuration: their meaning for an aggregation, and which are refused.
#
# The rules average `scaling * B @ A` on the weights of one base model. Options under which the
# update of a layer is something else, or the client's base weights differ from the model's, are
# refused by name. Unknown options are refused unless they are off.

# Options that change the update, what it is added to, or where it acts; off when empty.
REFUSED = {
    "arrow_config": "Arrow routes every token to its own mixture of adapters",
    "kasa_config": "KaSA changes the base weights and puts a diagonal between B and A",
    "lora_bias": "a bias on lora_B is outside of B @ A",
    "megatron_config": "Megatron shards the factors",
    "monteclora_config": "MonteCLoRA samples its factors",
    "use_bdlora": "BD-LoRA's factors are block-diagonal, and an average of products is not",
    "use_dora": "DoRA's magnitudes are outside of B @ A",
    "use_qalora": "QALoRA multiplies pooled inputs, so its update is not B @ A",
    "velora_config": "VeLoRA keeps a random projection of every client in addition to the factors",
}

# Initializations that keep the base weights and train both factors.
PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
REFUSED_INITIALIZATIONS = {
    "pissa": "PiSSA takes the leading singular vectors out of the base weights",
    "olora": "OLoRA takes its first update out of the base weights",
    "corda": "CorDA takes singular vectors out of the base weights",
    "lora_ga": "LoRA-GA takes its first update out of the base weights",
    "loftq": "LoftQ quantizes the base weights",
    "mica": "MiCA freezes B, which the aggregated adapter would not keep",
}

# Options that define the model, the storage and the location of the update, with their defaults.
# Clients must agree on them.
SHARED: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "bias": "none",
    "ensure_weight_tying": False,
    "fan_in_fan_out": False,
    "layer_replication": None,
    "task_type": None,
}

# Options under which nothing can be merged into the base weights, with the reason.
UNMERGEABLE = {
    "alora_invocation_tokens": "aLoRA acts on a part of the tokens only",
    "layer_replication": "replicated layers share their base weights",
}

# Options that the output sets: base model, ranks, scalings, and initialization.
WRITTEN = {
    "alpha_pattern",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_alpha",
    "lora_ga_config",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "use_rslora",
}

# Options that the output takes from the first client. They select modules, on which the files must
# agree, apply to training only, or have no effect without an option that is refused.
CARRIED = {
    "auto_mapping",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "trainable_token_indices",  # equal tokens, in any order
}

KNOWN = WRITTEN | CARRIED | set(SHARED)


def check_plain_lora(source: str, options: Mapping[str, Any]) -> None:
    """Refuse LoRA variants whose weights the rules do not support.

    Args:
        source: file of the options, for the message.
        options: a configuration as PEFT writes it.

    Raises:
        InputError: names the file, the option and the reason.
    """
    peft_type = options.get("peft_type")
    if peft_type != "LORA":
        raise expected(
            f"{source}: peft_type", peft_type, "'LORA', the only type that is aggregated"
        )
    for name, reason in REFUSED.items():
        if options.get(name):
            raise expected(f"{source}: {name}", options[name], f"plain LoRA ({reason})")
    initialization = options.get("init_lora_weights", True)
    if initialization not in PLAIN_INITIALIZATIONS:
        kind = str(initialization).lower()
        reasons = [why for name, why in REFUSED_INITIALIZATIONS.items() if kind.startswith(name)]
        expectation = (
            "an initialization that leaves the base weights unchanged and trains both factors: "
            "true, false, 'gaussian', 'orthogonal' or 'eva'" + "".join(f" ({w})" for w in reasons)
        )
        raise expected(f"{source}: init_lora_weights", initialization, expectation)
    for name in sorted(set(options) - KNOWN - set(REFUSED)):
        if options[name]:
            reason = "the option left off (it is not known here, so its weights may not be B @ A)"
            raise expected(f"{source}: {name}", options[name], reason)


# `adapter_config.json`: options, and the rank and scaling of each module

CONFIG_FILE = "adapter_config.json"
# Pattern that `peft.utils.transformers_weight_conversion` writes for experts with fused
# projections.
FUSED_PATTERNS = (r".*\.gate_up_proj",)
# Options of the initialization, which do not apply to a written adapter.
NO_INITIALIZATION: dict[str, Any] = {
    "corda_config": None,
    "eva_config": None,
    "loftq_config": {},
    "lora_ga_config": None,
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
SHOWN = 4
BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True, eq=False)
class AdapterConfig:
    """The configuration of one plain LoRA adapter.

    Args:
        source: file of the configuration, for messages.
        options: all options as PEFT wrote them.
        rank: default rank `r`.
        alpha: default `lora_alpha`.
        use_rslora: whether the scaling is `alpha / sqrt(r)` instead of `alpha / r`.
        rank_pattern: ranks of modules by pattern.
        alpha_pattern: alphas of modules by pattern.
    """

    source: str
    options: Mapping[str, Any]
    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        """Return the rank of a module, named as in the base model."""
        return self.rank_pattern.get(pattern_key(self.rank_pattern, module), self.rank)

    def rank_multiple(self, module: str) -> int | None:
        """Return the factor between `r` and the rank of a module; None if a pattern sets its rank.

        PEFT writes such a pattern itself if transformers fused several projections into one
        parameter; their ranks add up.
        """
        key = pattern_key(self.rank_pattern, module)
        if key not in self.rank_pattern:
            return 1
        multiple, rest = divmod(self.rank_pattern[key], self.rank)
        return multiple if key in FUSED_PATTERNS and rest == 0 else None

    def fits_rows(self, module: str, rows: int) -> bool:
        """Return True if the stored A of a parameter may have that many rows."""
        return rows % self.rank_of(module) == 0

    def scaling_of(self, module: str) -> float:
        """Return the scaling of a module at its own rank."""
        return self.scaling_at(module, self.rank_of(module))

    def scaling_at(self, module: str, rank: int) -> float:
        """Return the scaling of a module: `alpha / rank`, or `alpha / sqrt(rank)` under rsLoRA."""
        alpha = self.alpha_pattern.get(pattern_key(self.alpha_pattern, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Return True if PEFT would apply LoRA to a module of this name; it drops the others."""
        wanted = self.options.get("target_modules") or ()
        if isinstance(wanted, str):
            return wanted == "all-linear" or fits_whole(wanted, module)
        return any(module == name or module.endswith(f".{name}") for name in wanted)

    def targeted_parameters(self, module: str, count: int = 1) -> tuple[str, ...]:
        """Return the names of a module's own parameters that PEFT may have applied LoRA to.

        These are its target_parameters.

        Args:
            module: name of the module that holds the parameters.
            count: number of parameters with LoRA. If that many parameters are targeted together
                with the end of the module's name, only these are returned, because a bare name may
                belong to any module.
        """
        split = [name.rpartition(".") for name in self.options.get("target_parameters") or ()]
        own = {name for end, _, name in split if end and f".{module}".endswith(f".{end}")}
        bare = {name for end, _, name in split if not end}
        return tuple(sorted(own if len(own) >= count else own | bare))

    @property
    def modules_to_save(self) -> tuple[str, ...]:
        """Names of the modules that are trained and saved as a whole."""
        return tuple(self.options.get("modules_to_save") or ())

    @property
    def trains_biases(self) -> bool:
        """True if biases of the base model were trained too."""
        return self.options.get("bias", "none") != "none"


def read_config(folder: Path) -> AdapterConfig:
    """Read and check the configuration of an adapter folder.

    Raises:
        InputError: names the file, the option, its value and what was expected.
    """
    path = folder / CONFIG_FILE
    source = str(path)
    if not path.is_file():
        reason = f"it has no {CONFIG_FILE}{_elsewhere(folder)}"
        raise expected("folder", str(folder), f"a PEFT adapter folder ({reason})")
    check_no_pointer("adapter_config", path)
    try:
        options = read_json(path)
    except ValueError as error:
        raise expected("adapter_config", source, f"valid JSON ({error})") from None
    if not isinstance(options, dict):
        raise expected("adapter_config", source, f"a JSON object, not {type(options).__name__}")
    check_plain_lora(source, options)
    check_options(source, options)
    return AdapterConfig(
        source,
        options,
        check_rank(f"{source}: r", options.get("r")),
        check_alpha(f"{source}: lora_alpha", options.get("lora_alpha")),
        options.get("use_rslora", False),
        checked_pattern(source, options, "rank_pattern", check_rank),
        checked_pattern(source, options, "alpha_pattern", check_alpha),
    )


def check_no_pointer(argument: str, path: Path) -> None:
    """Refuse a Git LFS pointer in place of the file."""
    with path.open("rb") as file:
        is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    if is_pointer:
        expectation = "the file itself, not a git-lfs pointer to it (run `git lfs pull` there)"
        raise expected(argument, str(path), expectation)


def _elsewhere(folder: Path) -> str:
    """Return a hint where the adapter may be instead, as the end of a sentence."""
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    if len(found) == 1:
        return f"; PEFT saves an adapter that has a name in a subfolder: give {found[0]}"
    if found:
        names = ", ".join(str(path) for path in found[:SHOWN])
        more = ", ..." if len(found) > SHOWN else ""
        return f"; its subfolders have one: give one of {names}{more}"
    if (folder / "config.json").is_file():
        return "; it seems to hold a whole model, as `merge_and_unload` makes it"
    return "" if any(folder.iterdir()) else "; it is empty"


def written_config(
    options: Mapping[str, Any],
    layers: Mapping[str, tuple[int, float]],
    use_rslora: bool,
    *,
    clients: Sequence[AdapterConfig] = (),
    names: Iterable[str] = (),
) -> tuple[dict[str, Any], dict[str, tuple[int, float]]]:
    """Return the configuration of an adapter whose layers have the given ranks and scalings.

    Args:
        options: source of the adapter's other options.
        layers: rank and scaling of each module.
        use_rslora: convention of the written scalings.
        clients: configurations whose patterns may be written, see `write_patterns`.
        names: modules whose names are those of the model, which may be written as patterns.

    Returns:
        A configuration as PEFT writes it, and the rank and scaling that it gives each module. Ranks
        are at least those requested; scalings may differ if no pattern separates two modules.
    """
    rank_keys = {key for client in clients for key in client.rank_pattern}
    alpha_keys = {key for client in clients for key in client.alpha_pattern}
    wanted = {module: rank for module, (rank, _) in layers.items()}
    ranks = write_patterns(wanted, rank_keys, max, names)

    def root(module: str) -> float:
        return math.sqrt(ranks.values[module]) if use_rslora else ranks.values[module]

    wanted_alphas = {m: _tidy(scaling * root(m)) for m, (_, scaling) in layers.items()}
    alphas = write_patterns(wanted_alphas, rank_keys | alpha_keys, most_common, names)
    config = {
        **options,
        "r": ranks.default,
        "lora_alpha": alphas.default,
        "rank_pattern": ranks.patterns,
        "alpha_pattern": alphas.patterns,
        "use_rslora": use_rslora,
        "init_lora_weights": True,
        **NO_INITIALIZATION,
        "inference_mode": True,
    }
    return config, {m: (ranks.values[m], alphas.values[m] / root(m)) for m in layers}


def _tidy(alpha: float) -> float:
    """Return an alpha as an integer if it is integral up to rounding."""
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


def check_options(source: str, options: Mapping[str, Any]) -> None:
    """Refuse options of the wrong type; the error names the source and the option."""
    for name in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(options.get(name, False), bool):
            raise expected(f"{source}: {name}", options[name], "true or false")
    check_choice(f"{source}: bias", options.get("bias", "none"), BIASES)
    for name in ("base_model_name_or_path", "task_type", "revision"):
        if not isinstance(options.get(name), str | None):
            raise expected(f"{source}: {name}", options[name], "text or null")
    if not _is_names(options.get("modules_to_save") or []):
        raise expected(f"{source}: modules_to_save", options["modules_to_save"], "names or null")
    parameters = options.get("target_parameters") or []
    if not _is_names(parameters):
        raise expected(f"{source}: target_parameters", parameters, "names of parameters or null")
    targets = options.get("target_modules") or ([] if parameters else None)
    if targets is None or not (isinstance(targets, str) or _is_names(targets)):
        given = options.get("target_modules")
        raise expected(f"{source}: target_modules", given, "module names or one pattern")
    if isinstance(targets, str):
        check_pattern(f"{source}: target_modules", targets)


def checked_pattern(
    source: str, options: Mapping[str, Any], name: str, check: Any
) -> dict[str, Any]:
    """Return the checked patterns of an option, with their checked values."""
    pattern = options.get(name)
    if pattern is None:
        return {}
    if not isinstance(pattern, dict):
        raise expected(f"{source}: {name}", pattern, "an object of patterns and numbers, or null")
    for key in pattern:
        check_pattern(f"{source}: {name}", key)
    return {key: check(f"{source}: {name}[{key!r}]", value) for key, value in pattern.items()}


def check_rank(argument: str, value: object) -> int:
    """Return `value` if it is a whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise expected(argument, value, "a rank, a whole number of at least 1")
    return value


def check_alpha(argument: str, value: object) -> float:
    """Return `value` if it is a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise expected(argument, value, "a positive number")
    if not 0 < value <= sys.float_info.max:
        raise expected(argument, value, "a positive number that is finite")
    return value


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


# The base model: whether the names of all clients mean the same one

NAME, REVISION = "base_model_name_or_path", "revision"

# A snapshot in the cache of the Hugging Face hub, at any location.
_CACHED = re.compile(r"(?:.*/)?models--(?P<repo>[^/]+)/snapshots/(?P<commit>[^/]+)(?P<rest>/.*)?")
_ABSOLUTE = re.compile(r"[/~]|[A-Za-z]:[/\\]")
# Last parts of paths that do not identify a model.
_ANY_MODEL = re.compile(
    r"(checkpoint|step|epoch|run|v)?[-_.]?\d*|(base|final|merged|best|last|latest|hf|output|pretrained"
    r"|weights|snapshot)?[-_.]?(model)?s?",
    flags=re.IGNORECASE,
)


@dataclass(frozen=True)
class BaseModel:
    """A base model as a configuration names it.

    Args:
        name: hub name or path, without a trailing slash; the hub name of a snapshot in the hub's
            cache. None if there is no name.
        revision: as given; None for `main`, the default.
        commit: the snapshot's commit, if the name was a path into the hub's cache.
    """

    name: str | None
    revision: str | None
    commit: str | None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> BaseModel:
        """Return the base model of a configuration's options."""
        name, revision = options.get(NAME) or None, options.get(REVISION)
        revision = None if revision in (None, "", "main") else revision
        if name is None:
            return cls(None, revision, None)
        path = name.replace("\\", "/")
        found = _CACHED.fullmatch(path.rstrip("/"))
        if found is None:
            return cls(name.rstrip("/\\") or name, revision, None)
        repo = found["repo"].replace("--", "/") + (found["rest"] or "")
        return cls(repo, revision, found["commit"])

    @property
    def version(self) -> str | None:
        """The revision, or the snapshot's commit if there is none."""
        return self.revision or self.commit

    def may_be(self, other: BaseModel) -> bool:
        """Return True if the two names may mean the same model.

        A snapshot may be that of the default revision. Folders of the same name may be one model on
        different machines, unless both exist on this machine or the name is generic.
        """
        if self.name != other.name:
            return self.version == other.version and _same_folder(self.name, other.name)
        return self.version == other.version or (
            not (self.revision or other.revision) and (None in (self.commit, other.commit))
        )


def agreed_base_model(configs: Sequence[AdapterConfig], given: str | None) -> dict[str, str | None]:
    """Return the name and the revision of the base model, for the output.

    Args:
        configs: configurations of all folders.
        given: the name of the model, if the caller declares that there is only one.

    Raises:
        InputError: names the file whose model differs from that of another file, and the remedy.
    """
    options = [config.options for config in configs]
    models = [BaseModel.of(own) for own in options]
    versions = {model.version for model in models}
    agreed = versions.pop() if len(versions) == 1 else None
    if given is not None:
        return {NAME: given, REVISION: agreed}
    for k, model in enumerate(models):
        for config, earlier in zip(configs, models[:k], strict=False):
            if not model.may_be(earlier):
                option = NAME if model.name != earlier.name or model.commit else REVISION
                expectation = (
                    f"{config.options.get(option)!r}, as in {config.source} (if it is the same "
                    "model, pass base_model='NAME' with the name to write, or edit the file)"
                )
                raise expected(
                    f"{configs[k].source}: {option}", options[k].get(option), expectation
                )
    first = {name: options[0].get(name) for name in (NAME, REVISION)}
    if len({(own.get(NAME), own.get(REVISION)) for own in options}) == 1:
        return first
    # The commit of a snapshot is not written if a client has the default revision, so that this
    # client also agrees with the adapter in the next round.
    revision = next((model.revision for model in models if model.revision), agreed)
    return {NAME: models[0].name, REVISION: revision}


def _same_folder(one: str | None, other: str | None) -> bool:
    """Return True if two paths, possibly on different machines, end in the same specific name."""
    if one is None or other is None or not (_ABSOLUTE.match(one) and _ABSOLUTE.match(other)):
        return False
    last = [re.split(r"[/\\]", name)[-1] for name in (one, other)]
    if last[0] != last[1] or _ANY_MODEL.fullmatch(last[0]):
        return False
    return not all(Path(name).exists() for name in (one, other))
