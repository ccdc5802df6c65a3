"""`fedlora-sim`: the entry point, and the handling of bad input and Ctrl-C in all commands."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fedlora_cli.terminal import print_anywhere
from fedlora_sim.errors import FULL, InputError, one_line
from fedlora_sim.import_path import prefer_own_packages
from fedlora_sim.version import __version__

# Modules of this package with a command of the same name, and the first line of its help.
COMMANDS = {
    "verify": "Verify the theory: predictions against measurements, with negative controls.",
    "simulate": "Simulate federated LoRA under one or several rules and write the labeled dataset.",
    "sweep": "Run a grid of scenarios, rules and seeds, here or on a cluster, and go on if killed.",
    "train": "Fine-tune a federation under one rule, round by round in a folder, and go on if "
    "stopped.",
    "export": "Export a fine-tuning run's adapters as PEFT folders: of any client and round, or "
    "global.",
    "study": "Compare rules, ranks and heterogeneities on a real task: runs, verdicts, report, "
    "figures.",
    "aggregate": "Aggregate PEFT LoRA adapters of different ranks into one that PEFT loads.",
    "diagnose": "Test whether your own federated run loses its higher ranks, why, and what to do.",
    "predict": "Predict what every rule does to a federation, side by side and without simulation.",
    "design": "Find the ranks and the rule that keep the most of an update within a budget.",
    "collapse": "Test by intervals whether a rule collapses, compared with FedAvg and raFLoRA.",
    "check": "Check a rule against the laws of aggregation that it declares.",
    "prove": "Check the proofs of the theory with Coq, and print what each theorem assumes.",
    "report": "Write the report of a verification or a study as one HTML page.",
    "rules": "List the aggregation rules.",
}
FAILED, BAD_INPUT = 1, 2
MAKE_ROOM = "make room and run the same command again; what is finished is kept"


class _Commands(TyperGroup):
    """Commands whose modules are imported when they are run.

    Torch takes seconds and help needs none.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if command is None else load_command(str(name)), rest


def load_command(name: str) -> Any:
    """Return the command that typer builds from the function of that name."""
    alone = typer.Typer(add_completion=False)
    alone.command(name)(getattr(importlib.import_module(f"fedlora_cli.{name}"), name))
    return typer.main.get_command(alone)


app = typer.Typer(
    name="fedlora-sim",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)  # listed by help


def _print_version(asked: bool) -> None:
    if asked:
        print(f"fedlora-sim {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="the version")
    ] = False,
) -> None:
    """Simulate, predict and verify rank collapse in federated LoRA."""


def main() -> None:
    """Run the command line: exit code 2 and one line for bad input, 1 for a full disk."""
    prefer_own_packages()
    print_anywhere()
    try:
        app(standalone_mode=True)
    except (InputError, OSError, MemoryError) as error:
        is_full = isinstance(error, OSError) and error.errno in FULL
        reason = str(error) or "not enough memory"
        remedy = f": {MAKE_ROOM}" if is_full else ""
        print(f"fedlora-sim: {one_line(reason + remedy)}", file=sys.stderr)
        sys.exit(FAILED if is_full else BAD_INPUT)
