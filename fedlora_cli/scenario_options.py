"""Options for scenario fields, whose help is the fields' own description."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedlora_cli.options import parse_assignment
from fedlora_sim import Scenario
from fedlora_sim.scenario import FIELDS, load_toml


def field_option(name: str) -> Any:
    """Return the option of a scenario field, with the field's description as its help."""
    return typer.Option(help=FIELDS[name].text.replace("`", ""))


Ranks = Annotated[str | None, field_option("ranks")]
Cohort = Annotated[int | None, field_option("cohort_size")]
Rounds = Annotated[int | None, field_option("rounds")]
Fidelity = Annotated[str | None, field_option("fidelity")]
Task = Annotated[str | None, field_option("task")]
Device = Annotated[str | None, field_option("device")]
InitialAmplitude = Annotated[float, field_option("initial_amplitude")]
SpectrumDecay = Annotated[float, field_option("spectrum_decay")]
Threads = Annotated[int | None, field_option("threads")]
ScenarioFile = Annotated[
    Path | None, typer.Option(help="TOML file of scenario fields; options win over it")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="any scenario field, as field=value")
]


def read_scenario(
    file: Path | None,
    settings: list[str] | None,
    given: dict[str, Any],
    default: dict[str, Any] | None = None,
) -> Scenario:
    """Return the scenario of a command line.

    Args:
        file: a TOML file of fields, which override `default`.
        settings: texts `field=value`, which override everything.
        given: fields from options; None if an option was not given. They override the file.
        default: fields that the command sets itself.

    Raises:
        InputError: if a field is unknown or invalid.
    """
    fields = dict(default or {})
    fields |= load_toml(file) if file else {}
    fields |= {name: value for name, value in given.items() if value is not None}
    fields |= dict(parse_assignment(text) for text in settings or [])
    return Scenario.from_mapping(fields)
