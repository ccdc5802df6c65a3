"""SVDs that start from given directions: accurate whatever the directions are."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from simulator_cases import assert_close

from fedlora_sim import lowrank
from fedlora_sim.lowrank import StartingDirections, svd_near
from fedlora_sim.tolerances import relative

R, D_OUT, D_IN = 5, 40, 36
SPECTRA = {
    "usual": [3.0, 2.0, 1.5, 1.0, 0.5],
    "collapsed": [1.0, 1e-2, 1e-5, 1e-8, 1e-10],  # energies over 20 decades
    "unsorted, signed": [0.5, -3.0, 1.0, -2.0, 1.5],
    "lost": [1.0, 0.5, 0.0, 0.0, 0.0],
}


def orthonormal(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, R, generator=generator, dtype=torch.float64))[0]


def directions():
    u, v = orthonormal(D_OUT, 0), orthonormal(D_IN, 1)
    return u, v, StartingDirections.of(u.unsqueeze(0), v.unsqueeze(0))


def product(u, values, v):
    return ((u * torch.tensor(values, dtype=u.dtype)) @ v.mT).unsqueeze(0)


def assert_svd(W, found):
    """The triplets are those of a dense SVD up to the rounding that it has itself."""
    u, s, vh = found
    bound = 100 * torch.finfo(W.dtype).eps * torch.linalg.matrix_norm(W)
    wanted = torch.linalg.svdvals(W)[..., :R]
    assert bool(((s - wanted).abs().amax(-1) <= bound).all())
    assert bool((s.diff() <= 0).all())
    cut = torch.linalg.svdvals(W)[..., R]
    rest = torch.linalg.matrix_norm(W - (u * s.unsqueeze(-2)) @ vh, 2)
    assert bool((rest <= cut + bound).all())
    for side in (u, vh.mT):
        assert_close(side.mT @ side, torch.eye(R, dtype=W.dtype).expand(len(W), R, R))


@pytest.fixture
def leading(monkeypatch):
    """Return the number of matrices that were solved from scratch, call by call."""
    counts, original = [], lowrank.leading_svd

    def counted(W, r):
        counts.append(len(W))
        return original(W, r)

    monkeypatch.setattr(lowrank, "leading_svd", counted)
    return counts


@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
def test_known_directions_need_no_decomposition(values, leading):
    u, v, near = directions()
    W = product(u, values, v)
    found = svd_near(W, near, R)
    assert leading == []
    assert_svd(W, found)


@pytest.mark.parametrize("size", [1e-2, 1e-6, 1e-10, 1e-13])
@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
def test_what_the_directions_do_not_show_is_solved_from_scratch(values, size, leading):
    u, v, near = directions()
    generator = torch.Generator().manual_seed(2)
    rest = torch.randn(1, D_OUT, D_IN, generator=generator, dtype=torch.float64)
    W = product(u, values, v) + size * rest
    found = svd_near(W, near, R)
    assert leading == [1]
    assert_svd(W, found)


def test_directions_that_are_not_orthonormal_are_not_taken(leading):
    u, v, _ = directions()
    skew = u.clone()
    skew[:, 0] = (u[:, 0] + 1e-10 * u[:, 1]) / (1 + 1e-20) ** 0.5
    near = StartingDirections.of(skew.unsqueeze(0), v.unsqueeze(0))
    assert not bool(near.orthonormal)
    assert not bool(near.have_values)
    W = product(skew, SPECTRA["usual"], v)
    assert_svd(W, svd_near(W, near, R))
    assert leading == [1]


def test_each_matrix_of_a_batch_is_tested_alone(leading):
    u, v, _ = directions()
    other = orthonormal(D_OUT, 3)
    near = StartingDirections.of(torch.stack([u, u, u]), torch.stack([v, v, v]))
    W = torch.cat([product(x, SPECTRA["usual"], v) for x in (u, other, u)])
    assert_svd(W, svd_near(W, near, R))
    assert leading == [1]


def test_nearly_orthogonal_columns_have_their_singular_values_as_amplitudes():
    """A gap g of the directions changes each value by g relative to itself, even a tiny one."""
    u, v, _ = directions()
    generator = torch.Generator().manual_seed(4)
    skew = u + 1e-15 * torch.randn(u.shape, generator=generator, dtype=u.dtype)
    near = StartingDirections.of(skew, v)
    assert bool(near.have_values)
    x = SPECTRA["collapsed"]
    with mpmath.workdps(40):
        exact = mpmath.matrix(skew.tolist()) * mpmath.diag(x)
        values = [float(value) for value in mpmath.svd_r(exact, compute_uv=False)]
    np.testing.assert_allclose(values, x, rtol=relative("factorization"))


def test_a_matrix_that_is_not_finite_is_refused():
    u, v, near = directions()
    W = product(u, SPECTRA["usual"], v)
    W[0, 0, 0] = torch.nan
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        svd_near(W, near, R)
