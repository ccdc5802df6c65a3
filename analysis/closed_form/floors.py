"""Non-IID floors: the energy at which drift holds a direction."""

from __future__ import annotations

from numpy.typing import ArrayLike

from analysis.closed_form.energies import floor
from analysis.closed_form.inputs import Ranks, Samples
from analysis.closed_form.round_map import clients_of
from analysis.closed_form.setting import setting_of
from analysis.cohorts.law import Array


def energy_floor(
    rule: str,
    ranks: Ranks,
    *,
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
    """Energy at which drift holds a direction: `tau^2 E[sum w^2] / (1 - q')` at zero mean drift.

    With a mean drift c the mean settles at `m = c E[sum w] / (1 - g E[sum w])`, and the floor is
    `((tau^2 E[sum w^2] + c^2 E[(sum w)^2]) + 2 g c E[(sum w)^2] m) / (1 - q')`. Where `q' >= 1`
    there is no floor and the value is `inf`, also without any drift; where `q' < 1` and there is
    no drift it is 0. Persistent gains that differ (`gain_std` above 0) have no floor in the mean:
    `inf`, since normal gains have no bound; persistent drifts alone have one.

    Args:
        rule: any of `RULES`, or an alias.
        ranks: client ranks.
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
        Floors in units of energy, shape (r_max,).

    Raises:
        ValueError: as `energy_trajectory`; also on drift under hetlora.

    Reference:
        Wu et al., arXiv 2602.13486, App. B (order of magnitude); constants: our derivation.
    """
    setting = setting_of(
        rule, ranks, cohort_size, num_samples, sampling, allocation, empty_partition
    )
    clients = clients_of(setting, gain_mean, gain_std, drift_mean, drift_std)
    return floor(setting, clients, heterogeneity)
