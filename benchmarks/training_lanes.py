"""Ways to take the same optimizer step of a cohort: the package's and those it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.rivals.plain_torch import LoRALinear
from fedlora_sim import Scenario
from fedlora_sim.finetune.local import Stack, StackDescent, client_losses
from fedlora_sim.finetune.stacked import Adapters, stacked_modules
from fedlora_sim.tasks import Examples, Task
from fedlora_sim.tasks.digits import TinyTransformer
from fedlora_sim.tasks.targets import resolve_targets
from fedlora_sim.tasks.task import logits_of

BATCH = 8  # samples per step of a client
ALPHA = 16.0  # scaling alpha / r
RATE = 1e-4  # Adam takes full steps even on rounding errors: differences grow with the rate
TRAINING = Scenario("1", fidelity="training", learning_rate=RATE, local_steps=1)
SAMPLES = 2_000
TARGETS = ("q_proj", "v_proj", "fc1", "fc2")


class Lane(Protocol):
    """Interface of a lane."""

    def step(self, index: Tensor) -> None:
        """Take one step of Adam on the samples `index` of all clients, (K, b)."""


class Cohort(Lane, Protocol):
    """A lane that trains every client's own adapter."""

    def adapters(self) -> Adapters:
        """Return the clients' current adapters, zero-padded to the highest rank."""


@dataclass(frozen=True, eq=False)
class Case:
    """Initial state of all lanes.

    Args:
        task: model and data.
        ranks: ranks of the clients, ascending.
        start: their adapters, both factors random, zero-padded to the highest rank.
    """

    task: Task
    ranks: tuple[int, ...]
    start: Adapters

    @property
    def scaling(self) -> Tensor:
        """LoRA scaling of each client, (K,)."""
        return ALPHA / torch.tensor(self.ranks, dtype=torch.float64)

    def batches(self, steps: int) -> Tensor:
        """Return the samples of a number of steps, (steps, K, b)."""
        rng = torch.Generator().manual_seed(1)
        shape = (steps, len(self.ranks), BATCH)
        return torch.randint(len(self.task.train), shape, generator=rng).to(self.task.device)


def image_task(d_model: int, patch: tuple[int, int], dtype: torch.dtype, device: str) -> Task:
    """Return a two-layer transformer with random weights, and random images."""
    rng = torch.Generator().manual_seed(0)
    model = TinyTransformer(rng, d_model=d_model, patch=patch).requires_grad_(False).eval()
    images = torch.rand(SAMPLES, 8, 8, generator=rng)
    data = Examples({"images": images}, torch.randint(10, (SAMPLES,), generator=rng))
    task = Task(model, data, data, resolve_targets(model, TARGETS))
    return task.to(torch.device(device), dtype)


def make_case(task: Task, ranks: tuple[int, ...]) -> Case:
    """Return clients of these ranks on a task."""
    rng = torch.Generator().manual_seed(2)
    alive = torch.arange(max(ranks)) < torch.tensor(ranks).unsqueeze(1)
    start = {}
    for name in task.target_modules:
        d_out, d_in = task.model.get_submodule(name).weight.shape
        lora_a = torch.randn(len(ranks), max(ranks), d_in, generator=rng) / d_in**0.5
        lora_b = 0.1 * torch.randn(len(ranks), d_out, max(ranks), generator=rng) / max(ranks) ** 0.5
        pair = lora_a * alive.unsqueeze(2), lora_b * alive.unsqueeze(1)
        start[name] = (pair[0].to(task.device, task.dtype), pair[1].to(task.device, task.dtype))
    return Case(task, ranks, start)


class Stacked:
    """The package's code."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.model = Stack(case.start, case.scaling).on(case.task.model)
        modules: list[Any] = list(stacked_modules(self.model).values())
        self.descent = StackDescent(modules, TRAINING)

    def step(self, index: Tensor) -> None:
        real = torch.ones_like(index, dtype=torch.bool)
        self.descent.step(client_losses(self.case.task, self.model, index, real).sum())

    def adapters(self) -> Adapters:
        found = {name: self.model.get_submodule(name) for name in self.case.start}
        return {name: (m.lora_A.detach(), m.lora_B.detach()) for name, m in found.items()}


class Alone:
    """One adapter in plain PyTorch.

    Args:
        case: the cohort.
        client: number of the client.
        module: the adapted linear map.
        fused: Adam in one kernel; False leaves PyTorch's default.
    """

    def __init__(
        self, case: Case, client: int, module: type[LoRALinear], fused: bool = False
    ) -> None:
        self.task, self.rank = case.task, case.ranks[client]

        def build(base: nn.Linear, name: str) -> nn.Module:
            lora_a, lora_b = case.start[name]
            adapted = module(base, self.rank, ALPHA / self.rank)
            adapted.lora_A.data.copy_(lora_a[client, : self.rank])
            adapted.lora_B.data.copy_(lora_b[client, :, : self.rank])
            return adapted

        self.model = with_modules(case, build)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=RATE, fused=fused or None)

    def step(self, index: Tensor) -> None:
        """Take a step on these samples, (n,)."""
        batch = self.task.train.take(index)
        loss = functional.cross_entropy(logits_of(self.model, batch.inputs), batch.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Limit(Alone):
    """All samples of the cohort in one batch of one adapter: the cost of the arithmetic."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, 0, LeanLoRALinear, fused=True)

    def step(self, index: Tensor) -> None:
        super().step(index.flatten())


class Loop:
    """One client after the other, as a user would write it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.clients = [Alone(case, client, LoRALinear) for client in range(len(case.ranks))]

    def step(self, index: Tensor) -> None:
        for client, own in zip(self.clients, index, strict=True):
            client.step(own)

    def adapters(self) -> Adapters:
        found = {}
        for name in self.case.start:
            modules = [client.model.get_submodule(name) for client in self.clients]
            lora_a = [m.lora_A.detach().unsqueeze(0) for m in modules]
            lora_b = [m.lora_B.detach().unsqueeze(0) for m in modules]
            found[name] = (padded(lora_a, -2), padded(lora_b, -1))
        return found


class LeanLoRALinear(LoRALinear):
    """One adapter with the fewest passes over memory possible in plain PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        base, flat = self.base(x), x.flatten(0, -2)
        outer = (self.scaling * self.lora_B).mT
        return torch.addmm(base.flatten(0, -2), flat @ self.lora_A.mT, outer).view_as(base)


def with_modules(case: Case, build: Callable[[nn.Linear, str], nn.Module]) -> nn.Module:
    """Return a copy of the model with its targets replaced; frozen parameters are shared."""
    model = copy.deepcopy(case.task.model, {id(p): p for p in case.task.model.parameters()})
    for name in case.start:
        parent, _, leaf = name.rpartition(".")
        base: Any = case.task.model.get_submodule(name)
        setattr(model.get_submodule(parent), leaf, build(base, name))
    return model


def trained(case: Case, lane: Cohort, steps: int) -> Adapters:
    """Return a cohort's adapters after a number of steps."""
    for index in case.batches(steps):
        lane.step(index)
    return lane.adapters()


def difference(found: Adapters, wanted: Adapters) -> float:
    """Return the relative difference in norm over all adapters."""
    flat = [
        torch.cat([x.double().flatten() for name in wanted for x in own[name]])
        for own in (found, wanted)
    ]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def padded(parts: Any, rank_axis: int) -> Tensor:
    """Return factors of different ranks as one zero-padded tensor, clients first."""
    highest = max(part.shape[rank_axis] for part in parts)
    grown = []
    for part in parts:
        missing = highest - part.shape[rank_axis]
        pad = (0, missing) if rank_axis == -1 else (0, 0, 0, missing)
        grown.append(functional.pad(part.detach(), pad))
    return torch.cat(grown)
