"""Rules with one bug each in what they average, and the checks that find it.

Every rule declares the properties of the healthy rule that it was made from. `fails` lists the
checks that the bug breaks, including laws declared absent that hold because of the bug.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from healthy_rules import (
    FEDAVG,
    ZERO_PAD,
    DenseFedAvg,
    DenseRaFLoRA,
    DenseZeroPad,
    StackedExact,
)

from fedlora_sim import LoRAFactors

# Checks that detect a wrong weighted mean of more than one client.
MEAN = {"exact", "best_approximation", "equal_ranks_fedavg", "multiplier"}
ALONE = {"single_client", "identical_clients"}
HULLS = {"energy_hull", "partition_energy_hull"}
GAUGES = {"full_gauge", "partition_gauge"}
DILUTION = {"low_rank_client_keeps", "low_rank_client_dilutes"}


class AlphaOverRIgnored(DenseFedAvg):
    """`lora_B @ lora_A` from the state dict, without the scaling."""

    fails = MEAN | ALONE | HULLS | {"scaling_convention"}

    def client(self, update, weight, held, r_max):
        return super().client(replace(update, scaling=1.0), weight, held, r_max)


class ScalingOnBAlone(DenseZeroPad):
    """alpha/r is multiplied into B before A and B are averaged: another average of factors."""

    fails = frozenset({"scaling_convention", "transpose", "multiplier"})

    def factors(self, clients):
        pairs = list(zip(self.shares(clients), clients, strict=True))
        A, B = sum(p * c.A for p, c in pairs), sum(p * c.scaling * c.B for p, c in pairs)
        return A, B


class VForVT(DenseFedAvg):
    """`U, S, V = torch.linalg.svd(dW)` and then `V[:, :r].T`, although V is already V^T.

    The null space has no unique basis, and the columns of V^T contain its vectors: a change of one
    digit of an update changes the result. Its norm and rank are right.
    """

    fails = (
        MEAN
        | ALONE
        | GAUGES
        | {"homogeneous", "scaling_convention", "orthogonal", "transpose", "linear", "continuous"}
    )

    def client(self, update, weight, held, r_max):
        U, S, V = torch.linalg.svd(update.to(torch.float64).delta())
        r, root = update.rank, S[: update.rank].sqrt()
        wrong = LoRAFactors((V[:, :r] * root).T, U[:, :r] * root)
        return super().client(wrong, weight, held, r_max)


class TransposedResidual(StackedExact):
    """The residual is stored transposed, which square layers accept."""

    fails = (
        ALONE
        | HULLS
        | GAUGES
        | {"exact", "multiplier", "linear", "low_rank_client_dilutes", "finite", "shapes"}
        | {"client_order", "weight_scale", "weight_repetition", "zero_weight", "homogeneous"}
        | {"scaling_convention", "orthogonal", "transpose"}
        | {"determinism", "dtypes", "batched", "continuous", "layout"}
        | {"stateless", "independent_runs", "column_order", "rank_indices"}
    )

    def base(self, residual):
        return super().base(residual.T)


class OnlyTheFirstClient(DenseFedAvg):
    """`global_dict = copy(w[0])`, and the loop that should add the others starts at len(w)."""

    fails = MEAN | DILUTION | {"client_order"}

    def mean(self, clients, context):
        return clients[0].dW


class OnlyTheFirstFile(DenseFedAvg):
    """The same, before clients without samples are left out."""

    fails = MEAN | DILUTION | {"client_order", "zero_weight", "batched"}

    def read(self, updates, weights, context):
        first = replace(context, positions=context.positions and context.positions[:1])
        return super().read(updates[:1], [1.0], first)


class WeightsNotNormalized(DenseFedAvg):
    """Sample counts in place of shares."""

    fails = MEAN | ALONE | HULLS | DILUTION | {"weight_scale", "dtypes", "continuous"}

    def shares(self, clients):
        return [c.weight for c in clients]


class EqualWeights(DenseFedAvg):
    """`sum(deltas) / len(deltas)`: sample counts are required but not used."""

    fails = MEAN | {"weight_repetition"}

    def shares(self, clients):
        return [1 / len(clients)] * len(clients)


class WeightsTwice(DenseFedAvg):
    """Stacks of `p_k B_k` and of `p_k A_k`, each weighted: the product has the square."""

    fails = MEAN | {"identical_clients", "weight_repetition"}

    def shares(self, clients):
        return [p**2 for p in super().shares(clients)]


class PaddedColumnsTwice(DenseRaFLoRA):
    """A padded column is divided by its contributors and then multiplied by its coverage."""

    # It is FedAvg except for carried partitions, and keeps laws that raFLoRA declares absent.
    fails = DILUTION | {"partition_identity", "multiplier", "energy_hull", "full_gauge"}

    def weight(self, carrying, clients):
        return super().weight(clients, clients)


class FactorsSoldAsExact(DenseZeroPad):
    """The average of A times the average of B, called the average of the updates."""

    properties = FEDAVG
    fails = MEAN | HULLS | GAUGES | {"linear"}


class DilutedOnceDeclared(DenseZeroPad):
    """An average of factors that declares dilution by W, but dilutes both A and B."""

    properties = replace(ZERO_PAD, multiplier=lambda coverage: coverage)
    fails = frozenset({"multiplier"})


class ShapesGuessed(DenseFedAvg):
    """Factors are distinguished by shape: A is the one with fewer rows than columns.

    Padded to the smaller side of a square layer, both factors are square.
    """

    fails = (
        MEAN | ALONE | HULLS | GAUGES | {"orthogonal", "low_rank_client_dilutes", "rank_indices"}
    )

    def client(self, update, weight, held, r_max):
        own = super().client(update, weight, held, r_max)
        return replace(own, A=own.B, B=own.A) if own.A.shape == own.B.shape else own


class RunningMean(DenseFedAvg):
    """`mean = (mean + dW_k) / 2` in a loop over clients: the last one has weight 1/2."""

    fails = MEAN | {"client_order", "weight_repetition"}

    def mean(self, clients, context):
        mean = clients[0].dW
        for client in clients[1:]:
            mean = (mean + client.dW) / 2
        return mean


class NormWeights(DenseFedAvg):
    """`n_k ||dW_k||` as weights, called FedAvg."""

    fails = MEAN | {"linear"}

    def shares(self, clients):
        own = [c.weight * float(torch.linalg.matrix_norm(c.dW)) for c in clients]
        return [w / sum(own) for w in own] if sum(own) else super().shares(clients)


class ZeroWeightsFilled(DenseFedAvg):
    """A count of 0 is treated as missing and replaced by the mean of the others."""

    fails = MEAN | {"zero_weight", "weight_repetition", "batched"}

    def read(self, updates, weights, context):
        known = [w for w in weights if w > 0]
        filled = [w or sum(known) / len(known) for w in weights]
        return super().read(updates, filled, context)


class UpdatesClipped(DenseFedAvg):
    """Updates are clipped to a norm of 1, as under differential privacy, without saying so."""

    fails = MEAN | ALONE | {"homogeneous", "linear"}

    def mean(self, clients, context):
        pairs = zip(self.shares(clients), clients, strict=True)
        return sum(p * c.dW / max(1.0, float(torch.linalg.matrix_norm(c.dW))) for p, c in pairs)


class SmallUpdatesDropped(DenseFedAvg):
    """Clients with an update much smaller than the largest are left out as free riders."""

    fails = MEAN | {"linear", "continuous", "low_rank_client_dilutes"}

    SHARE = 0.55  # not 1/2, at which rounding would decide for norms of whole numbers

    def read(self, updates, weights, context):
        clients = super().read(updates, weights, context)
        norms = [float(torch.linalg.matrix_norm(c.dW)) for c in clients]
        return [
            c for c, norm in zip(clients, norms, strict=True) if norm >= self.SHARE * max(norms)
        ]


class ResidualKept(StackedExact):
    """FedAvg that adds the truncated part to the base, and still declares rank r_max."""

    properties = FEDAVG
    fails = frozenset({"rank_bound", "best_approximation", "equal_ranks_fedavg"})


class SinglePrecision(DenseFedAvg):
    """Products and sums in float32 for updates of any dtype, with errors of 1e-7."""

    fails = (
        MEAN
        | ALONE
        | HULLS
        | GAUGES
        | {"client_order", "weight_repetition", "homogeneous", "scaling_convention"}
        | {"orthogonal", "transpose", "linear", "weight_scale", "rank_indices"}
    )

    def mean(self, clients, context):
        weights = torch.tensor([c.weight for c in clients], dtype=torch.float32)
        deltas = [c.scaling * c.B.float() @ c.A.float() for c in clients]
        return sum(p * dW for p, dW in zip(weights / weights.sum(), deltas, strict=True))


AVERAGES = (
    AlphaOverRIgnored,
    ScalingOnBAlone,
    VForVT,
    TransposedResidual,
    OnlyTheFirstClient,
    OnlyTheFirstFile,
    WeightsNotNormalized,
    EqualWeights,
    WeightsTwice,
    PaddedColumnsTwice,
    FactorsSoldAsExact,
    DilutedOnceDeclared,
    ShapesGuessed,
    RunningMean,
    NormWeights,
    ZeroWeightsFilled,
    UpdatesClipped,
    SmallUpdatesDropped,
    ResidualKept,
    SinglePrecision,
)
