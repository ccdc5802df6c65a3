"""Rules with one bug each that appears only in some cases: many levels, later rounds, few clients.

As in `broken_averages`, they declare the healthy rule's properties; `fails` lists the checks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from broken_averages import ALONE, HULLS, MEAN
from healthy_rules import (
    FEDAVG,
    DenseFedAvg,
    DenseRaFLoRA,
    DenseZeroPad,
    ServerMomentum,
)

from fedlora_sim import LoRAFactors
from fedlora_sim.rules import Aggregated, FedAvg, RaFLoRA


class ThreeLevels(DenseRaFLoRA):
    """Three partitions at most: all directions above the third level form one partition."""

    fails = frozenset(
        {"partition_identity", "multiplier", "rank_indices", "column_order"}
        | {"empty_partition_carry", "empty_partition_error"}
    )

    def levels(self, clients, context):
        levels = super().levels(clients, context)
        return levels if len(levels) <= 3 or context.positions else [*levels[:3], levels[-1]]

    def carries(self, client, part):
        return bool(set(part) & set(client.held))


class EightDirections(DenseFedAvg):
    """`svd_lowrank(W, q=8)`: eight directions for all ranks."""

    fails = MEAN | ALONE | {"linear", "low_rank_client_dilutes"}

    def write(self, W, r, dtype):
        cut = super().write(W, r, dtype)
        kept = (torch.arange(r) < 8).to(cut.lora_B)
        return replace(cut, lora_B=cut.lora_B * kept)


class SmallSharesDropped(DenseFedAvg):
    """Clients with less than a hundredth of the samples are left out."""

    fails = MEAN | {"weight_repetition"}

    def read(self, updates, weights, context):
        clients = super().read(updates, weights, context)
        total = sum(c.weight for c in clients)
        return [c for c in clients if c.weight >= total / 100]


class MomentumNotDeclared(ServerMomentum):
    """Server momentum, called FedAvg: the first round is FedAvg's."""

    properties = FEDAVG
    fails = frozenset({"stateless"})


class PositionsIgnored(DenseZeroPad):
    """Every client is assumed to carry the first directions; `positions` is ignored."""

    fails = frozenset({"column_order", "multiplier"})

    def read(self, updates, weights, context):
        return super().read(updates, weights, replace(context, positions=None))


class CoverageByRank(DenseRaFLoRA):
    """Carriers are found by rank, although clients may carry any directions."""

    fails = ALONE | {"rank_indices", "multiplier"}

    def carries(self, client, part):
        return len(client.held) > part[0]


class PositionsOfAll(DenseZeroPad):
    """Clients without samples are left out, but the next client gets their positions."""

    fails = frozenset(
        {"zero_weight", "rank_indices", "column_order", "multiplier", "batched", "client_order"}
        | {"weight_repetition"}
    )

    def read(self, updates, weights, context):
        present = [(u, w) for u, w in zip(updates, weights, strict=True) if w > 0]
        if context.positions is not None:
            pairs = zip(present, context.positions, strict=False)
            held = [own if len(own) == u.rank else range(u.rank) for (u, _), own in pairs]
            context = replace(context, positions=held)
        return super().read([u for u, _ in present], [w for _, w in present], context)


class TensorFloat(DenseFedAvg):
    """Float32 is multiplied with ten bits of mantissa, as TF32 does on GPUs."""

    fails = frozenset({"dtypes"})

    def client(self, update, weight, held, r_max):
        own = super().client(update, weight, held, r_max)
        if update.dtype != torch.float32:
            return own
        mantissa, exponent = torch.frexp(own.scaling * own.B / 3)
        rounded = torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)
        return replace(own, B=3 * rounded / own.scaling)


class HalfSums(DenseFedAvg):
    """`sum n_k dW_k` in half precision for such updates: sample counts make it overflow."""

    fails = frozenset({"dtypes"})

    def step(self, updates, weights, context, state):
        result, state = super().step(updates, weights, context, state)
        dtype = updates[0].dtype
        if dtype == torch.float16:
            pairs = zip(updates, weights, strict=True)
            sums = sum((w * u.delta().double() for u, w in pairs)).to(dtype).double()
            result = Aggregated(self.write(sums / sum(weights), context.r_max, dtype))
        return result, state


class OneClientClipped(DenseFedAvg):
    """A single client is returned at once, with a scaling of at most 1."""

    fails = MEAN | ALONE | {"scaling_convention", "weight_repetition", "low_rank_client_dilutes"}

    def mean(self, clients, context):
        if len(clients) == 1:
            return min(clients[0].scaling, 1) * clients[0].B @ clients[0].A
        return super().mean(clients, context)


class EightClients(DenseFedAvg):
    """Clients are averaged in blocks of eight with equal weights, also the smaller last block."""

    fails = MEAN | {"client_order", "weight_repetition", "low_rank_client_dilutes"}

    def mean(self, clients, context):
        blocks = [clients[k : k + 8] for k in range(0, len(clients), 8)]
        means = [super(EightClients, self).mean(block, context) for block in blocks]
        return sum(means) / len(means)


class SquareCore(DenseFedAvg):
    """Rows beyond the number of inputs are lost."""

    fails = MEAN | ALONE | {"transpose", "orthogonal"}

    def mean(self, clients, context):
        mean = super().mean(clients, context)
        mean[mean.shape[1] :] = 0
        return mean


class RsLoRAUnknown(DenseFedAvg):
    """The scaling is written as `alpha / r` with a whole alpha, which is wrong for rsLoRA."""

    fails = MEAN | ALONE | HULLS | {"scaling_convention"}

    def client(self, update, weight, held, r_max):
        alpha = max(1, round(update.scaling * update.rank))
        own = replace(update, scaling=alpha / update.rank)
        return super().client(own, weight, held, r_max)


class ZeroClientsLeftOut(DenseFedAvg):
    """Clients with a zero update count as absent, and the others share their weight."""

    fails = MEAN - {"multiplier"} | {"linear", "continuous"}

    def read(self, updates, weights, context):
        clients = super().read(updates, weights, context)
        return [c for c in clients if bool(c.dW.any())] or clients


class WholeWeights(DenseFedAvg):
    """Sample counts are whole numbers of 32 bits."""

    fails = frozenset({"weight_scale"})

    def shares(self, clients):
        counts = [min(int(c.weight), 2**31 - 1) for c in clients]
        return [n / sum(counts) for n in counts]


class AbsentCarriers(DenseRaFLoRA):
    """Clients without samples count as carriers, so their partitions are not empty."""

    fails = frozenset({"zero_weight", "batched", "empty_partition_carry"})

    def read(self, updates, weights, context):
        held = context.positions or [range(u.rank) for u in updates]
        given = zip(updates, weights, held, strict=True)
        return [self.client(u, w, list(own), context.r_max) for u, w, own in given]

    def weight(self, carrying, clients):
        return super().weight(carrying, clients) or 1.0


class NaNInASwallowed(DenseFedAvg):
    """`nan_to_num` on A alone."""

    fails = frozenset({"nonfinite"})

    def step(self, updates, weights, context, state):
        sound = [replace(u, lora_A=u.lora_A.nan_to_num()) for u in updates]
        return super().step(sound, weights, context, state)


class ViewedFlat(DenseFedAvg):
    """`B.view(-1)`, which fails for tensors that are views."""

    fails = frozenset({"layout", "transpose"})

    def client(self, update, weight, held, r_max):
        update.lora_B.view(-1)
        return super().client(update, weight, held, r_max)


class WeightedInPlaceLater(ServerMomentum):
    """With a velocity, the clients' tensors are weighted in place."""

    fails = frozenset({"inputs_untouched"})

    def step(self, updates, weights, context, state):
        result = super().step(updates, weights, context, state)
        if state:
            updates[-1].lora_A.mul_(2)
        return result


class RandomLater(ServerMomentum):
    """From the second round on the range is found with random vectors."""

    fails = frozenset({"determinism"})

    def velocity(self, last, mean):
        moved = super().velocity(last, mean)
        if last is None:
            return moved
        basis = torch.linalg.qr(moved @ torch.randn(moved.shape[1], moved.shape[1]).to(moved))[0]
        return basis @ (basis.T @ moved)


class VelocityByPlace(ServerMomentum):
    """Every client has a velocity, indexed by its place in the cohort."""

    fails = frozenset({"client_order"})

    def step(self, updates, weights, context, state):
        self.check(updates, context)
        clients = self.read(updates, weights, context)
        kept = {}
        for place, client in enumerate(clients):
            own, name = client.dW, f"velocity {place}"
            kept[name] = own + (self.MOMENTUM * state[name] if name in state else 0)
        pairs = zip(self.shares(clients), kept.values(), strict=True)
        adapter = self.write(sum(p * v for p, v in pairs), context.r_max, updates[0].dtype)
        return Aggregated(adapter), kept


class SignsOfTheLastRun(DenseFedAvg):
    """Singular vectors get the previous signs, which the rule stores outside of its state."""

    fails = frozenset({"independent_runs"})

    def __init__(self):
        self.last = None

    def write(self, W, r, dtype):
        found = super().write(W, r, dtype)
        if self.last is not None and self.last.shape == found.lora_B.shape:
            signs = ((self.last.double() * found.lora_B.double()).sum(0) < 0).to(dtype) * -2 + 1
            found = LoRAFactors(found.lora_A * signs.unsqueeze(-1), found.lora_B * signs)
        self.last = found.lora_B
        return found


@dataclass(frozen=True)
class WeightsOfNoCarrier(RaFLoRA):
    """The weight of a direction without carriers is 0 / 0, which products do not use."""

    name: ClassVar[str] = "weights_of_no_carrier"
    fails = frozenset({"direction_weights"})

    def direction_weights(self, weights, members, norms=None):
        contributing = weights.unsqueeze(-1) * members
        return contributing / contributing.sum(-2, keepdim=True)


@dataclass(frozen=True)
class SeedsForLayers(FedAvg):
    """A batch of layers and seeds is treated as one of seeds and layers."""

    name: ClassVar[str] = "seeds_for_layers"
    fails = frozenset({"batched"})

    def adapter(self, *args, **options):
        own = super().adapter(*args, **options)
        if own.lora_A.ndim < 4:
            return own
        return LoRAFactors(own.lora_A.transpose(0, 1), own.lora_B.transpose(0, 1), own.scaling)


CASES = (
    ThreeLevels,
    EightDirections,
    SmallSharesDropped,
    MomentumNotDeclared,
    PositionsIgnored,
    CoverageByRank,
    PositionsOfAll,
    TensorFloat,
    HalfSums,
    OneClientClipped,
    EightClients,
    SquareCore,
    RsLoRAUnknown,
    ZeroClientsLeftOut,
    WholeWeights,
    AbsentCarriers,
    NaNInASwallowed,
    ViewedFlat,
    WeightedInPlaceLater,
    RandomLater,
    VelocityByPlace,
    SignsOfTheLastRun,
    WeightsOfNoCarrier,
    SeedsForLayers,
)
