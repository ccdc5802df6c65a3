"""Energy ratio, effective rank, projections and direction preservation, by hand and by law."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from simulator_cases import assert_close, orthogonal, quick, random_factors

from fedlora_sim import LoRAFactors
from fedlora_sim.errors import InputError
from fedlora_sim.metrics import (
    direction_preservation,
    effective_rank,
    energy_ratio,
    principal_angles,
    projected_amplitudes,
)

ENERGIES = st.lists(st.floats(0, 1e6), min_size=1, max_size=8).filter(lambda e: sum(e) > 1e-6)


def test_energy_ratio_by_hand():
    energy = [[4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 5.0]]
    assert_close(energy_ratio(energy, 1), [0.4, 0.0])
    assert_close(energy_ratio(energy, 2), [0.7, 0.0])
    assert_close(energy_ratio(energy, 4), [1.0, 1.0])


def test_effective_rank_by_hand():
    assert_close(effective_rank([4.0, 4.0, 4.0]), 3.0)
    assert_close(effective_rank([9.0, 0.0, 0.0]), 1.0)
    # sigma = (3, 1): p = (3/4, 1/4), exp(H) = 4 / 3**(3/4).
    assert_close(effective_rank([9.0, 1.0]), 4 / 3**0.75)


def test_the_zero_update_has_neither():
    energy = np.array([[0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_array_equal(np.isnan(energy_ratio(energy, 1)), [True, False])
    np.testing.assert_array_equal(np.isnan(effective_rank(energy)), [True, False])


@quick
@given(ENERGIES, st.floats(1e-3, 1e3))
# In another order the sum of the first seven exceeds that of all eight by rounding.
@example([0.0, 0.0, 0.0, 1.0, 0.0, 393216.6959110554, 131071.16016945512, 0.0], 1.0)
def test_both_are_shares(energy, factor):
    energy = np.array(energy)
    ratios = np.array([energy_ratio(energy, r) for r in range(1, len(energy) + 1)])
    assert np.all((ratios >= 0) & (ratios <= 1))
    assert_close(np.sort(ratios), ratios)
    assert_close(ratios[-1], 1.0)
    rank = effective_rank(energy)
    assert_close(np.clip(rank, 1, len(energy)), rank)
    assert_close(energy_ratio(factor * energy, 1), ratios[0], scale=1)
    assert_close(effective_rank(factor * energy), rank)
    assert_close(effective_rank(energy[::-1]), rank)


@quick
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 3))
def test_projections_are_those_of_the_dense_update(seed, scaling):
    rng = np.random.default_rng(seed)
    update = random_factors(rng, 6, 5, 3, scaling, batch=(2,))
    u, v = orthogonal(rng, 6)[:, :4], orthogonal(rng, 5)[:, :4]
    dense = update.delta()
    wanted = torch.diagonal(u.mT @ dense @ v, dim1=-2, dim2=-1)
    scale = torch.linalg.vector_norm(dense)
    assert_close(projected_amplitudes(u, v.mT, update), wanted, scale=scale)
    share = wanted.square().sum(-1) / dense.square().sum((-2, -1))
    assert_close(direction_preservation(u, v.mT, update), share, "factorization", scale=1)
    assert bool((share <= 1).all())


def test_an_update_on_its_own_directions_is_preserved_whatever_its_amplitudes():
    rng = np.random.default_rng(0)
    update = random_factors(rng, 6, 5, 3, 0.25)
    u, _, vh = update.svd()
    assert_close(direction_preservation(u, vh, update), 1.0, "factorization")
    changed = LoRAFactors(vh * torch.tensor([[2.0], [-1.0], [0.5]]), u)
    assert_close(direction_preservation(u, vh, changed), 1.0, "factorization")
    # Reversing three directions leaves only the middle one in place.
    energy = update.svd()[1].square()
    kept = direction_preservation(u, vh.flip(0), update)
    assert_close(kept, energy[1] / energy.sum(), "factorization", scale=1)


@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 2])
def test_turning_the_left_side_alone_costs_the_squared_cosine(angle):
    u = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    turned = torch.tensor([[np.cos(angle)], [np.sin(angle)]])
    update = LoRAFactors(u.mT, turned, scaling=3.0)
    kept = direction_preservation(u, u.mT, update)
    assert_close(kept, np.cos(angle) ** 2, scale=1)


def test_the_zero_update_preserves_nothing():
    zero = LoRAFactors(torch.zeros(2, 1, 3), torch.ones(2, 3, 1))
    assert torch.isnan(direction_preservation(torch.eye(3), torch.eye(3), zero)).all()


@pytest.mark.parametrize("side", ["left", "right"])
@quick
@given(seed=st.integers(0, 2**32 - 1), tilt=st.sampled_from([0.0, 1e-9, 1e-4, 0.3, 10.0]))
def test_principal_angles_are_those_of_the_dense_updates(side, seed, tilt):
    rng = np.random.default_rng(seed)
    one, other = (random_factors(rng, 9, 8, 4, 0.5) for _ in range(2))
    near = LoRAFactors(one.lora_A + tilt * other.lora_A, one.lora_B + tilt * other.lora_B)
    bases = [np.linalg.svd(u.delta().numpy()) for u in (one, near)]
    dense = [u[:, :4] if side == "left" else vh[:4].T for u, _, vh in bases]
    wanted = np.sort(scipy.linalg.subspace_angles(*dense))
    angles = principal_angles(one.product, near.product, 4, side)
    # The error of an angle is that of the subspaces: rounding over their gap to zero.
    gap = min(float(u.svd()[1][-1] / u.svd()[1][0]) for u in (one, near))
    assert_close(angles, wanted, "factorization", scale=1 / gap)


def test_principal_angles_of_batches_and_of_too_few_directions():
    rng = np.random.default_rng(0)
    one, other = (random_factors(rng, 6, 5, 2, batch=(3,)).product for _ in range(2))
    angles = principal_angles(one, other, 2)
    assert angles.shape == (3, 2)
    assert bool((angles.diff() >= 0).all())
    assert bool((angles <= np.pi / 2).all())
    with pytest.raises(InputError, match=r"r=3: expected at most the 2 directions"):
        principal_angles(one, other, 3)
    with pytest.raises(InputError, match=r"side='lft'.*'left'"):
        principal_angles(one, other, 2, "lft")
