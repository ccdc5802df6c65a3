"""The SVD within a range of few directions is that of the whole matrix, or is not used."""

from __future__ import annotations

import pytest
import torch
from simulator_cases import assert_close

from fedlora_sim import lowrank
from fedlora_sim.lowrank import LowRankProduct, leading_svd

N, R = 48, 5


def orthogonal(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    full = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(full).Q


def matrix(values, seed=0, shape=(N, N + 7)):
    values = torch.tensor(values, dtype=torch.float64)
    u, v = (orthogonal(n, len(values), seed + i) for i, n in enumerate(shape))
    return u * values @ v.mT


SPECTRA = {
    "as many values as wanted": [3.0, 2.0, 1.5, 1.0, 0.5],
    "fewer values": [3.0, 1.0],
    "equal values": [1.0] * R,
    "a collapse of 20 decades": [10.0 ** (-5 * i) for i in range(R)],
    "one value too many": [3.0, 2.0, 1.5, 1.0, 0.5, 0.4],
    "ten values too many": [3.0, 2.0, 1.5, 1.0, 0.5, *[0.1] * 10],
    "a tail just above rounding": [3.0, 2.0, 1.5, 1.0, 0.5, *[1e-11] * 10],
    "full rank": [1.0 + 0.1 * i for i in range(N)][::-1],
    "zero": [0.0],
}


def assert_leading(found, W, r=R):
    """Check values, orthonormal vectors and the products against LAPACK's."""
    u, s, vh = found
    whole = torch.linalg.svd(W, full_matrices=False)
    scale = torch.linalg.matrix_norm(W).clamp_min(1e-300)
    bound = 200 * torch.finfo(W.dtype).eps
    assert ((s - whole.S[..., :r]).abs() <= bound * scale.unsqueeze(-1)).all()
    eye = torch.eye(r, dtype=W.dtype)
    for gram in (u.mT @ u, vh @ vh.mT):
        assert_close(gram, eye.expand_as(gram), "factorization", W.dtype)
    # The product decides, because vectors of equal values are not unique.
    gap = whole.S[..., r - 1] - whole.S[..., r]
    if bool((gap > 1e-3 * scale).all()):
        best = (whole.U[..., :r] * whole.S[..., None, :r]) @ whole.Vh[..., :r, :]
        assert (torch.linalg.matrix_norm(u * s.unsqueeze(-2) @ vh - best) <= bound * scale).all()


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_leading_triplets_are_those_of_lapack(name, dtype):
    W = matrix(SPECTRA[name]).to(dtype)
    assert_leading(leading_svd(W, R), W)
    assert_leading(leading_svd(W.mT, R), W.mT)


def test_every_matrix_of_a_batch_is_solved_as_it_needs(monkeypatch):
    W = torch.stack([matrix(values, seed) for seed, values in enumerate(SPECTRA.values())])
    assert_leading(leading_svd(W, R), W)
    wholes = []
    whole = lowrank._whole_svd
    monkeypatch.setattr(lowrank, "_whole_svd", lambda W, r: wholes.append(W.shape) or whole(W, r))
    leading_svd(W, R)
    columns = R + lowrank.OVERSAMPLED
    # Within the range, then whole those with more directions than columns.
    assert wholes == [(len(SPECTRA), columns, columns), (3, N, N + 7)]


def test_small_matrices_are_solved_whole():
    W = matrix([2.0, 1.0], shape=(20, 30))
    assert_leading(leading_svd(W, 2), W, 2)


def test_matrices_that_are_not_finite_are_refused():
    W = matrix(SPECTRA["fewer values"])
    W[3, 4] = torch.inf
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        leading_svd(W, R)


@pytest.mark.parametrize("angles", [[0.0], [1e-12], [1e-6], [0.1], [0.0, 0.1, 1e-12]])
def test_singular_values_of_one_block_are_those_of_lapack(angles):
    """Columns that are orthogonal, almost, or not at all; one of them is zero."""
    B, A = orthogonal(N, R, 0) * torch.arange(R, dtype=torch.float64), orthogonal(30, R, 1).mT
    B = B.repeat(len(angles), 1, 1)
    B[..., 3] += torch.tensor(angles).double().unsqueeze(1) * B[..., 4]
    weights = torch.tensor([1.0, -2.0, 0.5, 1.0, 3.0]).double()
    found = LowRankProduct([(B, A.repeat(len(angles), 1, 1))], weights)
    wanted = torch.linalg.svdvals(found.dense())[..., :R]
    assert (found.singular_values(R) - wanted).abs().max() <= 1e-14 * wanted.max()
    for k in range(len(angles)):  # alone as in the batch
        alone = LowRankProduct([(B[k], A)], weights).singular_values(R)
        assert (alone - wanted[k]).abs().max() <= 1e-14 * wanted.max()
