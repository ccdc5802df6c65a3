"""Mean amplitude and mean energy of every direction after every round."""

from __future__ import annotations

from numpy.typing import ArrayLike

from analysis.closed_form.energies import trajectory
from analysis.closed_form.inputs import Ranks, Samples
from analysis.closed_form.round_map import clients_of
from analysis.closed_form.setting import setting_of
from analysis.cohorts.law import Array


def energy_trajectory(
    rule: str,
    ranks: Ranks,
    rounds: int,
    *,
    initial_amplitude: ArrayLike,
    gain_mean: ArrayLike = 1.0,
    gain_std: ArrayLike = 0.0,
    drift_mean: ArrayLike = 0.0,
    drift_std: ArrayLike = 0.0,
    heterogeneity: str = "fresh",
    cohort_size: int | None = None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
    empty_partition: str = "carry",
) -> Array:
    """Mean energy `E[x_t^2]` of every direction after every round, exact for every t.

    `E[x'^2] = q' E[x^2] + 2 g c E[(sum w)^2] E[x] + tau^2 E[sum w^2] + c^2 E[(sum w)^2]`, iterated
    with `E[x'] = (g E[x] + c) E[sum w]`; for other rules see `RULES`. Persistent gains and drifts
    are normal; see `analysis.closed_form.persistent`.

    Args:
        rule: any of `RULES`, or an alias.
        ranks: client ranks.
        rounds: number of rounds T, at least 1.
        initial_amplitude: amplitudes x_0, not random, scalar or (r_max,).
        gain_mean: mean g of the client gains, scalar or (r_max,).
        gain_std: standard deviation nu of the client gains, scalar or (r_max,).
        drift_mean: mean c of the client drifts, scalar or (r_max,).
        drift_std: standard deviation tau of the client drifts, scalar or (r_max,).
        heterogeneity: gains and drifts drawn every round (`fresh`) or once (`persistent`).
        cohort_size: clients per round; all when None.
        num_samples: samples per client; equal when None.
        sampling: cohort law, see `Federation`.
        allocation: which directions clients carry, `svd` or `random`.
        empty_partition: what raflora and rbla do without a contributor, `zero`, `carry` or `error`.

    Returns:
        Energies, shape (rounds + 1, r_max), round 0 first; `inf` beyond floating point.

    Raises:
        ValueError: on a bad argument; on spread under zero_pad, rbla, hetlora and fedex (their
            factors hold square roots of client amplitudes: no closed form); on hetlora without
            full participation; on `error` where P0 > 0; on persistent spread with unequal samples
            or random allocation without full participation, or with more than 500 rounds of
            random cohorts.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; the closed moment maps: our derivation.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    clients = clients_of(setting, gain_mean, gain_std, drift_mean, drift_std)
    return trajectory(setting, clients, heterogeneity, rounds, initial_amplitude)[1]


def mean_trajectory(
    rule: str,
    ranks: Ranks,
    rounds: int,
    *,
    initial_amplitude: ArrayLike,
    gain_mean: ArrayLike = 1.0,
    gain_std: ArrayLike = 0.0,
    drift_mean: ArrayLike = 0.0,
    drift_std: ArrayLike = 0.0,
    heterogeneity: str = "fresh",
    cohort_size: int | None = None,
    num_samples: Samples = None,
    sampling: str | None = None,
    allocation: str = "svd",
    empty_partition: str = "carry",
) -> Array:
    """Mean amplitude `E[x_t]` of every direction after every round, exact for every t.

    `E[x'] = (g E[x] + c) E[sum w]`. Args, errors and reference are those of `energy_trajectory`.

    Returns:
        Amplitudes, shape (rounds + 1, r_max), round 0 first; `inf` beyond floating point.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    clients = clients_of(setting, gain_mean, gain_std, drift_mean, drift_std)
    return trajectory(setting, clients, heterogeneity, rounds, initial_amplitude)[0]
