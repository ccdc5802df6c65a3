"""Whether adapter folders can be aggregated: one set of tensors, of one form each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedlora_sim.adapters.reading import AdapterFolder
from fedlora_sim.adapters.variants import SHARED, UNMERGEABLE
from fedlora_sim.aggregation import get_rule
from fedlora_sim.errors import expected

# What says how the update is stored in the model; absent means the default. See `base_model`, too.
SHARED_OPTIONS: dict[str, Any] = {
    **SHARED,
}
SHOWN = 8


def check_agreement(folders: Sequence[AdapterFolder]) -> None:
    """Refuse folders that are not adapters of the same modules.

    Ranks, scalings and their conventions may differ, and so may the name of the base model.

    Raises:
        InputError: naming the file, what differs in it and from which file.
    """
    for folder in folders[1:]:
        _check_options(folder, folders[0])
        _check_keys(folder, folders[0])
        _check_forms(folder, folders[0])


def check_previous(previous: AdapterFolder, client: AdapterFolder) -> None:
    """Refuse a last global adapter that does not belong to the clients' modules."""
    _check_options(previous, client)
    _check_names(previous, set(previous.layers), set(client.layers), client)
    _check_layers(previous, client)


def check_mergeable(client: AdapterFolder, rule: str) -> None:
    """Refuse a rule that merges a correction into base weights that no adapter can be merged into.

    Raises:
        InputError: naming the option that rules it out, and why.
    """
    if not get_rule(rule).residual_in_base:
        return
    reasons = {n: why for n, why in UNMERGEABLE.items() if client.config.options.get(n)}
    if client.tied:
        names = ", ".join(client.tied)
        reasons["ensure_weight_tying"] = f"PEFT adds LoRA on tied layers ({names}) to them twice"
    for name, reason in reasons.items():
        expectation = (
            f"a rule that leaves the base weights unchanged: {reason}, so no correction can be "
            f"merged into them ({client.config.source}: {name})"
        )
        raise expected("rule", rule, expectation)


def _check_options(folder: AdapterFolder, first: AdapterFolder) -> None:
    for name, default in SHARED_OPTIONS.items():
        given = folder.config.options.get(name, default)
        wanted = first.config.options.get(name, default)
        if given != wanted:
            where = f"{folder.config.source}: {name}"
            raise expected(where, given, f"{wanted!r}, as in {first.config.source}")


def _check_keys(folder: AdapterFolder, first: AdapterFolder) -> None:
    _check_names(folder, set(folder.layers), set(first.layers), first)
    _check_names(folder, set(folder.keys), set(first.keys), first)


def _check_names(
    folder: AdapterFolder, given: set[str], wanted: set[str], first: AdapterFolder
) -> None:
    missing, unknown = sorted(wanted - given), sorted(given - wanted)
    if missing or unknown:
        differences = [
            f"{count} {what} ({', '.join(names[:SHOWN])}{', ...' if count > SHOWN else ''})"
            for what, names in (("missing", missing), ("unexpected", unknown))
            if (count := len(names))
        ]
        expectation = f"the modules and keys of {first.path}: {' and '.join(differences)}"
        raise expected("folder", str(folder.path), expectation)


def _check_forms(folder: AdapterFolder, first: AdapterFolder) -> None:
    _check_layers(folder, first)
    for key in first.extras:
        given, wanted = (sorted(f.token_indices(key) or ()) for f in (folder, first))
        if given != wanted:
            where = f"{folder.config.source}: trainable_token_indices"
            expectation = (
                f"the tokens {wanted}, as in {first.config.source}: a client's rows of tokens that "
                "it did not train are not in its file"
            )
            raise expected(where, given, expectation)
        if folder.shape(key) != first.shape(key):
            where = f"shape of {key} in {folder.path}"
            raise expected(where, folder.shape(key), f"{first.shape(key)}, as in {first.path}")


def _check_layers(folder: AdapterFolder, first: AdapterFolder) -> None:
    for module, layer in first.layers.items():
        given = folder.layers[module]
        if given.form != layer.form:
            expectation = f"(inputs, outputs) = {layer.form}, as in {first.path}"
            raise expected(f"shape of {module} in {folder.path}", given.form, expectation)
        if layer.experts > 1 and layer.shape_A[1] == layer.shape_B[0]:
            _check_orientation(module, folder, first)


def _check_orientation(module: str, folder: AdapterFolder, first: AdapterFolder) -> None:
    """Refuse stacks of square experts that two versions of PEFT may store transposed.

    PEFT exchanged inputs and outputs of most stacked experts in version 0.19; where both have one
    size the shapes do not show it.
    """
    given, wanted = (f.config.options.get("peft_version") for f in (folder, first))
    if _minor_version(given) != _minor_version(wanted):
        where = f"{folder.config.source}: peft_version"
        expectation = (
            f"version {wanted} as in {first.config.source}: {module} stacks square matrices, which "
            "versions of PEFT store transposed to each other"
        )
        raise expected(where, given, expectation)


def _minor_version(version: object) -> list[str]:
    return str(version).split(".")[:2]
