"""`design`: find ranks and a rule that keep the most of an update within a budget, in closed form.

The score. Directions up to the highest available level start with energies `x_i**2`. After T rounds
`E[x_i]**2` is signal: the remaining part of the start in every run. The rest of the mean energy,
`Var[x_i]`, is noise, from drifts, gains that differ, and the sampling of cohorts. Directions
without a carrier are lost, without signal or noise. The score is signal minus noise over the
initial energy: 1 if everything is kept. The ratio of signal to noise would not be suitable: it is
best for a single direction, and undefined without noise.

The score measures what is kept, not what is learned: a direction that one client trains counts as
much as one that all clients train, if the rule keeps it. `min_coverage` requires more clients at
the top.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, inf

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.closed_form.communication import Communication
from analysis.closed_form.setting import RULES, rule_form
from analysis.cohorts.law import Array
from analysis.predict import NO_FACTOR, ByCarriers, by_carriers, check_start
from fedlora_sim.errors import (
    InputError,
    check_count,
    check_finite,
    check_positive_int,
    check_sequence,
    expected,
)
from fedlora_sim.federation import MOST_RANK
from fedlora_sim.scenario import Scenario

LEVELS = (2, 4, 8, 16, 32, 64)
LIMIT = 500_000
"""Maximum number of rank configurations that are compared."""

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Design:
    """A rank configuration under a rule, with the numbers behind its ranking.

    Args:
        rule: the rule.
        empty_partition: its policy, `zero` or `carry`; None for a rule without one.
        ranks: the configuration as text, `"8x10,16x6"`.
        total_rank: sum of the client ranks.
        score: signal minus noise.
        signal: sum of `E[x_i]**2` after the last round, relative to the initial energy.
        noise: sum of `Var[x_i]`, relative to the initial energy.
        lost: share of the initial energy in directions without a carrier.
        top_coverage: share of clients that carry the highest level of the configuration.
        worst_rate: lowest factor of the mean energy per round among its partitions, without drift;
            None if there is none.
        upload: expected number of values per round and layer from clients to the server.
        download: expected number of values per round and layer from the server to clients.
        reasons: for each value that is None, the reason.
    """

    rule: str
    empty_partition: str | None
    ranks: str
    total_rank: int
    score: float
    signal: float
    noise: float
    lost: float
    top_coverage: float
    worst_rate: float | None
    upload: float
    download: float
    reasons: dict[str, str]


def design(
    scenario: Scenario,
    rules: Sequence[str] = RULES,
    *,
    total_rank: int | None = None,
    communication: float | None = None,
    levels: Sequence[int] = LEVELS,
    distinct: int = 3,
    min_coverage: float = 0.0,
    top: int = 20,
) -> list[Design]:
    """Return the best rank configurations and rules within a budget.

    All configurations of up to `distinct` different levels are compared, under every rule with
    closed forms (`analysis.predict.by_carriers` gives the reason for other rules).

    Args:
        scenario: the clients, of equal sample counts, what they return, how many take part, and the
            layer. Its ranks are designed, and all policies of a rule are compared.
        rules: names of rules; each policy of a rule is a separate candidate.
        total_rank: maximum sum of client ranks; no limit when None.
        communication: maximum number of values per round and layer, up and down together; no limit
            when None.
        levels: ranks that clients may have, at most the largest rank of the layer's matrix.
        distinct: maximum number of different ranks in a configuration.
        min_coverage: minimum share of clients at the highest level of a configuration.
        top: number of designs to return.

    Returns:
        The best designs, best first; of equal scores the one with less total rank, and of equal
        ranks the rule that sends less.

    Raises:
        InputError: if an argument is invalid, there is no budget, nothing is within it, there are
            more than `LIMIT` configurations, or energies overflow.
    """
    if not isinstance(scenario, Scenario):
        raise expected("scenario", scenario, "a Scenario")
    clients, rounds = scenario.federation.num_clients, scenario.rounds
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        found, reasons = _of_rules(scenario, rules)
    if not found:
        raise InputError("; ".join(reasons.values()))
    menu = _menu(levels, scenario)
    d_in, d_out = scenario.d_in, scenario.d_out
    most = min(d_in, d_out)
    if menu.levels[-1] > most:
        raise expected("levels", levels, f"ranks of at most {most}, which {d_in} by {d_out} has")
    counts = configurations(clients, len(menu.levels), check_positive_int("distinct", distinct))
    counts = _within(_covered(counts, min_coverage), menu, total_rank, communication)
    most = check_positive_int("top", top)
    limit = inf if communication is None else check_finite("communication", communication)
    sent: dict[tuple[str, int], Communication] = {}

    def numbers(rule: str, row: Counts) -> Communication:
        # linear in ranks, and clients are drawn uniformly: only the sum of ranks matters
        key = rule, int(row @ np.array(menu.levels))
        if key not in sent:
            one = scenario.replace(ranks=np.repeat(menu.levels, row).tolist())
            sent[key] = closed_form.communication(one, rule)
        return sent[key]

    efforts = np.array([numbers(effect.rule, counts[0]).total for effect in found])
    designs: list[Design] = []
    for effect, row, signal, noise in _ranked(found, counts, menu, efforts, rounds):
        traffic = numbers(effect.rule, row)
        if traffic.total <= limit:
            designs.append(_describe(effect, row, menu, signal, noise, traffic))
        if len(designs) == most:
            break
    if not designs:
        least = min(numbers.total for numbers in sent.values())
        raise expected("communication", communication, f"at least {least:g}, the cheapest design")
    return designs


def _of_rules(scenario: Scenario, rules: Sequence[str]) -> tuple[list[ByCarriers], dict[str, str]]:
    """Return the results of rules for a direction, per policy, and reasons for missing ones."""
    found, reasons = [], {}
    for form in map(rule_form, check_sequence("rules", rules, "names of rules")):
        for policy in form.policies:
            own = scenario.replace(empty_partition=policy or scenario.empty_partition)
            try:
                found.append(by_carriers(own, form.name))
            except InputError as error:  # the scenario is valid: this rule has no closed form in it
                reasons[form.name] = str(error)
    return found, reasons


def configurations(clients: int, levels: int, distinct: int) -> Counts:
    """Return all distributions of clients over levels, with at most `distinct` levels in use.

    Args:
        clients: number of clients K.
        levels: number of levels L.
        distinct: maximum number of levels in use.

    Returns:
        Clients per level, shape (configurations, L); every row sums to K.

    Raises:
        InputError: if there are more than `LIMIT`.
    """
    used = range(1, min(distinct, levels, clients) + 1)
    number = sum(comb(levels, s) * comb(clients - 1, s - 1) for s in used)
    if number > LIMIT:
        raise expected("distinct", distinct, f"fewer: {number} configurations, of {LIMIT} at most")
    blocks = []
    for s in used:
        cuts = np.array([*combinations(range(1, clients), s - 1)], dtype=np.int64)
        cuts = cuts.reshape(comb(clients - 1, s - 1), s - 1)
        parts = np.diff(cuts, axis=1, prepend=0, append=clients)
        for chosen in combinations(range(levels), s):
            block = np.zeros((len(parts), levels), dtype=np.int64)
            block[:, chosen] = parts
            blocks.append(block)
    return np.concatenate(blocks)


@dataclass(frozen=True)
class _Menu:
    """Levels with the directions that each adds: their number and initial energy."""

    levels: tuple[int, ...]
    widths: Array
    energies: Array

    def share(self, kept: Array | float, extra: Array | float = 0.0) -> Array:
        """Return the remaining share of the initial energy, shape (...).

        Levels are summed one after another, so that equal configurations get equal values on every
        machine, and keeping everything is exactly 1.

        Args:
            kept: factor of the energy of each level, (..., L).
            extra: energy that each direction of a level gains, (..., L).
        """
        gained = np.asarray(self.energies * kept + self.widths * extra, dtype=np.float64)
        total = np.zeros(gained.shape[:-1])
        start = 0.0
        for j, energy in enumerate(self.energies):
            total, start = total + gained[..., j], start + float(energy)
        return total / start


def _menu(levels: Sequence[int], scenario: Scenario) -> _Menu:
    ranks = sorted(
        {
            check_count("levels", rank, MOST_RANK)
            for rank in check_sequence("levels", levels, ordered=False)
        }
    )
    if not ranks:
        raise expected("levels", levels, "at least one rank")
    first = check_start("initial_amplitude", scenario.initial_amplitude)
    energy = (first * scenario.spectrum_decay ** np.arange(float(ranks[-1]))) ** 2
    edges = np.array([0, *ranks])
    added = np.add.reduceat(energy, edges[:-1])
    return _Menu(tuple(ranks), np.diff(edges), added)


def _covered(counts: Counts, min_coverage: float) -> Counts:
    """Return the configurations whose highest level has enough clients."""
    if not 0 <= check_finite("min_coverage", min_coverage) <= 1:
        raise expected("min_coverage", min_coverage, "a number from 0 to 1")
    highest = counts.shape[1] - 1 - np.argmax(counts[:, ::-1] > 0, axis=1)
    at_top = np.take_along_axis(counts, highest[:, None], axis=1)[:, 0]
    return np.asarray(counts[at_top >= min_coverage * counts[0].sum()])


def _within(
    counts: Counts, menu: _Menu, total_rank: int | None, communication: float | None
) -> Counts:
    """Return the configurations within the budget of total rank."""
    if total_rank is None:
        if communication is None:
            raise expected("total_rank", None, "a budget: total_rank, communication or both")
        return counts
    sums = counts @ np.array(menu.levels)
    if sums.min() > check_positive_int("total_rank", total_rank):
        raise expected("total_rank", total_rank, f"at least {sums.min()}, the lowest level for all")
    return np.asarray(counts[sums <= total_rank])


def _ranked(
    found: Sequence[ByCarriers], counts: Counts, menu: _Menu, efforts: Array, rounds: int
) -> Iterator[tuple[ByCarriers, Counts, float, float]]:
    """Yield rules with configurations, signal and noise, best first; `efforts` break ties."""
    carriers = _carriers(counts)
    with np.errstate(over="ignore", invalid="ignore"):
        signal = np.stack([menu.share(effect.mean[carriers] ** 2) for effect in found])
        energy = np.stack([menu.share(effect.second[carriers]) for effect in found])
        drift = np.stack([menu.share(0.0, effect.drift[carriers]) for effect in found])
        noise = np.maximum(energy - signal, 0.0) + drift
        score = signal - noise
    if not np.isfinite(score).all():
        raise expected("rounds", rounds, "fewer, or smaller gains or drifts: energies overflow")
    sums = np.broadcast_to(counts @ np.array(menu.levels), signal.shape)
    for place in np.lexsort((np.repeat(efforts, len(counts)), sums.ravel(), -score.ravel())):
        f, c = divmod(int(place), len(counts))
        yield found[f], counts[c], float(signal[f, c]), float(noise[f, c])


def _carriers(counts: Counts) -> Counts:
    """Return the number of carriers of each level's directions: clients of this level and above."""
    return np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]


def _describe(
    effect: ByCarriers, row: Counts, menu: _Menu, signal: float, noise: float, sent: Communication
) -> Design:
    carriers, used = _carriers(row), np.flatnonzero(row)
    return Design(
        rule=effect.rule,
        empty_partition=effect.empty_partition,
        ranks=",".join(f"{menu.levels[j]}x{row[j]}" for j in used),
        total_rank=int(row @ np.array(menu.levels)),
        score=signal - noise,
        signal=signal,
        noise=noise,
        lost=float(menu.share((carriers == 0).astype(float))),
        top_coverage=float(row[used[-1]] / row.sum()),
        worst_rate=None if effect.rate is None else float(effect.rate[carriers[used]].min()),
        reasons={} if effect.rate is not None else {"worst_rate": NO_FACTOR},
        upload=sent.upload,
        download=sent.download,
    )
