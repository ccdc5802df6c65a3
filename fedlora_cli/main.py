"""`fedlora-sim`: the entry point, and what every command does on bad input and on Ctrl-C."""

from __future__ import annotations

import sys

import typer

from fedlora_cli.aggregate import aggregate
from fedlora_cli.rules import rules
from fedlora_cli.simulate import simulate
from fedlora_cli.verify import verify
from fedlora_sim.errors import InputError

app = typer.Typer(
    name="fedlora-sim",
    help="Simulate, predict and verify rank collapse in federated LoRA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(verify)
app.command()(simulate)
app.command()(aggregate)
app.command()(rules)

BAD_INPUT = 2


def main() -> None:
    """Run the command line: exit code 2 and one line for bad input, 130 for Ctrl-C."""
    try:
        app(standalone_mode=True)
    except (InputError, OSError) as error:
        print(f"fedlora-sim: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
