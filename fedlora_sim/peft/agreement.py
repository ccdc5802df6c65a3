"""The adapters of one round: whether they agree, and which clients have each module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from fedlora_sim.errors import check_choice, expected
from fedlora_sim.peft.config import SHARED, UNMERGEABLE
from fedlora_sim.peft.read import PREFIX, Adapter, Layer, unwrapped
from fedlora_sim.rules import get_rule

MODULES = ("same", "shared", "owners")
"""What to do if clients have different modules: refuse, aggregate the common ones, or all."""
TOKENS = "trainable_token_indices"
# Options that select modules. All others that describe the model must be equal (SHARED).
SELECTION = (
    "target_modules",
    "target_parameters",
    "layers_to_transform",
    "layers_pattern",
    "exclude_modules",
)


class AdapterCohort:
    """The checked adapters of one round, with the clients that have each module.

    Args:
        clients: one adapter per client; one adapter may stand for several clients.
        weights: relative sample count of each client.
        previous: the last global adapter.
        modules: `same` refuses clients with different modules. `shared` aggregates the modules
            that all clients have. `owners` aggregates every module over the clients that have it.

    Raises:
        InputError: names two adapters and the difference, or the argument.
    """

    def __init__(
        self,
        clients: Sequence[Adapter],
        weights: Sequence[float],
        previous: Adapter | None = None,
        modules: str = "same",
    ) -> None:
        self.clients, self.weights = tuple(clients), tuple(weights)
        self.policy = check_choice("modules", modules, MODULES)
        is_same = self.policy == "same"
        check_agreement(list(dict.fromkeys(self.clients)), is_same=is_same)
        if previous is not None:
            check_previous(previous, self.clients, is_same=is_same)
        self.previous = previous
        every = dict.fromkeys(module for client in self.clients for module in client.layers)
        self._having = {m: self._all_with(m, lambda client: client.layers) for m in every}
        self.modules = tuple(m for m, having in self._having.items() if self._is_kept(having))
        if not self.modules:
            wanted = "clients that share a module (with 'owners' they need not)"
            raise expected("modules", self.policy, wanted)
        extras = dict.fromkeys(key for client in self.clients for key in client.extras)
        found = {key: self._all_with(key, lambda client: client.extras) for key in extras}
        self.extras = {key: having for key, having in found.items() if self._is_kept(having)}
        self._check_whole_modules()

    def _check_whole_modules(self) -> None:
        """Refuse a module that has LoRA in one client and is trained as a whole in another."""
        for module in self.modules:
            key = f"{PREFIX}{module}.weight"
            if key in self.extras:
                client = self.clients[self.extras[key][0]]
                first = self.holders(module)[0].name
                raise client.refused(f"LoRA on {module}, as in {first}, not the whole module")

    def _all_with(self, name: str, of: Any) -> tuple[int, ...]:
        return tuple(k for k, client in enumerate(self.clients) if name in of(client))

    def _is_kept(self, having: Sequence[int]) -> bool:
        if self.policy == "owners":
            return any(self.weights[k] > 0 for k in having)
        return len(having) == len(self.clients)

    @property
    def carried(self) -> tuple[str, ...]:
        """Modules of the last global adapter that no client in the cohort has (`owners` only)."""
        if self.previous is None or self.policy != "owners":
            return ()
        return tuple(module for module in self.previous.layers if module not in self.modules)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Modules that a client has and the result has not."""
        written = {*self.modules, *self.carried}
        return tuple(module for module in self._having if module not in written)

    def owners(self, module: str) -> tuple[int, ...]:
        """Return the positions of the clients that have a module."""
        return self._having.get(module, ())

    def coverage(self, module: str) -> float:
        """Return the weight share of the clients that have a module."""
        if len(self.owners(module)) == len(self.clients):
            return 1.0
        return sum(self.weights[k] for k in self.owners(module)) / sum(self.weights)

    def previous_of(self, module: str) -> Adapter | None:
        """Return the last global adapter if it has the module."""
        last = self.previous
        return last if last is not None and module in last.layers else None

    def holders(self, module: str) -> tuple[Adapter, ...]:
        """Return the clients' adapters that have a module; the last global one if none has it."""
        if module in self.carried:
            assert self.previous is not None
            return (self.previous,)
        return tuple(self.clients[k] for k in self.owners(module))

    def layer(self, module: str) -> Layer:
        """Return the stored form of a module, which does not depend on the client."""
        return self.holders(module)[0].layers[module]

    @cached_property
    def tied(self) -> dict[str, tuple[Layer, str]]:
        """Modules whose factors are those of an embedding, transposed, and the embedding."""
        written = {*self.modules, *self.carried}
        found: dict[str, tuple[Layer, str]] = {}
        for adapter in (*self.clients, *([self.previous] if self.carried else [])):
            if adapter is not None:
                found = {**adapter.tied, **found}
        return {
            name: (layer, module) for name, (layer, module) in found.items() if module in written
        }

    def is_frozen(self, key: str) -> bool:
        """Return True if a tensor is the base model's own, in the first adapter that has it."""
        return self.clients[self.extras[key][0]].is_frozen(key)

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The options of the result: the first client's, with the modules of the result."""
        options = dict(self.clients[0].config.options)
        every = [client.config.options for client in self.clients]
        if self.policy == "same" or all(_selection(own) == _selection(options) for own in every):
            return options
        options |= self._selected(every)
        saved = [list(own.get("modules_to_save") or ()) for own in every]
        options["modules_to_save"] = self._combined(saved) or None
        tokens = [own.get(TOKENS) for own in every if own.get(TOKENS) is not None]
        if tokens and (self.policy == "owners" or len(tokens) == len(every)):
            options[TOKENS] = tokens[0]
            if all(isinstance(own, Mapping) for own in tokens):
                options[TOKENS] = {k: v for own in reversed(tokens) for k, v in own.items()}
        else:
            options[TOKENS] = None
        return options

    def _combined(self, names: Sequence[Sequence[str]]) -> list[str]:
        """Return the names in any list, or under `shared` those in all of them."""
        found = dict.fromkeys(name for own in names for name in own)
        is_union = self.policy == "owners"
        return [name for name in found if is_union or all(name in own for own in names)]

    def _selected(self, every: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return options that select the modules of the result.

        Lists of names are combined if that selects these modules. Otherwise, as for patterns and
        for layers by number, the modules are named one by one.
        """
        written = [*self.modules, *self.carried, *self.tied]
        known = {*written, *self._having}
        parameters = [list(own.get("target_parameters") or ()) for own in every]
        result: dict[str, Any] = {
            "target_parameters": self._combined(parameters) or None,
            **dict.fromkeys(SELECTION[2:]),
        }
        lists = [own.get("target_modules") or [] for own in every]
        if all(isinstance(own, list) for own in lists) and not any(
            own.get(name) for own in every for name in SELECTION[2:]
        ):
            names = sorted(self._combined(lists))
            chosen = {m for m in known if any(_ends_with(m, name) for name in names)}
            if chosen == {m for m in written if self._is_module(m)}:
                return {"target_modules": names, **result}
        return {
            "target_modules": sorted(m for m in written if self._is_module(m)),
            **result,
        }

    def _is_module(self, name: str) -> bool:
        """Return True if LoRA was applied to a module of this name, not to a parameter."""
        if name in self.tied:
            return False
        path = self.layer(name).key_A.removeprefix(PREFIX).partition(".lora_")[0]
        return unwrapped(path) == name


def _ends_with(module: str, name: str) -> bool:
    return f".{module}".endswith(f".{name}")


def _selection(options: Mapping[str, Any]) -> list[Any]:
    found = [options.get(name) or None for name in SELECTION]
    return [sorted(own, key=str) if isinstance(own, list) else own for own in found]


# Agreement of adapters: the same options, and tensors of the same forms

SHOWN = 8


def check_agreement(adapters: Sequence[Adapter], *, is_same: bool = True) -> None:
    """Refuse adapters that cannot be aggregated.

    Ranks, scalings, their conventions and the name of the base model may differ.

    Args:
        adapters: at least one adapter.
        is_same: whether all must have the same modules.

    Raises:
        InputError: names both files and the difference.
    """
    origins = [adapters[0]]  # together these have all modules
    for adapter in adapters[1:]:
        _check_shared_options(adapter, adapters[0])
        if is_same:
            _check_keys(adapter, adapters[0])
        for first in origins:
            _check_forms(adapter, first)
        if not all(any(m in first.layers for first in origins) for m in adapter.layers):
            origins.append(adapter)


def check_previous(previous: Adapter, clients: Sequence[Adapter], *, is_same: bool = True) -> None:
    """Refuse a last global adapter that does not match the clients' modules."""
    _check_shared_options(previous, clients[0])
    if is_same:
        _check_names(previous, set(previous.layers), set(clients[0].layers), clients[0])
    for client in dict.fromkeys(clients[:1] if is_same else clients):
        _check_layers(previous, client)


def check_mergeable(cohort: AdapterCohort, rule: str) -> None:
    """Refuse a rule with a base correction if nothing can be merged into the base weights.

    Raises:
        InputError: names the option that prevents it, and the reason.
    """
    if not get_rule(rule).residual_in_base:
        return
    client = cohort.clients[0]
    reasons = {n: why for n, why in UNMERGEABLE.items() if client.config.options.get(n)}
    if cohort.tied:
        names = ", ".join(cohort.tied)
        reasons["ensure_weight_tying"] = f"PEFT adds LoRA on tied layers ({names}) to them twice"
    for name, reason in reasons.items():
        expectation = (
            f"a rule that leaves the base weights unchanged: {reason}, so no correction can be "
            f"merged into them ({client.config.source}: {name})"
        )
        raise expected("rule", rule, expectation)


def _check_shared_options(adapter: Adapter, first: Adapter) -> None:
    for name, default in SHARED.items():
        given = adapter.config.options.get(name, default)
        wanted = first.config.options.get(name, default)
        if given != wanted:
            where = f"{adapter.config.source}: {name}"
            raise expected(where, given, f"{wanted!r}, as in {first.config.source}")


def _check_keys(adapter: Adapter, first: Adapter) -> None:
    hint = "; for clients with different modules choose modules='owners' or modules='shared'"
    _check_names(adapter, set(adapter.layers), set(first.layers), first, hint)
    _check_names(adapter, set(adapter.keys), set(first.keys), first)


def _check_names(
    adapter: Adapter, given: set[str], wanted: set[str], first: Adapter, hint: str = ""
) -> None:
    missing, unknown = sorted(wanted - given), sorted(given - wanted)
    if missing or unknown:
        differences = [
            f"{count} {what} ({', '.join(names[:SHOWN])}{', ...' if count > SHOWN else ''})"
            for what, names in (("missing", missing), ("unexpected", unknown))
            if (count := len(names))
        ]
        expectation = f"the modules and keys of {first.name}: {' and '.join(differences)}{hint}"
        raise adapter.refused(expectation)


def _check_forms(adapter: Adapter, first: Adapter) -> None:
    _check_layers(adapter, first)
    for key in [key for key in first.extras if key in adapter.extras]:
        given, wanted = (sorted(f.token_indices(key) or ()) for f in (adapter, first))
        if given != wanted:
            where = f"{adapter.config.source}: trainable_token_indices"
            expectation = (
                f"the tokens {wanted}, as in {first.config.source}: a client's rows of tokens that "
                "it did not train are not in its file"
            )
            raise expected(where, given, expectation)
        if adapter.shape(key) != first.shape(key):
            where = f"shape of {key} in {adapter.name}"
            raise expected(where, adapter.shape(key), f"{first.shape(key)}, as in {first.name}")


def _check_layers(adapter: Adapter, first: Adapter) -> None:
    for module in [module for module in first.layers if module in adapter.layers]:
        given, layer = adapter.layers[module], first.layers[module]
        if given.form != layer.form:
            expectation = f"(inputs, outputs) = {layer.form}, as in {first.name}"
            raise expected(f"shape of {module} in {adapter.name}", given.form, expectation)
        if layer.experts > 1 and layer.shape_A[1] == layer.shape_B[0]:
            _check_orientation(module, adapter, first)


def _check_orientation(module: str, adapter: Adapter, first: Adapter) -> None:
    """Refuse stacks of square experts that two versions of PEFT may store transposed.

    PEFT exchanged inputs and outputs of most stacked experts in version 0.19; equal sizes do not
    reveal the orientation.
    """
    given, wanted = (f.config.options.get("peft_version") for f in (adapter, first))
    if _minor_version(given) != _minor_version(wanted):
        where = f"{adapter.config.source}: peft_version"
        expectation = (
            f"version {wanted} as in {first.config.source}: {module} stacks square matrices, which "
            "versions of PEFT store transposed to each other"
        )
        raise expected(where, given, expectation)


def _minor_version(version: object) -> list[str]:
    return str(version).split(".")[:2]
