"""`fedlora-sim aggregate`: aggregate the PEFT adapters of one round's clients."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedlora_sim.errors import InputError, expected

if TYPE_CHECKING:  # torch takes seconds, and the help of a command needs none
    from fedlora_sim.peft import AggregationReport, LayerReport

SHOWN = 6
WIDTH = 120
# Option names by the argument of `aggregate_adapters`, for error messages.
OPTIONS = {
    "base_model": "--base-model",
    "device": "--device",
    "empty_partition": "--empty-partition",
    "modules": "--modules",
    "num_samples": "--samples",
    "out": "--out",
    "previous": "--previous",
    "rank_levels": "--rank-levels",
    "rule": "--rule",
    "seed": "--seed",
    "target_rank": "--target-rank",
}
_NAMES = "|".join(OPTIONS)
# Keys of tensors start with base_model, too.
_UNMISTAKABLE = "|".join(name for name in OPTIONS if "_" in name and name != "base_model")
_IN_FRONT = re.compile(rf"(?P<place>[^='\"]*: )?(?P<name>{_NAMES})(?==)")
_WITHIN = re.compile(rf"\b(?:({_NAMES})='([^']*)'|({_UNMISTAKABLE})\b)")


def aggregate(
    folders: Annotated[
        list[Path], typer.Argument(metavar="CLIENT_DIR", help="PEFT LoRA folders, one a client")
    ],
    out: Annotated[Path, typer.Option(help="folder to write")],
    rule: Annotated[str, typer.Option(help="rule, see `fedlora-sim rules`")] = "raflora",
    samples: Annotated[
        str | None, typer.Option(help="sample counts, e.g. 120,80,40; equal by default")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="name of the base model to write, where clients call the same model differently",
        ),
    ] = None,
    rank_levels: Annotated[
        str | None,
        typer.Option(
            help="ranks of the federation, e.g. 4,8,16, for modules whose rank no rank_pattern "
            "sets; those of the clients by default"
        ),
    ] = None,
    previous: Annotated[
        Path | None,
        typer.Option(help="last global adapter, what carry keeps; a first round has none"),
    ] = None,
    target_rank: Annotated[int | None, typer.Option(help="cut the result to this rank")] = None,
    uniform_rank: Annotated[
        bool,
        typer.Option(
            "--uniform-rank",
            help="write one rank and alpha for all modules, without patterns, for serving engines",
        ),
    ] = False,
    client_folders: Annotated[
        bool, typer.Option("--client-folders", help="also write what each client receives")
    ] = False,
    modules: Annotated[
        str,
        typer.Option(
            help="clients with different modules: same refuses them, shared aggregates the common "
            "modules, owners every module over the clients that have it"
        ),
    ] = "same",
    empty_partition: Annotated[
        str,
        typer.Option(
            help="partition without contributors: carry, error or zero, also for a first round"
        ),
    ] = "carry",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    seed: Annotated[
        int,
        typer.Option(
            help="seed of the random A that empty components start from, or no client could train "
            "them; another one every round"
        ),
    ] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="replace the adapter folder that is there")
    ] = False,
) -> None:
    """Aggregate PEFT LoRA adapters of different ranks into one that PEFT loads."""
    from fedlora_sim.peft import aggregate_adapters

    with _options_named():
        report = aggregate_adapters(
            folders,
            None if samples is None else _sample_counts(samples, len(folders)),
            rule,
            out,
            base_model=base_model,
            rank_levels=None if rank_levels is None else _ranks(rank_levels),
            previous=previous,
            target_rank=target_rank,
            uniform_rank=uniform_rank,
            client_folders=client_folders,
            modules=modules,
            empty_partition=empty_partition,
            device=device,
            seed=seed,
            force=force,
        )
    _print_layers(report)
    if report.left_out:
        print(f"left out, because not all clients have them: {', '.join(report.left_out)}")
    if len(report.base_models) > 1:
        names = ", ".join(map(repr, report.base_models))
        print(f"base model: {report.base_model!r}; the clients name it {names}")
    for place in dict.fromkeys(report.client_folders):
        numbers = [str(k) for k, own in enumerate(report.client_folders, 1) if own == place]
        print(f"client {', '.join(numbers)}: {out / place}")
    if report.has_base:
        print(f"{out} is the sum of {out / 'adapter'} and {out / 'base'}")
    print(f"wrote {out}")


@contextmanager
def _options_named() -> Iterator[None]:
    """Replace argument names by options in the errors of the block."""
    try:
        yield
    except InputError as error:
        raise InputError(_with_options(str(error))) from None


def _with_options(message: str) -> str:
    """Return a message with options in place of arguments, but not within values."""
    given, separator, expectation = message.partition(": expected ")
    front = _IN_FRONT.match(given)
    if front is not None:
        given = f"{front['place'] or ''}{OPTIONS[front['name']]}{given[front.end() :]}"
    return given + separator + _WITHIN.sub(_as_option, expectation)


def _as_option(found: re.Match[str]) -> str:
    name, value, alone = found.groups()
    return OPTIONS[alone] if name is None else f"{OPTIONS[name]} {value}"


def _sample_counts(text: str, clients: int) -> list[float]:
    try:
        counts = [float(count) for count in text.split(",")]
    except ValueError:
        raise expected("--samples", text, "numbers with commas between, e.g. 120,80,40") from None
    if len(counts) != clients:
        raise expected("--samples", text, f"{clients} numbers, one for each client folder")
    if not all(math.isfinite(count) and count >= 0 for count in counts) or not any(counts):
        raise expected("--samples", text, "finite numbers of at least 0, one of them positive")
    return counts


def _ranks(text: str) -> list[int]:
    try:
        ranks = [int(rank) for rank in text.split(",")]
    except ValueError:
        raise expected("--rank-levels", text, "ranks with commas between, e.g. 4,8,16") from None
    if min(ranks) < 1:
        raise expected("--rank-levels", text, "ranks of at least 1")
    return ranks


def _print_layers(report: AggregationReport) -> None:
    has_owners = any(layer.coverage < 1 for layer in report.layers)
    titles = ("module", "rho before", "rho after", "singular values", "rank")
    table = Table(*titles, *(["clients", "coverage"] if has_owners else []), box=SIMPLE)
    for layer in report.layers:
        cells = [_share(layer.rho_before), _share(layer.rho_after), _spectrum(layer)]
        cells.append(str(layer.rank))
        if has_owners:
            owners = ", ".join(str(k + 1) for k in layer.owners) or "none: kept from before"
            cells += [owners, _share(layer.coverage)]
        table.add_row(escape(layer.module), *cells)
    for column in table.columns:
        column.overflow = "fold"
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(table)
    levels = sorted({layer.levels[0] for layer in report.layers})
    lowest = ", ".join(str(level) for level in levels)
    console.print(
        f"rho: energy share of the first {lowest} directions, the lowest rank level; before: the "
        "clients' own updates, mean of energies and of rho by samples"
    )
    if has_owners:
        console.print("coverage: weight share of the clients that have the module")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _spectrum(layer: LayerReport) -> str:
    """Return the leading singular values before (root mean energy of the clients) and after."""
    return "\n".join(
        f"{when} {' '.join(f'{math.sqrt(e):.3g}' for e in energy[:SHOWN])}"
        f"{' ...' if len(energy) > SHOWN else ''}"
        for when, energy in (("before", layer.energy_before), ("after ", layer.energy_after))
    )
