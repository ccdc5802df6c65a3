"""Updates and runs of any size: exact at every scale, or one clear error, never NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from designs import each_value
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples
from simulator_cases import ALL_RULES

from fedlora_sim import LoRAFactors, Scenario, aggregate, simulate
from fedlora_sim.errors import InputError
from fedlora_sim.lowrank import LowRankProduct, largest, times_power

LIMITS = {torch.float32: 120, torch.float64: 1000}
"""Exponents of the factors' entries that both dtypes hold, with room for sums."""
RANKS, SCALINGS, SAMPLES = (2, 3, 4), (1.0, 0.5, 2.0), (3, 1, 2)


def cohort(seed, dtype, rule, d_out=7, d_in=9):
    """Return three clients of different ranks; FFA's share their A."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common = draw(max(RANKS), d_in)
    return [
        LoRAFactors(
            (common[:r] if rule == "ffa" else draw(r, d_in)).to(dtype), draw(d_out, r).to(dtype), s
        )
        for r, s in zip(RANKS, SCALINGS, strict=True)
    ]


def scaled(updates, e):
    """Multiply both factors by `2**e`."""
    power = torch.tensor(e)
    return [
        LoRAFactors(times_power(u.lora_A, power), times_power(u.lora_B, power), u.scaling)
        for u in updates
    ]


@settings(max_examples=examples(50))
@given(
    st.sampled_from(ALL_RULES),
    st.sampled_from(list(LIMITS)),
    st.floats(-1, 1),
    st.integers(0, 99),
    st.sampled_from([7, 40]),  # formed, and by Gram matrices or QR
)
def test_aggregation_commutes_with_powers_of_two(rule, dtype, where, seed, d_out):
    e = round(where * LIMITS[dtype])
    updates = cohort(seed, dtype, rule, d_out, d_out + 2)
    usual = aggregate(updates, SAMPLES, rule)
    found = aggregate(scaled(updates, e), SAMPLES, rule)
    power = torch.tensor(e)
    for name in ("lora_A", "lora_B"):
        wanted = times_power(getattr(usual.adapter, name), power)
        assert torch.equal(getattr(found.adapter, name), wanted)
    amplitudes = times_power(usual.product.amplitudes(), 2 * power)
    if bool(torch.isfinite(amplitudes).all()):
        assert torch.equal(found.product.amplitudes(), amplitudes)
    else:
        with pytest.raises(InputError, match="largest singular value"):
            found.product.amplitudes()


@each_value(rule=ALL_RULES, size=[1e19, 1e30, 3e37, 1e-19, 1e-30, 1e-37])
def test_single_precision_of_every_size(rule, size):
    # Without rescaling 1e19 gives NaN and 1e-30 gives zero.
    big = [
        LoRAFactors(u.lora_A.clamp(-1, 1) * size, u.lora_B.clamp(-1, 1) * size, u.scaling)
        for u in cohort(0, torch.float32, rule)
    ]
    found = aggregate(big, SAMPLES, rule)
    wide = aggregate([u.to(torch.float64) for u in big], SAMPLES, rule)
    total, wanted = found.product.amplitudes(4), wide.product.amplitudes(4)
    assert (wanted > 0).any()
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=float(wanted.max()) * 1e-5)


@pytest.mark.parametrize("size", [1e100, 1e150, 1e-100, 1e-160])
def test_norm_weights_in_double_precision(size):
    updates = cohort(1, torch.float64, "hetlora")
    big = [LoRAFactors(u.lora_A * size, u.lora_B * size, u.scaling) for u in updates]
    usual, found = aggregate(updates, SAMPLES, "hetlora"), aggregate(big, SAMPLES, "hetlora")
    torch.testing.assert_close(found.adapter.lora_A / size, usual.adapter.lora_A)
    torch.testing.assert_close(found.adapter.lora_B / size, usual.adapter.lora_B)


@pytest.mark.parametrize("rule", ALL_RULES)
def test_clients_far_apart(rule):
    # A tiny client next to a huge one has no effect and does no harm.
    first, second, third = cohort(2, torch.float32, rule)
    if rule == "ffa":
        clients = [first, LoRAFactors(second.lora_A, second.lora_B * 1e-30, second.scaling), third]
    else:
        clients = [first, scaled([second], -100)[0], scaled([third], 60)[0]]
    found = aggregate(clients, SAMPLES, rule)
    wide = aggregate([u.to(torch.float64) for u in clients], SAMPLES, rule)
    total, wanted = found.product.amplitudes(4), wide.product.amplitudes(4)
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=float(wanted.max()) * 1e-5)


def test_results_out_of_range_are_errors():
    top = torch.finfo(torch.float32).max
    full = LoRAFactors(torch.full((2, 9), top), torch.full((7, 2), top))
    with pytest.raises(InputError, match="of the aggregate=inf"):
        aggregate([full, full], None, "fedavg")
    with pytest.raises(InputError, match="update scaling"):
        full.delta()
    with pytest.raises(InputError, match="largest singular value"):
        full.svd()


@pytest.mark.parametrize("scaling", [1e60, 1e-60, 1e-310])
def test_a_scaling_outside_of_single_precision(scaling):
    update = LoRAFactors(torch.ones(2, 9), torch.ones(7, 2), scaling)
    with pytest.raises(InputError, match=r"updates\[0\].scaling=.*torch|float32 holds"):
        aggregate([update], None)


@pytest.mark.parametrize("scaling", [1e300, 1e-300, 1e-200])
def test_a_scaling_that_makes_up_for_the_factors(scaling):
    root = scaling**-0.5
    usual = cohort(3, torch.float64, "fedavg")
    written = [LoRAFactors(u.lora_A * root, u.lora_B * root, u.scaling * scaling) for u in usual]
    for rule in ("fedavg", "raflora", "flora"):
        found, wanted = (aggregate(own, SAMPLES, rule).delta() for own in (written, usual))
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(written[0].norm(), usual[0].norm())
    torch.testing.assert_close(written[0].delta(), usual[0].delta())


@settings(max_examples=examples(60))
@given(st.integers(-1000, 1000), st.integers(-1000, 1000), st.integers(0, 9))
def test_norms_and_products_of_factors_of_any_size(on_a, on_b, seed):
    update = cohort(seed, torch.float64, "fedavg")[0]
    a, b = (torch.tensor(e) for e in (on_a, on_b))
    moved = LoRAFactors(times_power(update.lora_A, a), times_power(update.lora_B, b), 0.5)
    norm, delta = (times_power(x / 1.0 * 0.5, a + b) for x in (update.norm(), update.delta()))
    if -1000 < on_a + on_b < 1000:
        torch.testing.assert_close(moved.norm(), norm, rtol=1e-14, atol=0)
        torch.testing.assert_close(moved.delta(), delta, rtol=1e-14, atol=0)
        values = LowRankProduct([(moved.lora_B, moved.lora_A)], torch.full((2,), 0.5).double())
        assert float(largest(values.dense()[None])) == pytest.approx(float(delta.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "gain", "rounds"),
    [
        *((rule, 1.2, 600) for rule in ("fedavg", "zero_pad", "hetlora", "flora", "fedex")),
        *((rule, 0.5, 400) for rule in ("raflora", "zero_pad", "hetlora")),
    ],
)
def test_spectral_runs_in_single_precision_leave_its_range(rule, gain, rounds):
    # In float32 1.2**600 overflows.
    scenario = Scenario("2x2,4x1", gain_mean=gain, gain_std=0.01, rounds=rounds)
    single = simulate(scenario.replace(dtype="float32"), rule=rule, seed=[0, 1])
    double = simulate(scenario, rule=rule, seed=[0, 1])
    assert np.isfinite(single.energy).all()
    np.testing.assert_array_equal(single.energy, double.energy)


@pytest.mark.parametrize("rule", ["fedavg", "flora"])
def test_matrix_runs_in_single_precision_leave_its_range(rule):
    scenario = Scenario("2,3", fidelity="matrix", gain_mean=1e6, rounds=12, d_in=6, d_out=5)
    single = simulate(scenario.replace(dtype="float32"), rule=rule, seed=[0, 1])
    double = simulate(scenario, rule=rule, seed=[0, 1])
    np.testing.assert_array_equal(single.energy, double.energy)


def test_runs_that_stay_in_range_keep_their_precision():
    scenario = Scenario("2x2,4x1", gain_std=0.1, rounds=20)
    single = simulate(scenario.replace(dtype="float32"), seed=[0, 1])
    assert not np.array_equal(single.energy, simulate(scenario, seed=[0, 1]).energy)


@pytest.mark.parametrize("fidelity", ["spectral", "matrix"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_energies_out_of_range(fidelity, dtype):
    scenario = Scenario(
        "2,3", fidelity=fidelity, gain_mean=1e30, rounds=20, dtype=dtype, d_in=6, d_out=5
    )
    with pytest.raises(InputError, match=r"rounds=20: expected|singular value"):
        simulate(scenario, seed=[0, 1])
