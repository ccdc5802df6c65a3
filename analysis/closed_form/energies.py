"""Which recursion of the energies is a rule's: one pair of moments, two, or all directions."""

from __future__ import annotations

from numpy.typing import ArrayLike

from analysis.closed_form.fedex import pair_map
from analysis.closed_form.hetlora import hetlora_floor, hetlora_trajectory
from analysis.closed_form.inputs import per_direction
from analysis.closed_form.persistent import persistent_floor, persistent_trajectory, stays
from analysis.closed_form.round_map import Clients, MomentMap, round_map
from analysis.closed_form.setting import Setting
from analysis.cohorts.law import Array
from fedlora_sim.errors import MOST_ROUNDS, check_count


def moment_map(setting: Setting, clients: Clients) -> MomentMap:
    """The moments' map of one round with fresh clients; hetlora in its limit of uniform weights."""
    if setting.form.space == "residual":
        return pair_map(setting, clients)
    return round_map(setting, clients)


def floor(setting: Setting, clients: Clients, heterogeneity: str) -> Array:
    """Energies at which drift holds the directions, (r_max,); `inf` where nothing does."""
    if stays(heterogeneity, clients):
        return persistent_floor(setting, clients)
    if setting.form.norm_weighted:
        return hetlora_floor(round_map(setting, clients), clients)
    return moment_map(setting, clients).floor()


def trajectory(
    setting: Setting,
    clients: Clients,
    heterogeneity: str,
    rounds: int,
    initial_amplitude: ArrayLike,
) -> tuple[Array, Array]:
    """Mean amplitudes and energies for t = 0..rounds, each (rounds + 1, r_max)."""
    count = check_count("rounds", rounds, MOST_ROUNDS)
    start = per_direction("initial_amplitude", initial_amplitude, setting.r_max)
    if stays(heterogeneity, clients):
        return persistent_trajectory(setting, clients, start, count)
    if setting.form.norm_weighted:
        return hetlora_trajectory(setting, clients, start, count)
    return moment_map(setting, clients).trajectory(start, count)
