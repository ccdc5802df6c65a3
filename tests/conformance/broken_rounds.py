"""Rules with one bug each in a round: ranks, levels, empty partitions, memory, numbers.

As in `broken_averages`, they declare the healthy rule's properties; `fails` lists the checks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from healthy_rules import DenseFedAvg, DenseRaFLoRA, DenseZeroPad, ServerMomentum

from fedlora_sim import LoRAFactors
from fedlora_sim.rules import Aggregated, FedAvg


class RMaxFromCohort(DenseZeroPad):
    """The global adapter has the highest received rank, which the engines refuse."""

    fails = frozenset({"shapes", "batched"})

    def r_max(self, updates, context):
        if context.positions is not None:
            return 1 + max(max(held) for held in context.positions)
        return max(u.rank for u in updates)


class LevelsFromCohort(DenseRaFLoRA):
    """Partitions are cut at the received ranks; higher ones are ignored."""

    fails = frozenset(
        {"empty_partition_carry", "empty_partition_error", "unknown_level"}
        | {"column_order", "rank_indices"}
    )

    def check(self, updates, context):
        own = tuple(sorted({u.rank for u in updates}))
        super().check(updates, replace(context, rank_levels=own))

    def levels(self, clients, context):
        if context.positions is not None:
            return super().levels(clients, context)
        return sorted({len(c.held) for c in clients})


class NearestLevel(DenseRaFLoRA):
    """A rank that is not a level counts as the next lower level; directions above are left out."""

    fails = frozenset({"unknown_level"})

    def check(self, updates, context):
        wider = sorted({*context.rank_levels, *(u.rank for u in updates)})
        super().check(updates, replace(context, rank_levels=tuple(wider)))


class EdgeOffByOne(DenseRaFLoRA):
    """Ranks are counted from 1 and rank indices from 0: `rank >= i` takes one client too many.

    The first index of a partition is averaged with clients that end just below it.
    """

    fails = frozenset(
        {"partition_identity", "partition_gauge", "multiplier", "low_rank_client_keeps"}
        | {"empty_partition_carry", "empty_partition_error", "rank_indices"}
    )

    def levels(self, clients, context):
        return range(1, context.r_max + 1)

    def carries(self, client, part):
        if sorted(client.held) != list(range(len(client.held))):
            return super().carries(client, part)
        return len(client.held) >= part[0]


class CarryForgotten(DenseRaFLoRA):
    """Under `carry` an empty partition comes back as zero, as under `zero`."""

    fails = frozenset({"empty_partition_carry"})

    def empty(self, part, context):
        kept = {"carry": "zero"}.get(context.empty_partition, context.empty_partition)
        return super().empty(part, replace(context, empty_partition=kept))


class AlwaysCarried(DenseRaFLoRA):
    """Under `zero` an empty partition is not overwritten."""

    fails = frozenset(
        {"empty_partition_zero", "empty_partition_carry", "single_client", "identical_clients"}
        | {"multiplier", "partition_energy_hull", "linear"}
    )

    def empty(self, part, context):
        kept = {"zero": "carry"}.get(context.empty_partition, context.empty_partition)
        return super().empty(part, replace(context, empty_partition=kept))


class ErrorNotRaised(DenseRaFLoRA):
    """Under `error` a partition without contributors is carried over instead of refused."""

    fails = frozenset({"empty_partition_error"})

    def empty(self, part, context):
        kept = {"error": "carry"}.get(context.empty_partition, context.empty_partition)
        return super().empty(part, replace(context, empty_partition=kept))


class ZeroOverZero(DenseRaFLoRA):
    """A partition without contributors is 0 / 0, which is NaN."""

    fails = frozenset(
        {"shapes", "finite", "inputs_untouched", "determinism", "dtypes", "batched", "continuous"}
        | {"client_order", "weight_scale", "weight_repetition", "zero_weight", "single_client"}
        | {"identical_clients", "homogeneous", "scaling_convention", "orthogonal", "transpose"}
        | {"partition_gauge", "rank_bound", "linear", "partition_energy_hull", "multiplier"}
        | {"partition_identity", "empty_partition_zero", "empty_partition_carry"}
        | {"low_rank_client_keeps", "layout", "stateless", "independent_runs"}
        | {"column_order", "rank_indices"}
    )

    def empty(self, part, context):
        found = super().empty(part, context)
        return found / 0 if context.empty_partition == "zero" else found


class RandomBasis(DenseFedAvg):
    """The range is found with random vectors, as `torch.svd_lowrank` does: exact but for bits."""

    fails = frozenset({"determinism", "independent_runs"})

    def write(self, W, r, dtype):
        basis = torch.linalg.qr(W @ torch.randn(W.shape[1], W.shape[1]).to(W))[0]
        return super().write(basis @ (basis.T @ W), r, dtype)


class WeightedInPlace(DenseFedAvg):
    """`w[key] *= p`: the clients' own tensors are weighted, and then summed."""

    fails = frozenset({"inputs_untouched"})

    def step(self, updates, weights, context, state):
        result = super().step(updates, weights, context, state)
        for update, weight in zip(updates, weights, strict=True):
            update.lora_B.mul_(weight / sum(weights))
        return result


class VelocityInPlace(ServerMomentum):
    """`v.mul_(m).add_(mean)` in place, which changes the previous round's state."""

    fails = frozenset({"inputs_untouched"})

    def velocity(self, last, mean):
        return mean if last is None else last.mul_(self.MOMENTUM).add_(mean)


class NaNSwallowed(DenseFedAvg):
    """`nan_to_num` hides a client that diverged."""

    fails = frozenset({"nonfinite"})

    def step(self, updates, weights, context, state):
        sound = [replace(u, lora_B=u.lora_B.nan_to_num()) for u in updates]
        return super().step(sound, weights, context, state)


class AlwaysDouble(DenseFedAvg):
    """The result has the dtype of the computation."""

    fails = frozenset({"dtypes"})

    def write(self, W, r, dtype):
        return super().write(W, r, torch.float64)


@dataclass(frozen=True)
class OneAForAllLayers(FedAvg):
    """A built-in kind of rule that reads the first layer of a batch and broadcasts it."""

    name = "one_a_for_all_layers"
    fails = frozenset({"batched"})

    def adapter(self, *args, **options):
        own = super().adapter(*args, **options)
        first = own.lora_A.flatten(0, -3)[0] if own.lora_A.ndim > 2 else own.lora_A
        return LoRAFactors(first.expand_as(own.lora_A), own.lora_B, own.scaling)


class ElsewhereReturned(DenseFedAvg):
    """The result stays on the device of the computation, here the meta device."""

    fails = frozenset({"device"})

    def step(self, updates, weights, context, state):
        adapter = super().step(updates, weights, context, state)[0].adapter
        for name in ("lora_A", "lora_B"):  # without the constructor, which refuses such a device
            object.__setattr__(adapter, name, getattr(adapter, name).to("meta"))
        return Aggregated(adapter), {}


ROUNDS = (
    RMaxFromCohort,
    LevelsFromCohort,
    NearestLevel,
    EdgeOffByOne,
    CarryForgotten,
    AlwaysCarried,
    ErrorNotRaised,
    ZeroOverZero,
    RandomBasis,
    WeightedInPlace,
    VelocityInPlace,
    NaNSwallowed,
    AlwaysDouble,
    OneAForAllLayers,
)
