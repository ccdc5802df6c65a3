"""`fedlora-sim rules`: list the aggregation rules."""

from __future__ import annotations

import typer

from fedlora_sim.rules.registry import describe_all


def rules() -> None:
    """List the aggregation rules."""
    for rule in describe_all():
        also = f" (also {rule.also})" if rule.also else ""
        typer.secho(f"{rule.name}{also}", bold=True)
        print(f"  {rule.summary}")
        print(f"  averages    {rule.averages}")
        print(f"  multiplier  {rule.multiplier.replace('`', '')}")
        if rule.options:
            print(f"  options     {rule.options}")
        print(f"  source      {rule.source}")
    print("\nW: weight share of those who carry a direction. Options are written behind the name,")
    print("as in raflora:canonicalize=true.")
