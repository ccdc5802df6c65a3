"""Whether clients name one base model, each in the words of its own machine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora_sim.adapters.config import AdapterConfig
from fedlora_sim.errors import expected

NAME, REVISION = "base_model_name_or_path", "revision"

# A snapshot in the cache of the Hugging Face hub, wherever the cache is.
_CACHED = re.compile(r"(?:.*/)?models--(?P<repo>[^/]+)/snapshots/(?P<commit>[^/]+)(?P<rest>/.*)?")
_ABSOLUTE = re.compile(r"[/~]|[A-Za-z]:[/\\]")
# Last parts of paths that say nothing of the model.
_ANY_MODEL = re.compile(
    r"(checkpoint|step|epoch|run|v)?[-_.]?\d*|(base|final|merged|best|last|latest|hf|output|pretrained"
    r"|weights|snapshot)?[-_.]?(model)?s?",
    flags=re.IGNORECASE,
)


@dataclass(frozen=True)
class BaseModel:
    """A base model as a configuration names it.

    Args:
        name: hub name or path, without a slash at the end; of a snapshot in the hub's cache the
            hub name. None if there is no name.
        revision: as given; None for `main`, which is the default.
        commit: the snapshot's, if the name was a path into the hub's cache.
    """

    name: str | None
    revision: str | None
    commit: str | None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> BaseModel:
        """Read a configuration's options."""
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
        """The revision, or else the snapshot's commit."""
        return self.revision or self.commit

    def may_be(self, other: BaseModel) -> bool:
        """Return whether the two can be one model, as far as their names say.

        A snapshot may be that of the default revision. Folders on different machines may be one
        model if they have the same name, unless both are here, or the name could be any model's.
        """
        if self.name != other.name:
            return self.version == other.version and _same_folder(self.name, other.name)
        return self.version == other.version or (
            not (self.revision or other.revision) and (None in (self.commit, other.commit))
        )


def agreed_base_model(configs: Sequence[AdapterConfig], given: str | None) -> dict[str, str | None]:
    """Return the name and the revision of the base model, to be written.

    Args:
        configs: of all folders.
        given: the name of the one model, if the caller says that it is one.

    Raises:
        InputError: naming the file whose model is not that of another file, and what to do.
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
    # A snapshot's commit is not written where a client has the default revision, so that this
    # client agrees with the adapter in the next round, too.
    revision = next((model.revision for model in models if model.revision), agreed)
    return {NAME: models[0].name, REVISION: revision}


def _same_folder(one: str | None, other: str | None) -> bool:
    """Whether two paths, each of its own machine, end in one name that tells a model."""
    if one is None or other is None or not (_ABSOLUTE.match(one) and _ABSOLUTE.match(other)):
        return False
    last = [re.split(r"[/\\]", name)[-1] for name in (one, other)]
    if last[0] != last[1] or _ANY_MODEL.fullmatch(last[0]):
        return False
    return not all(Path(name).exists() for name in (one, other))
