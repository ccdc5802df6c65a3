"""The explorer: its numbers equal the closed forms, and every change of a control is quick."""

from __future__ import annotations

import base64
import time
from itertools import product

import numpy as np
import pytest

from analysis import closed_form
from analysis.collapse.measure import Collapse
from analysis.collapse.predict import predict as predicted_outcome
from analysis.collapse.scenarios import chosen
from analysis.notebook import explore
from fedlora_sim import Scenario
from fedlora_sim.errors import InputError
from fedlora_sim.rules import get_rule
from paper_figs import notebook
from paper_figs.notebook import Explorer

QUICK = 0.5  # seconds from the change of a control to the picture
PNG = b"\x89PNG"
# first directions, from 0, of the partitions of each of these
RANKS = ("4x8,8x6,16x4", "2x4,32x2", "2x10,4x10,8x10,16x5,32x5")
FIRST = dict(zip(RANKS, ([0, 4, 8], [0, 2], [0, 2, 4, 8, 16]), strict=True))


def asked_for(rule="fedavg", local_time=None, **fields):
    """Explore a scenario of these fields; by default of the first ranks and 30 rounds."""
    scenario = Scenario(**{"ranks": RANKS[0], "rounds": 30, **fields})
    return explore(scenario, rule, local_time=local_time)


@pytest.mark.parametrize(
    ("rule", "ranks", "cohort"), list(product(closed_form.RULES, RANKS, (None, 3)))
)
def test_rates_are_those_of_the_closed_forms(rule, ranks, cohort):
    gain = 0.98 if cohort is None else 1.0
    scenario = Scenario(ranks, cohort_size=cohort, gain_mean=gain)
    found = explore(scenario, rule)
    first = FIRST[ranks]
    rates = closed_form.energy_rate(scenario, rule)[first]
    typical = closed_form.typical_rate(scenario, rule)[first]
    training = Scenario(ranks, cohort_size=cohort, local_loss="quadratic")
    thresholds = closed_form.collapse_threshold(training, rule)[first]
    assert [row.rate for row in found.rows] == rates.tolist()
    assert [row.typical for row in found.rows] == typical.tolist()
    halves = closed_form.half_life(typical)
    if rule in ("fedex", "hetlora"):  # no geometric decay
        halves = np.full_like(halves, np.nan)
    np.testing.assert_array_equal([row.half_life for row in found.rows], halves)
    assert [row.threshold for row in found.rows] == thresholds.tolist()
    covered = closed_form.coverage(scenario)[first]
    np.testing.assert_array_equal([row.coverage for row in found.rows], covered)


def test_energies_and_training_are_those_of_the_closed_forms():
    given = {"gain_mean": 0.9, "gain_std": 0.1, "drift_std": 0.05}
    scenario = Scenario(RANKS[0], rounds=12, cohort_size=6, **given)
    found = explore(scenario, "fedavg", local_time=0.8)
    energy = closed_form.energy_trajectory(scenario, "fedavg")
    np.testing.assert_array_equal(found.energy, energy)
    training = {"local_loss": "quadratic", "local_time": 0.8}
    training = Scenario(RANKS[0], rounds=12, cohort_size=6, **training)
    path = closed_form.flow_trajectory(training, "fedavg")
    np.testing.assert_array_equal(found.training, path)
    held = closed_form.flow_floor(training, "fedavg")
    assert [row.held for row in found.rows] == held[FIRST[RANKS[0]]].tolist()
    floors = closed_form.energy_floor(scenario, "fedavg")
    np.testing.assert_allclose([row.floor for row in found.rows], floors[FIRST[RANKS[0]]])


@pytest.mark.parametrize("rule", closed_form.RULES)
def test_the_verdict_is_that_of_the_collapse_report(rule):
    (standard,) = chosen(["full"])
    scenario = standard.scenario
    told = predicted_outcome(standard, get_rule(rule)).verdict
    assert explore(scenario, rule).passive is told


@pytest.mark.parametrize(
    ("asked", "passive", "trained"),
    [
        ({}, Collapse.COLLAPSES, None),
        ({"local_time": 0.7}, Collapse.COLLAPSES, Collapse.COLLAPSES),  # T* is 0.752
        ({"local_time": 0.8}, Collapse.COLLAPSES, Collapse.KEEPS),
        # most cohorts of six have lost the last partition for any training time
        ({"local_time": 3.0, "cohort_size": 6}, Collapse.COLLAPSES, Collapse.COLLAPSES),
        ({"rule": "raflora", "cohort_size": 6}, Collapse.KEEPS, None),
        (
            {"rule": "raflora", "cohort_size": 6, "empty_partition": "zero"},
            Collapse.COLLAPSES,
            None,
        ),
        # noise on a floor is not kept energy
        ({"drift_std": 0.5}, Collapse.COLLAPSES, None),
        # gains that differ: a typical run has no closed form
        ({"gain_std": 0.5}, Collapse.UNDECIDED, None),
        ({"rule": "flora", "local_time": 0.1}, Collapse.KEEPS, Collapse.KEEPS),
    ],
)
def test_verdicts(asked, passive, trained):
    found = asked_for(**asked)
    assert found.passive is passive
    assert found.trained is trained
    assert str(passive) in found.sentence


def test_clients_of_one_rank_have_nothing_to_lose():
    found = explore(Scenario("8x18"))
    assert not found.has_levels
    assert "cannot collapse" in found.sentence


def test_values_without_closed_form_are_left_out_with_the_reason():
    found = asked_for(rule="hetlora", cohort_size=6, local_time=0.5)
    assert found.energy is None
    assert found.training is None
    assert any("hetlora" in reason for reason in found.reasons)
    _, axes = notebook.draw(found)
    assert "no closed form here" in [text.get_text() for text in axes[0].texts]


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": "many"},
        {"cohort_size": 99},
        {"rule": "best"},
        {"gain_mean": float("nan")},
        {"local_time": -1.0},
        {"empty_partition": "keep"},
    ],
)
def test_bad_questions_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        asked_for(**{"rule": "raflora", **wrong})


def test_the_picture_has_a_row_for_every_partition_and_the_verdict_on_top():
    found = explore(Scenario(RANKS[2]), "zero_pad", local_time=1.0)
    figure, axes = notebook.draw(found)
    words = {text.get_text() for text in axes[-1].texts}
    assert {row.directions for row in found.rows} <= words
    assert {f"{row.rate:.4g}" for row in found.rows} <= words
    assert "collapses" in figure.get_suptitle()


TURNS = {
    "rule": "raflora",
    "ranks": RANKS[2],
    "cohort_size": "7",
    "gain_mean": 0.95,
    "gain_std": 0.2,
    "drift_std": 0.1,
    "local_time": 1.5,
    "empty_partition": "zero",
}


@pytest.mark.slow
def test_every_change_of_a_control_is_quick():
    widget = Explorer()
    for name, value in TURNS.items():
        spent = []
        knob = widget.knobs[name]
        # the fastest of several, because the machine is shared
        for turned in (value, knob.value) * 3:
            if min(spent, default=QUICK) < QUICK:
                break
            before = widget.picture.value
            start = time.process_time()
            knob.value = turned
            spent.append(time.process_time() - start)
            assert name == "empty_partition" or widget.picture.value != before
        assert min(spent) < QUICK, name
        knob.value = value
    assert widget.settings == TURNS | {"cohort_size": 7}
    assert widget.found.sentence == asked_for(**widget.settings).sentence


@pytest.mark.slow
def test_refusals_are_shown_and_the_picture_stays():
    widget = Explorer(rule="fedavg", cohort_size=6)
    before = widget.picture.value
    for name, wrong in (("ranks", "4x8,"), ("cohort_size", "99"), ("cohort_size", "some <b>")):
        right = widget.knobs[name].value
        widget.knobs[name].value = wrong
        assert "expected" in widget.message.value
        assert "<b>'" not in widget.message.value.removeprefix("<b>")
        assert widget.picture.value == before
        widget.knobs[name].value = right
    assert widget.message.value.count("expected") == 0


def test_a_page_without_widgets_has_the_picture():
    widget = Explorer(rule="raflora")
    shown = widget._repr_mimebundle_()
    assert base64.b64decode(shown["image/png"]) == widget.picture.value
    assert bytes(widget.picture.value).startswith(PNG)
    assert shown["text/plain"] == widget.found.sentence
    assert "application/vnd.jupyter.widget-view+json" in shown


def test_unknown_controls_are_refused():
    with pytest.raises(InputError, match="gain: expected one of rule, ranks"):
        Explorer(gain=1.0)
