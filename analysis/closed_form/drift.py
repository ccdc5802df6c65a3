"""The drift law: local training by Adam adds a nearly constant amount to every amplitude.

With `local_loss="drift"` a client returns `x + s_t ((a - 1) x + b)`: gains `a` (mean g) as AdamW's
weight decay causes them, drifts `b` (mean c, per partition in `drift_levels`), and a schedule s_t
of the learning rate. A round is `x' = mu(W) (g x + c)`, with the rule's multiplier mu for the share
W of the round's cohort. The moments of x follow an affine map, so that mean, variance and floor are
exact for every t and every cohort law. Averaging over clients that do not carry a direction stops
at the floor `W c / (1 - g W)`; raFLoRA grows by c per round, or saturates at `c / (1 - g)`.

The size of c follows from the optimizer: `adam_drift`. SGD does not follow the drift law but the
flow of `analysis.closed_form.flow`. All of this is our derivation: `analysis.derivations.drift`.

Amplitudes are those of single directions. The amplitude of a partition, the root of its energy,
follows the same law with the root of the sum of squared drifts once its directions are in
proportion to their drifts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.closed_form.energy import moment_map, trajectory
from analysis.closed_form.nonlinear_rules import hetlora_floors
from analysis.closed_form.persistent import stays
from analysis.closed_form.round_map import Clients, clients_of, round_map
from analysis.closed_form.setting import Setting, multiplier, rule_form, setting_of
from analysis.cohorts.law import Array, ShareLaw
from fedlora_sim.errors import (
    check_finite,
    check_numbers,
    check_positive,
    check_positive_int,
    expected,
)
from fedlora_sim.randomness import stream
from fedlora_sim.scenario import Scenario
from fedlora_sim.tolerances import relative

# Mean and standard deviation after every round


def drift_trajectory(
    scenario: Scenario, rule: str, *, shares: ArrayLike | None = None, **values: ArrayLike
) -> Array:
    """Return the mean amplitude of each direction after each round of the drift law.

    `x' = mu(W) (g x + c)`: the mean over random cohorts, or the amplitude in given cohorts. For
    flora `x' = x + W ((g - 1) x + c)`; for fedex the total of adapter and base; with `carry` a
    round without a contributor changes nothing.

    Args:
        scenario: the federation and its training, `local_loss="drift"`.
        rule: any of `RULES`, or an alias.
        shares: weight share W of the carriers of each direction in every round, as
            `analysis.cohorts.shares.drawn_shares` returns them, (rounds, r_max); None is the mean
            over all cohorts.
        **values: gains, drifts and the start per direction, see `analysis.closed_form`.

    Returns:
        Amplitudes, shape (rounds + 1, r_max), round 0 first; `inf` on overflow.

    Raises:
        InputError: for a field that the form does not cover; for spread in factor space; for
            hetlora without full participation or with given shares.

    Reference:
        Our derivation.
    """
    setting = setting_of("drift_trajectory", scenario, rule, values)
    return trajectory(setting)[0] if shares is None else _given_cohorts(setting, shares)


def _given_cohorts(setting: Setting, shares: ArrayLike) -> Array:
    """Return the mean amplitudes over the clients' noise for given shares (rounds, r_max)."""
    scenario, form = setting.scenario, setting.form
    size = (scenario.rounds, setting.r_max)
    wanted = f"numbers in [0, 1], one per round and direction, shape {size}"
    W: Array = check_numbers("shares", shares, wanted)
    if W.shape != size or not ((W >= 0) & (1 + relative("reduction") >= W)).all():
        raise expected("shares", shares, wanted)
    if form.norm_weighted:
        reason = "its shares are those of norms, which depend on the state"
        raise expected("rule", form.name, f"a rule with data weights ({reason})")
    clients = clients_of(setting)
    mu = multiplier(form.name, W)
    x, z = setting.direction("initial_amplitude"), np.zeros(setting.r_max)
    path = [x]
    for t, scale in enumerate(scenario.training_scales.tolist()):
        now = clients.scaled(scale)
        y = now.gain_mean * (x + z) + now.drift_mean - z
        if form.space == "base":
            x = x + W[t] * (y - x)
        elif form.space == "residual":
            x, z = W[t] ** 2 * y, z + (W[t] - W[t] ** 2) * y
        else:
            x = np.where((W[t] == 0) & setting.carries, x, mu[t] * y)
        path.append(x + z)
    return np.stack(path)


def drift_std(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the standard deviation of each amplitude over runs after each round.

    `V' = q' V + Var[mu] (g m + c)^2 + (nu^2 m^2 + tau^2) E[sum w^2]` with the mean m and the energy
    rate q'; where amplitudes are kept (flora, `carry`) `g - 1` takes the place of g in the second
    term. Zero where all runs are equal. For fedex and persistent clients the difference of energy
    and squared mean, to their rounding.

    Args:
        scenario: the federation and its training, `local_loss="drift"`.
        rule: any of `RULES`, or an alias.
        **values: gains, drifts and the start per direction, see `analysis.closed_form`.

    Returns:
        Standard deviations in the unit of the amplitude, shape (rounds + 1, r_max).

    Raises:
        InputError: as `drift_trajectory`.

    Reference:
        Our derivation.
    """
    setting = setting_of("drift_std", scenario, rule, values)
    clients = clients_of(setting)
    mean, energy = trajectory(setting)
    alike = setting.is_full and not clients.differ
    if alike:
        return np.zeros_like(mean)
    if setting.form.space == "residual" or stays(setting, clients):
        with np.errstate(over="ignore", invalid="ignore"):
            difference = energy - mean**2
        difference[0] = 0.0
        return np.sqrt(np.where(np.isnan(difference), np.inf, np.maximum(difference, 0.0)))
    keeps = setting.carries or setting.form.space == "base"
    spread, squares = _multiplier_variance(setting), setting.moments.sum_of_squares
    variance = np.zeros_like(mean)
    with np.errstate(over="ignore", invalid="ignore"):
        for t, scale in enumerate(scenario.training_scales.tolist()):
            now = clients.scaled(scale)
            moved = (now.gain_mean - keeps) * mean[t] + now.drift_mean
            noise = squares * (now.gain_std**2 * mean[t] ** 2 + now.drift_std**2)
            rate = round_map(setting, now).rate
            variance[t + 1] = rate * variance[t] + spread * moved**2 + noise
    return np.sqrt(np.where(np.isnan(variance), np.inf, variance))


def _multiplier_variance(setting: Setting) -> Array:
    """Return the variance of the multiplier over cohorts, (r_max,), without cancellation."""
    if setting.is_full:
        return np.zeros(setting.r_max)
    if setting.form.normalizer == "contributors":
        return setting.empty * (1 - setting.empty)

    def variance(law: ShareLaw) -> float:
        mu = law.share**setting.form.power
        return law.expect((mu - law.expect(mu)) ** 2)

    known = {id(law): variance(law) for law in setting.laws}
    return np.array([known[id(law)] for law in setting.laws])


# Floor, growth and settling time


def drift_floor(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the mean amplitude at which drift holds a direction: `E[mu] c / (1 - g E[mu])`.

    `W c / (1 - g W)` with all clients; `W^2 c / (1 - g W^2)` for zero padding; `c / (1 - g)` for
    raflora. `inf` where the mean gain of a round is 1 or more: see `drift_growth`. The mean energy
    has its own floor, `energy_floor`. hetlora: the limit of its recursion with all clients; where
    shared directions grow without end, that of uniform weights.

    Args:
        scenario: the federation and its training, `local_loss="drift"` with a constant schedule.
        rule: any of `RULES`, or an alias.
        **values: gains and drifts per direction, see `analysis.closed_form`.

    Returns:
        Amplitudes, shape (r_max,).

    Raises:
        InputError: for a field that the form does not cover; for spread in factor space; for
            hetlora without full participation where shared directions settle.

    Reference:
        Our derivation.
    """
    setting = setting_of("drift_floor", scenario, rule, values)
    clients = clients_of(setting)
    if setting.form.norm_weighted:
        return hetlora_floors(setting, clients, setting.direction("initial_amplitude"))[0]
    return moment_map(setting, clients).mean_floor()


def drift_growth(scenario: Scenario, rule: str, **values: ArrayLike) -> Array:
    """Return the amount per round by which the mean amplitude grows in late rounds.

    0 where it has a floor, `inf` where it grows by a factor. At `g = 1`: c for raflora with a
    contributor in every round and `c (1 - P0)` with `carry`; `c E[W]` for flora; for fedex the
    growth of its base, `c (E[W] - E[W^2]) / (1 - E[W^2])`, which is `c W / (1 + W)` with all
    clients. hetlora: with uniform weights, its limit.

    Args:
        scenario: the federation and its training, `local_loss="drift"` with a constant schedule.
        rule: any of `RULES`, or an alias.
        **values: gains and drifts per direction, see `analysis.closed_form`.

    Returns:
        Amplitudes per round, shape (r_max,).

    Raises:
        InputError: for a field that the form does not cover; for spread in factor space.

    Reference:
        Our derivation.
    """
    setting = setting_of("drift_growth", scenario, rule, values)
    clients = clients_of(setting)
    g, c = clients.gain_mean, clients.drift_mean
    if setting.form.space == "residual":
        first, second = setting.moments.mean, setting.moments.second
        whole = second == 1
        into_base = np.divide(first - second, 1 - second, out=np.ones_like(first), where=~whole)
        endless = np.where(np.isinf(moment_map(setting, clients).mean_floor()), np.inf, 0.0)
        return np.where(g == 1, c * into_base, endless)
    step = round_map(setting, clients)
    return np.where(step.gain == 1, step.shift, np.where(np.abs(step.gain) < 1, 0.0, np.inf))


def drift_settling(
    scenario: Scenario, rule: str, *, within: float = 0.1, **values: ArrayLike
) -> Array:
    """Return the rounds after which the mean amplitude stays within a share of its floor.

    The distance to the floor falls by the factor `g E[mu]` per round.

    Args:
        scenario: the federation, its start and its training, `local_loss="drift"` with a constant
            schedule.
        rule: any of `RULES` except fedex and hetlora, or an alias.
        within: the share, above 0.
        **values: gains, drifts and the start per direction, see `analysis.closed_form`.

    Returns:
        Whole numbers of rounds, shape (r_max,); `inf` where there is no floor, or one of zero.

    Raises:
        InputError: for a field that the form does not cover; for spread in factor space; for fedex
            and hetlora, whose distance has no constant factor.

    Reference:
        Our derivation.
    """
    setting = setting_of("drift_settling", scenario, rule, values)
    if setting.form.space == "residual" or setting.form.norm_weighted:
        reason = "its distance to the floor does not fall by one factor per round"
        raise expected("rule", setting.form.name, f"a rule of one affine map ({reason})")
    if not within > 0:
        raise expected("within", within, "a number above 0")
    step = round_map(setting, clients_of(setting))
    floor, start = step.mean_floor(), setting.direction("initial_amplitude")
    settles = np.isfinite(floor) & (floor != 0)
    allowed, apart = within * np.abs(floor), np.abs(start - floor)
    far = settles & (apart > allowed)
    rounds = np.where(settles, 0.0, np.inf)
    ratio = np.divide(allowed, apart, out=np.ones_like(apart), where=far)
    with np.errstate(divide="ignore"):  # a gain of 0 settles at once
        needed = np.log(ratio) / np.log(np.abs(np.where(far, step.gain, 0.5)))
    # a rounding error of the ratio does not cost a round
    whole = np.ceil(needed - relative("reduction") * np.maximum(needed, 1.0))
    return np.where(far, np.maximum(whole, 1.0), rounds)


# Prediction intervals over random cohorts

INTERVAL_DRAWS = 20_000
"""Random runs from which an interval is estimated."""


@dataclass(frozen=True)
class DriftInterval:
    """Prediction interval of the absolute amplitude of a run.

    Its squares are an interval of the energy.

    Args:
        low, high: the limits, each (rounds + 1, r_max).
        coverage_error: standard error of the probability that the interval contains; 0 if exact.
    """

    low: Array
    high: Array
    coverage_error: float


def drift_interval(
    scenario: Scenario, rule: str, *, confidence: float = 0.9, **values: ArrayLike
) -> DriftInterval:
    """Return the central interval that contains an amplitude of a run with a given probability.

    Where all runs are equal, their amplitude. Otherwise the amplitude is a product of random
    matrices without a closed distribution: quantiles of `INTERVAL_DRAWS` random runs of the
    recursion, with a constant seed. Shares are drawn from their exact distribution, and given them
    the noise of clients is normal with its exact variance.

    Args:
        scenario: the federation and its training, `local_loss="drift"`.
        rule: any of `RULES`, or an alias.
        confidence: probability, in (0, 1).
        **values: gains, drifts and the start per direction, see `analysis.closed_form`.

    Returns:
        The interval of each direction after each round.

    Raises:
        InputError: as `drift_trajectory`; for persistent clients that differ.

    Reference:
        Our derivation.
    """
    setting = setting_of("drift_interval", scenario, rule, values)
    clients = clients_of(setting)
    if not 0 < confidence < 1:
        raise expected("confidence", confidence, "a probability in (0, 1)")
    if stays(setting, clients):
        reason = "its runs also differ by the draws of their clients: no closed form"
        raise expected("heterogeneity", "persistent", f"'fresh' ({reason})")
    if setting.is_full and not clients.differ:
        only = np.abs(trajectory(setting)[0])
        return DriftInterval(only, only, 0.0)
    if setting.form.norm_weighted:
        trajectory(setting)  # refuses random cohorts by name
    low, high = _quantiles(setting, clients, confidence)
    error = np.sqrt(confidence * (1 - confidence) / INTERVAL_DRAWS)
    return DriftInterval(low, high, float(error))


def _quantiles(setting: Setting, clients: Clients, confidence: float) -> tuple[Array, Array]:
    """Return the quantiles of random runs, each (rounds + 1, r_max)."""
    rng, form = stream(0, "drift_interval"), setting.form
    start = np.broadcast_to(setting.direction("initial_amplitude"), (INTERVAL_DRAWS, setting.r_max))
    x, z, keeps = start, np.zeros_like(start), setting.carries
    levels = [(1 - confidence) / 2, (1 + confidence) / 2]
    rows = [np.stack([np.abs(start[0])] * 2)]
    for scale in setting.scenario.training_scales.tolist():
        now = clients.scaled(scale)
        share, squares = _random_shares(setting, rng)
        y = now.gain_mean * (x + z) + now.drift_mean - z
        noise = np.zeros(1)
        if now.differ:
            width = np.sqrt(squares) * np.hypot(now.gain_std * (x + z), now.drift_std)
            noise = width * rng.standard_normal(start.shape)
        if form.space == "base":
            x = x + share * (y - x) + noise
        elif form.space == "residual":
            x, z = share**2 * y, z + (share - share**2) * y
        else:
            x = np.where((share == 0) & keeps, x, share**form.power * y + noise)
        # the distribution may have atoms, which both limits include
        rows.append(np.quantile(np.abs(x + z), levels, axis=0, method="inverted_cdf"))
    low, high = np.stack(rows, axis=1)
    return low, high


def _random_shares(setting: Setting, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return random shares and sums of squared weights, each (INTERVAL_DRAWS, r_max).

    Directions of one distribution share their draws.
    """
    share, squares = np.empty((2, INTERVAL_DRAWS, setting.r_max))
    drawn: dict[int, tuple[Array, Array]] = {}
    for i, law in enumerate(setting.laws):
        if id(law) not in drawn:
            index = rng.choice(law.share.size, INTERVAL_DRAWS, p=law.probability)
            drawn[id(law)] = law.share[index], law.squares[index]
        share[:, i], squares[:, i] = drawn[id(law)]
    return share, squares


# The drift of measured rounds


def implied_drift(
    before: ArrayLike, after: ArrayLike, share: ArrayLike, rule: str, gain: ArrayLike = 1.0
) -> Array:
    """Return the drift c that explains a round: `after / mu - g before`.

    For flora `(after - before) / W - (g - 1) before`. All arguments broadcast.

    Args:
        before: amplitude before the round.
        after: amplitude after it.
        share: weight share W of the carriers in the cohort; for hetlora that of norms.
        rule: any of `RULES` except fedex, or an alias.
        gain: g.

    Returns:
        Drifts in the unit of the amplitudes; NaN where the round had no carrier.

    Raises:
        InputError: for an unknown rule; for fedex, whose base the amplitude does not show; for
            arguments that are not numbers.
    """
    form = rule_form(rule)
    if form.space == "residual":
        reason = "its amplitude does not show how much is in the base"
        raise expected("rule", form.name, f"a rule without a residual in the base ({reason})")
    named = {"before": before, "after": after, "share": share, "gain": gain}
    x, new, W, g = (check_numbers(name, value, "numbers") for name, value in named.items())
    if form.space == "base":
        factor, known, change = W, g - 1, new - x
    else:
        factor, known, change = multiplier(form.name, W), g, new
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(factor > 0, change / factor - known * x, np.nan)


# Why the drift is what it is
#
# The columns of two balanced factors have norm sqrt(x). A step of Adam moves every entry by about
# the learning rate, whatever the gradient's size, so that a column covers a path of length
# L = lr * steps * sqrt(d) in a round. It forgets its direction over a length l: movements u apart
# have correlation exp(-u / l), because training turns to what is not learned yet. The squared norm
# of such a path grows in proportion to its length, so that the drift does not depend on the
# amplitude. Averaging shrinks the columns by sqrt(mu) per round, and weight decay by sqrt(g), and
# with them the overlap of new movement and old column:
#
#     c = 2 l^2 (s - 1 + e + (1 - e)^2 q / (1 - q e)), s = L / l, e = exp(-s), q = sqrt(mu g)
#
# q = 1: c = 2 l L, proportional to learning rate times steps. q < 1: quadratic for short paths.

SERIES_BELOW = 0.05
"""Ratio of path and persistence below which `s - 1 + exp(-s)` is summed as a series."""


def adam_drift(
    path: ArrayLike, persistence: ArrayLike, multiplier: ArrayLike = 1.0, gain: ArrayLike = 1.0
) -> Array:
    """Return the drift per round of a direction that Adam trains, whatever its amplitude.

    `2 l L` without dilution and decay (`multiplier = gain = 1`). With them smaller:
    `L^2 (1 + q) / (1 - q)` for `L << l`, `q = sqrt(mu g)`. All arguments broadcast.

    Args:
        path: length L that a column of a factor moves in a round, above 0: at most learning rate
            times local steps times the root of its number of entries.
        persistence: length l over which the movement keeps its direction, above 0.
        multiplier: factor mu of the server's average on the amplitude, in [0, 1].
        gain: factor g of weight decay on the amplitude, in [0, 1]; see `adamw_gain`.

    Returns:
        Drifts in the unit of the amplitude, the square of that of L and l.

    Raises:
        InputError: for a length that is not positive, or a factor outside [0, 1].

    Reference:
        Our derivation; the path is a Kratky-Porod chain.
    """
    L, ell, q = _path_arguments(path, persistence, multiplier, gain)
    return np.asarray(2 * ell**2 * _chain(L / ell, q), dtype=np.float64)


def drift_exponent(
    path: ArrayLike, persistence: ArrayLike, multiplier: ArrayLike = 1.0, gain: ArrayLike = 1.0
) -> Array:
    """Return the power of learning rate times local steps with which the drift grows.

    `d ln c / d ln L` of `adam_drift`: 1 without dilution, otherwise from 2 (short paths) to 1 (long
    ones). Arguments, errors and reference as for `adam_drift`.

    Returns:
        Exponents, without unit.
    """
    L, ell, q = _path_arguments(path, persistence, multiplier, gain)
    s = L / ell
    moved, left = -np.expm1(-s), np.exp(-s)
    apart = (1 - q) + q * moved  # 1 - q exp(-s)
    slope = moved * (1 + 2 * q * left / apart - moved * q**2 * left / apart**2)
    return np.asarray(s * slope / _chain(s, q), dtype=np.float64)


def adamw_gain(
    learning_rate: float, local_steps: int, weight_decay: float, *, frozen_a: bool = False
) -> float:
    """Return the gain of AdamW's decoupled decay: `(1 - lr decay)^(2 steps)`.

    Both factors decay, so that their product decays twice; once with a frozen A.

    Args:
        learning_rate: above 0.
        local_steps: steps per round, at least 1.
        weight_decay: at least 0.
        frozen_a: train B only.

    Returns:
        The factor on an amplitude per round.

    Raises:
        InputError: if an argument is out of range, or a step would turn the sign of the factors.
    """
    rate = check_positive("learning_rate", learning_rate)
    steps = check_positive_int("local_steps", local_steps)
    if not isinstance(frozen_a, bool):
        raise expected("frozen_a", frozen_a, "True or False")
    left = 1 - rate * check_finite("weight_decay", weight_decay, minimum=0)
    if not 0 <= left <= 1:
        raise expected("weight_decay", weight_decay, "at least 0, and at most 1 / learning_rate")
    return float(left ** (steps * (1 if frozen_a else 2)))


def _chain(s: Array, q: Array) -> Array:
    """Return `s - 1 + e + (1 - e)^2 q / (1 - q e)`, `e = exp(-s)`, without cancellation."""
    series = np.ones_like(s)
    for n in range(10, 2, -1):
        series = 1 - s / n * series
    own = np.where(s < SERIES_BELOW, s**2 / 2 * series, s + np.expm1(-s))
    moved = -np.expm1(-s)
    return own + moved**2 * q / ((1 - q) + q * moved)


def _path_arguments(
    path: ArrayLike, persistence: ArrayLike, factor: ArrayLike, gain: ArrayLike
) -> tuple[Array, Array, Array]:
    """Return checked L, l and q, broadcast to one shape."""
    named = {"path": path, "persistence": persistence, "multiplier": factor, "gain": gain}
    wanted = {"path": "numbers above 0", "persistence": "numbers above 0"}
    checked = []
    for name, value in named.items():
        text = wanted.get(name, "numbers in [0, 1]")
        array: Array = check_numbers(name, value, text)
        fits = (array > 0) if name in wanted else (array >= 0) & (array <= 1)
        if not (fits & np.isfinite(array)).all():
            raise expected(name, value, text)
        checked.append(array)
    L, ell, mu, g = np.broadcast_arrays(*checked)
    return L, ell, np.sqrt(mu * g)
