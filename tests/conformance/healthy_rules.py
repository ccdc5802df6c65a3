"""Rules written from their definitions in dense linear algebra.

They share only the containers with the package's rules. Each step that is a separate method is
broken by one of the broken rules in `broken_averages`, `broken_cases` and `broken_rounds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fedlora_sim import LoRAFactors
from fedlora_sim.errors import expected
from fedlora_sim.lowrank import LowRankProduct
from fedlora_sim.rules import Aggregated, Properties

FEDAVG = Properties(
    transpose=True,
    linear=True,
    exact=True,
    best_approximation=True,
    rank_bound=True,
    energy_hull="whole",
    gauge="full",
    partition_identity=False,
    equal_ranks_fedavg=True,
    low_rank_client="dilutes",
    unknown_level=True,
    continuous=True,
    batched=True,
    multiplier=lambda coverage: coverage,
)
RAFLORA = replace(
    FEDAVG,
    exact=False,
    best_approximation=False,
    energy_hull="partition",
    gauge="partition",
    partition_identity=True,
    low_rank_client="keeps",
    empty_partitions=True,
    multiplier=lambda coverage: (coverage > 0).double(),
)
ZERO_PAD = replace(
    FEDAVG,
    linear=False,
    exact=False,
    best_approximation=False,
    energy_hull="none",
    gauge="none",
    equal_ranks_fedavg=False,
    multiplier=torch.square,
)
STACKED = replace(FEDAVG, best_approximation=False, rank_bound=False, equal_ranks_fedavg=False)


@dataclass
class Client:
    """A client's factors in float64, zero-padded to r_max, and which rank indices are its own."""

    weight: float
    scaling: float
    A: torch.Tensor
    B: torch.Tensor
    held: list[int]

    @property
    def dW(self):
        return self.scaling * self.B @ self.A


class DenseFedAvg:
    """`sum_k n_k dW_k / sum_k n_k`, cut to r_max by SVD."""

    name = "dense_fedavg"
    source = "arXiv 2402.11505, Sec. 3"
    properties = FEDAVG

    def step(self, updates, weights, context, state):
        self.check(updates, context)
        clients = self.read(updates, weights, context)
        mean = self.mean(clients, context)
        return Aggregated(self.write(mean, self.r_max(updates, context), updates[0].dtype)), {}

    def check(self, updates: Sequence[LoRAFactors], context):
        for k, update in enumerate(updates):
            if not (update.lora_A.isfinite().all() and update.lora_B.isfinite().all()):
                raise expected(f"updates[{k}]", "NaN or Inf", "finite factors")
            if update.rank not in context.rank_levels:
                levels = list(context.rank_levels)
                raise expected(f"updates[{k}].rank", update.rank, f"one of {levels}")

    def r_max(self, updates, context):
        return context.r_max

    def read(self, updates, weights, context):
        """Return the clients that take part."""
        held = context.positions or [range(u.rank) for u in updates]
        r_max, given = self.r_max(updates, context), zip(updates, weights, held, strict=True)
        return [self.client(u, w, list(own), r_max) for u, w, own in given if w > 0]

    def client(self, update, weight, held, r_max):
        wide = update.to(torch.float64)
        A = wide.lora_A.new_zeros(r_max, update.d_in)
        B = wide.lora_B.new_zeros(update.d_out, r_max)
        A[held], B[:, held] = wide.lora_A, wide.lora_B
        return Client(float(weight), update.scaling, A, B, held)

    def shares(self, clients):
        total = sum(c.weight for c in clients)
        return [c.weight / total for c in clients]

    def mean(self, clients, context):
        return sum(p * c.dW for p, c in zip(self.shares(clients), clients, strict=True))

    def write(self, W, r, dtype):
        u, s, vh = torch.linalg.svd(W, full_matrices=False)
        root = s[:r].sqrt()
        return LoRAFactors(root.unsqueeze(-1) * vh[:r], u[:, :r] * root).to(dtype)


class DenseRaFLoRA(DenseFedAvg):
    """Partition by partition, over those who carry it: `sum_{C_h} n_k dW_kh / sum_{C_h} n_k`."""

    name = "dense_raflora"
    source = "arXiv 2602.13486, Sec. 5, Eq. 8"
    properties = RAFLORA

    def mean(self, clients, context):
        low, total = 0, 0
        for level in self.levels(clients, context):
            part = list(range(low, level))
            total, low = total + self.partition(clients, part, context), level
        return total

    def levels(self, clients, context):
        """Return the partitions; if clients may carry any directions, one per rank index."""
        return context.rank_levels if context.positions is None else range(1, context.r_max + 1)

    def partition(self, clients, part, context):
        carrying = [c for c in clients if self.carries(c, part)]
        if not carrying:
            return self.empty(part, context)
        weight = self.weight(carrying, clients)
        return sum(c.weight / weight * self.columns(c, part) for c in carrying)

    def carries(self, client, part):
        return set(part) <= set(client.held)

    def weight(self, carrying, clients):
        return sum(c.weight for c in carrying)

    def columns(self, client, part):
        return client.scaling * client.B[:, part] @ client.A[part]

    def empty(self, part, context):
        last = context.previous
        if context.empty_partition == "error":
            raise expected("empty_partition", "error", f"a client that carries {part}")
        if context.empty_partition == "zero":
            return last.lora_B.new_zeros(last.d_out, last.d_in, dtype=torch.float64)
        wide = last.to(torch.float64)
        return wide.scaling * wide.lora_B[:, part] @ wide.lora_A[part]


class DenseZeroPad(DenseFedAvg):
    """`A = sum_k p_k [A_k; 0]` and `B = sum_k p_k [B_k, 0]`, the scaling shared between them."""

    name = "dense_zero_pad"
    source = "arXiv 2305.05644"
    properties = ZERO_PAD

    def step(self, updates, weights, context, state):
        self.check(updates, context)
        A, B = self.factors(self.read(updates, weights, context))
        return Aggregated(LoRAFactors(A, B).to(updates[0].dtype)), {}

    def factors(self, clients):
        pairs = list(zip(self.shares(clients), clients, strict=True))
        A = sum(p * c.scaling**0.5 * c.A for p, c in pairs)
        B = sum(p * c.scaling**0.5 * c.B for p, c in pairs)
        return A, B


class StackedExact(DenseZeroPad):
    """The average of factors as the adapter, and what it misses of the mean in the base."""

    name = "stacked_exact"
    source = "arXiv 2410.09432, Sec. 3"
    properties = STACKED

    def step(self, updates, weights, context, state):
        self.check(updates, context)
        clients = self.read(updates, weights, context)
        A, B = self.factors(clients)
        adapter = LoRAFactors(A, B).to(updates[0].dtype)
        residual = self.mean(clients, context) - adapter.delta().double()
        return Aggregated(adapter, self.base(residual)), {}

    def base(self, residual):
        eye = torch.eye(residual.shape[1]).to(residual)
        return LowRankProduct([(residual, eye)], eye.new_ones(len(eye)))


class ServerMomentum(DenseFedAvg):
    """`v = m v + mean`, and v is the round's update: FedAvgM with a server's learning rate of 1."""

    name = "server_momentum"
    source = "arXiv 1909.06335, Sec. 4.3"
    properties = replace(FEDAVG, stateless=False)

    MOMENTUM = 0.9

    def step(self, updates, weights, context, state):
        self.check(updates, context)
        mean = self.mean(self.read(updates, weights, context), context)
        velocity = self.velocity(state.get("velocity"), mean)
        adapter = self.write(velocity, context.r_max, updates[0].dtype)
        return Aggregated(adapter), {"velocity": velocity}

    def velocity(self, last, mean):
        return mean if last is None else self.MOMENTUM * last + mean


HEALTHY_RULES = (DenseFedAvg, DenseRaFLoRA, DenseZeroPad, StackedExact, ServerMomentum)
