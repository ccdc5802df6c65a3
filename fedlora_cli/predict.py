"""`fedlora-sim predict`: predictions of the closed forms for a federation under every rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from analysis.predict import RulePrediction, compare, comparison_record
from fedlora_cli.options import check_folder, parse_pair, parse_samples
from fedlora_cli.prediction_tables import print_tables
from fedlora_cli.scenario_options import InitialAmplitude, SpectrumDecay
from fedlora_sim.errors import check_positive
from fedlora_sim.federation import parse_ranks
from fedlora_sim.scenario import Scenario
from fedlora_sim.storage import ResultFolder

OUT, PICTURE = Path("results/predict"), "predict.png"


def predict(
    ranks: Annotated[
        str, typer.Option(help='client ranks; "8x10,16x6" is rank 8, 10 clients; ...')
    ],
    cohort: Annotated[int | None, typer.Option(help="clients per round; all by default")] = None,
    gain: Annotated[
        str, typer.Option(help="mean,std of the factor by which clients change an amplitude")
    ] = "1,0",
    drift: Annotated[
        str, typer.Option(help="std, or mean,std, of what clients add to an amplitude")
    ] = "0",
    rounds: Annotated[int, typer.Option(help="rounds")] = Scenario.rounds,
    local_time: Annotated[
        float | None, typer.Option(help="gradient flow per round, for training's floor and rate")
    ] = None,
    target: Annotated[
        float, typer.Option(help="amplitude that training aims at")
    ] = Scenario.target_amplitude,
    num_samples: Annotated[
        str | None, typer.Option(help="sample counts, e.g. 120,80 or 100x8,50x6; equal by default")
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option(
            help="cohort law: full, without_replacement, with_replacement, bernoulli or "
            "size_weighted"
        ),
    ] = None,
    allocation: Annotated[
        str, typer.Option(help="directions of a client: svd or random")
    ] = Scenario.allocation,
    initial_amplitude: InitialAmplitude = Scenario.initial_amplitude,
    spectrum_decay: SpectrumDecay = Scenario.spectrum_decay,
    out: Annotated[
        Path | None, typer.Option(help=f"folder of the picture; {OUT} by default")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace a picture that was changed since")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print JSON instead; a picture only with --out")
    ] = False,
) -> None:
    """Predict what every rule does to a federation, side by side and without simulation.

    Rates, half-lives, survival, floors and thresholds in closed form, by
    partition of the ranks. A picture shows mean energies over the rounds.

    With --json: "scenario", "partitions", "notes" and "rules". A rule has
    "rule", "empty_partition" and, by quantity, "values", one number per
    partition ("energy": one list per round), and "reason", why they are
    null. A null among numbers is infinity.
    """
    gain_mean, gain_std = parse_pair("--gain", gain)
    drift_mean, drift_std = parse_pair("--drift", drift, mean=0.0)
    scenario = Scenario(
        parse_ranks(ranks),
        rounds=rounds,
        cohort_size=cohort,
        num_samples=None if num_samples is None else parse_samples("--num-samples", num_samples),
        sampling=sampling,
        allocation=allocation,
        gain_mean=gain_mean,
        gain_std=gain_std,
        drift_mean=drift_mean,
        drift_std=drift_std,
        initial_amplitude=initial_amplitude,
        spectrum_decay=spectrum_decay,
        target_amplitude=check_positive("target", target),
    )
    folder = out if as_json else out or OUT
    if folder is not None:
        check_folder("--out", folder, folder)
        _results(folder, force).check([PICTURE])
    rows = compare(scenario, local_time=local_time)
    if as_json:
        print(json.dumps(comparison_record(rows), indent=1, allow_nan=False))
    else:
        print_tables(rows)
    if folder is not None:
        results = _results(folder, force)
        with results.only_writer(), results.replace() as new:
            _draw(rows, new)
        if not as_json:
            print(f"predicted energies in {folder / PICTURE}")


def _results(folder: Path, force: bool) -> ResultFolder:
    return ResultFolder(folder, "predict", force=force)


def _draw(rows: Sequence[RulePrediction], folder: Path) -> None:
    # imported late: half of what the whole command takes, and not needed for JSON
    from paper_figs import predictions, style

    style.apply()
    style.save(predictions.draw_predict(rows)[0], folder, Path(PICTURE).stem, kinds=("png",))
