"""The server's side of a federation in memory, for the training loop of any framework.

The state of the server is one flat dict of tensors: the global adapter under PEFT's keys and, for
rules that move a part of the update into the base weights (`flora`, `fedex`), the sum of these
corrections under `base_correction.<key>`. A run resumes from its state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedlora_sim.errors import check_choice, check_positive_int, check_seed, expected
from fedlora_sim.lowrank import LowRankProduct
from fedlora_sim.peft.aggregate import check_request
from fedlora_sim.peft.agreement import MODULES, AdapterCohort
from fedlora_sim.peft.read import resized
from fedlora_sim.peft.state_dicts import (
    ShapeConfig,
    StateDict,
    StateDictAdapter,
    aggregate_state_dicts,
    copies,
    state_dict_config,
    truncate_state_dict,
)
from fedlora_sim.peft.write import base_factors, stored
from fedlora_sim.randomness import stream
from fedlora_sim.rules import get_rule

CORRECTION = "base_correction."
"""Prefix of the keys of the base correction in a state."""


@dataclass(frozen=True, kw_only=True)
class AdapterServer:
    """Aggregate the adapters of each round, and cut the global one to the rank of each client.

    Args:
        lora_alpha: alpha of all clients and of the global adapter.
        rule: name of a rule, with options after a colon.
        use_rslora: whether the scaling is `alpha / sqrt(r)` instead of `alpha / r`.
        rank_levels: ranks of the federation; None: those of the clients and of the global adapter.
        empty_partition: `zero | carry | error`, see `aggregate`.
        modules: `same | shared | owners`, see `aggregate_adapters`.
        options: other options of the clients' LoraConfig, see `aggregate_state_dicts`.
        target_parameters: number of experts of each parameter, see `aggregate_state_dicts`.
        device: compute device: `auto | cpu | cuda | mps`.
        seed: seed for components without energy; each round draws its own.

    Raises:
        InputError: names the argument, its value and what was expected.
    """

    lora_alpha: float
    rule: str = "raflora"
    use_rslora: bool = False
    rank_levels: Sequence[int] | None = None
    empty_partition: str = "carry"
    modules: str = "same"
    options: Mapping[str, Any] | None = None
    target_parameters: Mapping[str, int] | None = None
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_request(self.rule, self.rank_levels, self.empty_partition, None)
        check_choice("modules", self.modules, MODULES)
        check_seed("seed", self.seed)
        self._config()

    @property
    def frozen_a(self) -> bool:
        """Whether the rule keeps A, so that a change of scaling goes to B."""
        return get_rule(self.rule).frozen_a

    def rank_of(self, state: StateDict) -> int:
        """Return the rank of the global adapter, the highest of its modules.

        Raises:
            InputError: if the state holds no adapter; names the key and what was expected.
        """
        return max(self._adapter("state", split_state(state)[0]).config.ranks.values())

    def check_reply(self, name: str, reply: StateDict, state: StateDict, rank: int) -> None:
        """Refuse a client's adapter that cannot be aggregated.

        Args:
            name: the client, for messages.
            reply: the client's state dict.
            state: the state of the server.
            rank: the rank that the client states.

        Raises:
            InputError: names the client or the key, its value and what was expected.
        """
        client = self._adapter(name, reply)
        last = self._adapter("global adapter", split_state(state)[0])
        cohort = AdapterCohort([client], [1.0], last, self.modules)
        if check_positive_int(f"{name}: rank", rank) != client.config.rank:
            raise expected(f"{name}: rank", rank, f"{client.config.rank}, the rank of its adapter")
        for module in cohort.modules:
            highest = last.config.ranks.get(module, client.config.rank_of(module))
            if client.config.rank_of(module) > highest:
                own = client.config.rank_of(module)
                wanted = f"at most {highest}, the rank of the global adapter"
                raise expected(f"{name}: rank of {module}", own, wanted)
        for key in client.keys:
            client.tensor(key)  # refuses NaN and infinity

    def aggregate(
        self, state: StateDict, replies: Sequence[StateDict], num_samples: Sequence[float], t: int
    ) -> dict[str, Tensor]:
        """Return the state after a round.

        Args:
            state: the state before the round.
            replies: the state dict of each client.
            num_samples: sample count of each client.
            t: number of the round, from which components without energy are drawn.

        Raises:
            InputError: names the argument or the key, its value and what was expected.
        """
        adapter, correction = split_state(state)
        result = aggregate_state_dicts(
            replies,
            num_samples,
            rule=self.rule,
            lora_alpha=self.lora_alpha,
            use_rslora=self.use_rslora,
            rank_levels=self.rank_levels,
            previous=adapter,
            modules=self.modules,
            empty_partition=self.empty_partition,
            options=self.options,
            target_parameters=self.target_parameters,
            device=self.device,
            seed=int(stream(self.seed, "server", t).integers(2**31)),
            details=True,
        )
        base = result.base or {}
        if correction:
            base = self._sum(correction, base) if base else correction
        return {**result.adapter, **{CORRECTION + key: x for key, x in base.items()}}

    def for_client(self, state: StateDict, rank: int) -> dict[str, Tensor]:
        """Return what a client of a rank receives: its first components, and the correction.

        Raises:
            InputError: if the rank is above that of the global adapter.
        """
        cut, correction = receive_state(
            state,
            rank,
            lora_alpha=self.lora_alpha,
            use_rslora=self.use_rslora,
            frozen_a=self.frozen_a,
            options=self.options,
            target_parameters=self.target_parameters,
        )
        return {**cut, **{CORRECTION + key: x for key, x in correction.items()}}

    def _config(self) -> ShapeConfig:
        return state_dict_config(
            self.lora_alpha, self.use_rslora, self.options, self.target_parameters
        )

    def _adapter(self, name: str, state: StateDict) -> StateDictAdapter:
        return StateDictAdapter(name, state, self._config())

    @torch.no_grad()
    def _sum(self, one: StateDict, other: StateDict) -> dict[str, Tensor]:
        """Return the sum of two updates as one adapter, of no more components than necessary."""
        terms = [self._adapter(CORRECTION, state) for state in (one, other)]
        cohort = AdapterCohort(terms, [1.0, 1.0], modules="owners")
        sums = {}
        for module in cohort.modules:
            found = [
                term.factors(module, torch.float64, torch.device("cpu"))
                for term in cohort.holders(module)
            ]
            weights = [x.lora_A.new_full((x.rank,), x.scaling) for x in found]
            blocks = [(x.lora_B, x.lora_A) for x in found]
            total = base_factors(LowRankProduct(blocks, torch.cat(weights)))
            scaling = self._config().scaling_at(module, total.rank)
            sums[module] = resized(total, total.rank, scaling, frozen_a=False)
        return copies(stored(cohort, sums))


def split_state(state: StateDict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the adapter and the base correction in a state; the second is empty for most rules."""
    if not isinstance(state, Mapping):
        raise expected("state", f"<{type(state).__name__}>", "tensors by key")
    adapter = {key: x for key, x in state.items() if not str(key).startswith(CORRECTION)}
    correction = {key.removeprefix(CORRECTION): x for key, x in state.items() if key not in adapter}
    return adapter, correction


def receive_state(
    state: StateDict, rank: int, **truncation: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what a client of a rank trains, and what it first merges into its base weights.

    Args:
        state: the state of the server, or what `AdapterServer.for_client` returned of it.
        rank: the client's rank.
        truncation: `lora_alpha` and other arguments of `truncate_state_dict`.

    Returns:
        State dicts for `peft.set_peft_model_state_dict`: the adapter of this rank, and the base
        correction, an adapter of another rank; it is empty for rules without one.

    Raises:
        InputError: if the rank is above that of the global adapter.
    """
    adapter, correction = split_state(state)
    return truncate_state_dict(adapter, rank, **truncation), correction
