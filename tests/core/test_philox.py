"""Draws by number: the integers of Philox4x64-10, the same everywhere, and their laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fedlora_sim.randomness import normals, philox, uniforms, words

SIGNIFICANCE = 1e-6
ALL_ONES = 2**64 - 1
# Known answers of Random123 (Salmon et al. 2011), file kat_vectors: counter, key, result.
KNOWN = [
    (
        [0] * 4,
        [0] * 2,
        [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B],
    ),
    (
        [ALL_ONES] * 4,
        [ALL_ONES] * 2,
        [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0],
    ),
    (
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        [0x452821E638D01377, 0xBE5466CF34E90C6C],
        [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
    ),
]


def as_int64(values):
    return [torch.from_numpy(np.array([x], dtype=np.uint64).view(np.int64)) for x in values]


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, wanted):
    assert [int(x) % 2**64 for x in philox(as_int64(counter), as_int64(key))] == wanted


def test_numpy_and_torch_compute_the_same_integers():
    seeds = [0, 7, 2**63 - 1]
    host = words(seeds, "gains", 5)
    assert host.shape == (3, 20)
    counter = [torch.arange(5).expand(3, 5), *[torch.zeros(3, 5, dtype=torch.int64)] * 3]
    key = words_key("gains")
    there = philox(counter, [torch.tensor(seeds)[:, None].expand(3, 5), key])
    assert torch.equal(torch.stack(there, -1).flatten(1), host)


def words_key(purpose):
    from fedlora_sim.randomness import _purpose_key, _signed

    return _signed(_purpose_key(purpose))


def test_a_draw_depends_on_its_seed_purpose_and_number_alone():
    many = normals([5, 3, 9], "noise", 1001)
    assert many.shape == (3, 1001)
    assert torch.equal(many[1:2], normals([3], "noise", 1001))
    assert torch.equal(many[:, :13], normals([5, 3, 9], "noise", 13))
    assert torch.equal(uniforms([3], "noise", 6), uniforms([4, 3], "noise", 600)[1:, :6])


def test_seeds_and_purposes_share_no_word():
    purposes = ("gains", "drifts", "aggregate noise", "allocation", "clients of cohorts")
    drawn = torch.cat([words(range(200), purpose, 5).flatten() for purpose in purposes])
    assert len(drawn.unique()) == len(drawn)


def test_uniform_draws_are_uniform_and_inside_of_the_unit_interval():
    drawn = uniforms(range(50), "u", 4000)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert stats.kstest(drawn.numpy().ravel(), stats.uniform.cdf).pvalue > SIGNIFICANCE
    lowest = words(range(50), "u", 1000) & 0xFF  # of the mantissa
    observed = torch.bincount(lowest.flatten(), minlength=256).numpy()
    assert stats.chisquare(observed).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("lag", [1, 2, 4])
def test_normal_draws_are_normal_and_independent(lag):
    """Lag 1 has the two of a pair, lag 4 the same words of two blocks."""
    drawn = normals(range(50), "z", 4000).numpy()
    assert stats.kstest(drawn.ravel(), stats.norm.cdf).pvalue > SIGNIFICANCE
    assert stats.kstest(drawn.max(1), lambda x: stats.norm.cdf(x) ** 4000).pvalue > SIGNIFICANCE
    for power in (1, 2):
        one, other = drawn[:, :-lag] ** power, drawn[:, lag:] ** power
        assert stats.pearsonr(one.ravel(), other.ravel()).pvalue > SIGNIFICANCE
    assert stats.pearsonr(drawn[:-1].ravel(), drawn[1:].ravel()).pvalue > SIGNIFICANCE
