"""The batch plan: whole epochs, short last batches, one stream per client."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from fedlora_sim.errors import InputError
from fedlora_sim.finetune.batches import client_streams, every_sample, plan_batches

SAMPLES = [np.arange(5), np.arange(100, 112), np.array([7])]


def drawn(plan, client: int) -> list[list[int]]:
    """Return the real samples of each step of a client."""
    return [
        plan.index[step, client][plan.real[step, client]].tolist()
        for step in range(plan.num_steps[client])
    ]


def test_epochs_cover_every_sample_once():
    plan = plan_batches(SAMPLES, client_streams(0, 0, range(3)), batch_size=4, local_epochs=2)
    assert plan.num_steps.tolist() == [4, 6, 2]
    for client, own in enumerate(SAMPLES):
        batches, per_epoch = drawn(plan, client), plan.num_steps[client] // 2
        for epoch in (batches[:per_epoch], batches[per_epoch:]):
            assert sorted(chain(*epoch)) == own.tolist()
    assert [len(batch) for batch in drawn(plan, 0)] == [4, 1, 4, 1]


def test_epochs_are_shuffled_again():
    plan = plan_batches([np.arange(99)], client_streams(0, 0, [0]), batch_size=99, local_epochs=3)
    orders = set(map(tuple, drawn(plan, 0)))
    assert len(orders) == 3


def test_steps_cycle_over_epochs():
    plan = plan_batches(SAMPLES, client_streams(0, 0, range(3)), batch_size=4, local_steps=5)
    assert plan.num_steps.tolist() == [5, 5, 5]
    assert drawn(plan, 2) == [[7]] * 5
    assert sorted(chain(*drawn(plan, 0)[:2])) == SAMPLES[0].tolist()


def test_a_batch_is_real_exactly_while_its_client_trains():
    plan = plan_batches(SAMPLES, client_streams(0, 0, range(3)), batch_size=4, local_epochs=1)
    alive = np.arange(len(plan.real))[:, None] < plan.num_steps
    np.testing.assert_array_equal(plan.real.any(axis=2), alive)
    np.testing.assert_array_equal(plan.real.sum(axis=(0, 2)), [len(own) for own in SAMPLES])


def test_padding_of_a_batch_is_the_clients_own_data():
    """Also if the client has finished while another client of the stack trains."""
    plan = plan_batches(SAMPLES, client_streams(0, 0, range(3)), batch_size=4, local_epochs=2)
    for client, own in enumerate(SAMPLES):
        alive = plan.index[: plan.num_steps[client], client]
        assert np.isin(alive, own).all()
    whole = every_sample(SAMPLES, 4)
    for client, own in enumerate(SAMPLES):
        assert np.isin(whole.index[:, client], own).all()


@pytest.mark.parametrize("batch_size", [1, 4, 5, 12, 99])
def test_every_sample_once(batch_size):
    plan = every_sample(SAMPLES, batch_size)
    width = min(batch_size, 12)
    assert plan.index.shape == plan.real.shape == (-(-12 // width), 3, width)
    assert plan.num_steps.tolist() == [-(-len(own) // width) for own in SAMPLES]
    for client, own in enumerate(SAMPLES):
        assert plan.index[:, client][plan.real[:, client]].tolist() == own.tolist()
        assert plan.real[: plan.num_steps[client], client].any(axis=1).all()
        assert not plan.real[plan.num_steps[client] :, client].any()


def test_a_part_of_a_plan_is_cut_to_its_clients():
    plan = every_sample(SAMPLES, 5)
    part = plan.take(np.array([2, 0]))
    assert part.index.shape == (1, 2, 5)
    assert part.num_steps.tolist() == [1, 1]
    np.testing.assert_array_equal(part.index[:, 1], plan.index[:1, 0])
    assert plan.take(np.array([2])).index.shape == (1, 1, 1)


def test_a_client_draws_the_same_alone_and_in_company():
    together = plan_batches(SAMPLES, client_streams(3, 8, (0, 1, 2)), batch_size=4, local_steps=7)
    alone = plan_batches(SAMPLES[1:2], client_streams(3, 8, (1,)), batch_size=4, local_steps=7)
    assert drawn(together, 1) == drawn(alone, 0)


def test_rounds_and_seeds_differ():
    plans = [
        plan_batches(SAMPLES[1:2], client_streams(*key), batch_size=12, local_steps=1)
        for key in ((0, 0, (1,)), (0, 1, (1,)), (1, 0, (1,)), (0, 0, (2,)))
    ]
    assert len({tuple(drawn(plan, 0)[0]) for plan in plans}) == len(plans)


def test_bad_input():
    rngs = client_streams(0, 0, range(3))
    with pytest.raises(InputError, match=r"\(local_steps, local_epochs\)="):
        plan_batches(SAMPLES, rngs, batch_size=4)
    with pytest.raises(InputError, match=r"\(local_steps, local_epochs\)="):
        plan_batches(SAMPLES, rngs, batch_size=4, local_steps=1, local_epochs=1)
    with pytest.raises(InputError, match="rngs=2: expected 3 generators"):
        plan_batches(SAMPLES, rngs[:2], batch_size=4, local_steps=1)
