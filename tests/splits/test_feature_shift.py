"""Input noise that grows with the client's number and changes nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora_sim.errors import InputError
from fedlora_sim.randomness import stream
from fedlora_sim.splits import add_feature_noise, feature_noise_levels, iid_split
from fedlora_sim.tasks import Examples
from fedlora_sim.tolerances import relative


def images(n: int = 40, dtype: torch.dtype = torch.float64) -> Examples:
    pixels = torch.linspace(0, 1, n * 6, dtype=dtype).view(n, 2, 3)
    return Examples({"pixel_values": pixels}, torch.arange(n) % 4, groups=np.arange(n) // 5)


def added(examples: Examples, samples: list[np.ndarray], level: float, seed: int) -> torch.Tensor:
    noisy = add_feature_noise(examples, samples, level, seed)
    return noisy.inputs["pixel_values"] - examples.inputs["pixel_values"]


@given(st.integers(1, 50), st.just(0.0) | st.floats(1e-6, 1e3))
def test_levels_rise_evenly_to_the_level(num_clients: int, level: float) -> None:
    levels = feature_noise_levels(num_clients, level)
    assert levels.shape == (num_clients,)
    tolerance = relative("reduction")
    np.testing.assert_allclose(levels[-1], level, rtol=tolerance)
    np.testing.assert_allclose(
        np.diff(levels, prepend=0.0), level / num_clients, rtol=tolerance, atol=tolerance * level
    )


@given(st.integers(1, 10), st.floats(1e-3, 10), st.integers(0, 2**32))
def test_noise_scales_with_the_level_and_the_rest_stays(
    num_clients: int, level: float, seed: int
) -> None:
    examples = images()
    before = examples.inputs["pixel_values"].clone()
    samples = iid_split(examples.skew_classes, num_clients, stream(seed))
    noisy = add_feature_noise(examples, samples, level, seed)
    assert torch.equal(examples.inputs["pixel_values"], before)
    assert noisy.labels is examples.labels
    assert noisy.groups is examples.groups
    assert not torch.equal(noisy.inputs["pixel_values"], before)
    torch.testing.assert_close(
        added(examples, samples, 2 * level, seed),
        2 * added(examples, samples, level, seed),
        rtol=relative("iteration"),
        atol=relative("factorization"),
    )
    again = add_feature_noise(examples, samples, level, seed)
    assert torch.equal(again.inputs["pixel_values"], noisy.inputs["pixel_values"])


def test_measured_deviations_are_the_levels() -> None:
    examples, level = images(30_000), 0.8
    samples = iid_split(examples.skew_classes, 3, stream(0))
    noise = added(examples, samples, level, 4)
    for own, deviation in zip(samples, feature_noise_levels(3, level), strict=True):
        values = noise[torch.from_numpy(own)]
        # 60,000 draws: five standard errors of their mean and of their deviation.
        assert abs(float(values.mean())) < 5 * deviation / values.numel() ** 0.5
        assert abs(float(values.std()) / deviation - 1) < 5 / (2 * values.numel()) ** 0.5


def test_samples_without_client_have_no_noise_and_seeds_differ() -> None:
    examples = images()
    first, other = (added(examples, [np.arange(5)], 1.0, seed) for seed in (0, 1))
    assert not first[5:].any()
    assert first[:5].all()
    assert not torch.equal(first, other)


def test_noise_of_one_client_does_not_depend_on_the_others() -> None:
    examples = images()
    few = added(examples, [np.arange(5), np.arange(5, 9)], 1.0, 0)
    more = added(examples, [np.arange(5), np.arange(5, 30)], 1.0, 0)
    assert torch.equal(few[:5], more[:5])


def test_both_dtypes_see_the_same_noise() -> None:
    single, double = (
        added(images(dtype=dtype), [np.arange(40)], 1.0, 0)
        for dtype in (torch.float32, torch.float64)
    )
    assert single.dtype == torch.float32
    tolerance = relative("reduction", torch.float32)
    torch.testing.assert_close(single.double(), double, rtol=tolerance, atol=tolerance)


def test_no_level_no_noise() -> None:
    examples = images()
    assert add_feature_noise(examples, [np.arange(40)], 0.0, 0) is examples


def test_tokens_are_refused_by_name() -> None:
    tokens = replace(images(), inputs={"input_ids": torch.zeros(40, 3, dtype=torch.int64)})
    message = r"feature_noise=0.5: expected 0: inputs\['input_ids'\] are torch.int64"
    with pytest.raises(InputError, match=message):
        add_feature_noise(tokens, [np.arange(40)], 0.5, 0)
    assert add_feature_noise(tokens, [np.arange(40)], 0.0, 0) is tokens


def test_prefixes_of_inputs_without_noise_are_refused() -> None:
    examples = images()
    cached = replace(examples, inputs={**examples.inputs, "prefix": torch.zeros(40, 2)})
    with pytest.raises(InputError, match=r"feature_noise=0\.5: expected 0 with cache_prefix"):
        add_feature_noise(cached, [np.arange(40)], 0.5, 0)


@pytest.mark.parametrize(
    ("clients", "level", "message"),
    [
        (0, 1.0, "num_clients=0"),
        (2, -0.1, "feature_noise=-0.1: expected a finite number of at least 0"),
        (2, float("nan"), "feature_noise=nan"),
    ],
)
def test_bad_levels_are_refused(clients: int, level: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        feature_noise_levels(clients, level)
