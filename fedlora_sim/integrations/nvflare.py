"""NVFlare: an aggregator for LoRA adapters of unequal ranks (`pip install "fedlora-sim[nvflare]"`).

The server broadcasts one global adapter of the highest rank; `receive` cuts it to the rank of a
site. Sites return a PEFT state dict, their sample count and their rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.aggregators.weighted_aggregation_helper import (
    WeightedAggregationHelper,
    filter_aggregatable_metrics,
)
from nvflare.app_common.app_constant import AppConstants
from torch import Tensor

from fedlora_sim.errors import InputError, check_finite, expected
from fedlora_sim.lora import as_tensor
from fedlora_sim.peft.read import PREFIX
from fedlora_sim.peft.server import CORRECTION, AdapterServer, receive_state

Params = dict[str, Any]


class FedLoRAAggregator(ModelAggregator):
    """Aggregate LoRA adapters by any rule; sites may have unequal ranks.

    For `FedAvgRecipe(aggregator=...)` and other controllers that keep the global model in the
    context, from which a run resumes. Parameters are tensors or NumPy arrays, and keys may have a
    prefix, such as `model.`; the result has the same form. Under `base_correction.<key>` it holds
    what a rule (`flora`, `fedex`) has moved into the base weights.

    Args:
        lora_alpha: alpha of all sites and of the global adapter.
        rule: name of a rule, with options after a colon.
        use_rslora: whether the scaling is `alpha / sqrt(r)` instead of `alpha / r`.
        rank_levels: ranks of the federation; None: those of the sites and of the global adapter.
        empty_partition: `zero | carry | error`, see `fedlora_sim.aggregate`.
        modules: `same | shared | owners`, see `fedlora_sim.peft.aggregate_adapters`.
        options: other options of the sites' LoraConfig.
        target_parameters: number of experts that each parameter stacks.
        seed: seed for components without energy.
        weighted_by_key: key of the sample count in a model's meta.
        rank_key: key of the site's rank in a model's meta.
        save_dir: folder for the global adapter of each round, `round_<n>.pt`, which
            `fedlora-sim diagnose` reads; NVFlare itself keeps the last one only.

    Raises:
        InputError: names the argument, its value and what was expected.
    """

    # NVFlare writes a component's arguments to the job from attributes of the same names.
    def __init__(
        self,
        lora_alpha: float,
        rule: str = "raflora",
        use_rslora: bool = False,
        rank_levels: list[int] | None = None,
        empty_partition: str = "carry",
        modules: str = "same",
        options: dict[str, Any] | None = None,
        target_parameters: dict[str, int] | None = None,
        seed: int = 0,
        weighted_by_key: str = "num_examples",
        rank_key: str = "lora_rank",
        save_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.lora_alpha, self.rule, self.use_rslora = lora_alpha, rule, use_rslora
        self.rank_levels, self.empty_partition, self.modules = rank_levels, empty_partition, modules
        self.options, self.target_parameters, self.seed = options, target_parameters, seed
        self.weighted_by_key, self.rank_key, self.save_dir = weighted_by_key, rank_key, save_dir
        self._server()
        self.reset_stats()

    def reset_stats(self) -> None:
        """Forget the models of the last round."""
        self._replies: list[tuple[dict[str, Tensor], float]] = []
        self._metrics = WeightedAggregationHelper()

    def accept_model(self, model: FLModel) -> None:
        """Keep a site's adapter for the aggregation; log an error and leave out a bad one."""
        meta = model.meta or {}
        site = f"model of {meta.get('client_name', f'site {len(self._replies) + 1}')}"
        try:
            if model.params_type != ParamsType.FULL:
                raise expected(f"{site}: params_type", model.params_type, "FULL")
            for key in (self.weighted_by_key, self.rank_key):
                if key not in meta:
                    raise expected(f"{site}: meta", sorted(meta), f"a number under {key!r}")
            state, _, _ = _plain(self._global())
            weight_name = f"{site}: {self.weighted_by_key}"
            weight = check_finite(weight_name, meta[self.weighted_by_key], minimum=0)
            reply, _, _ = _plain(model.params)
            self._server().check_reply(site, reply, state, meta[self.rank_key])
        except InputError as error:
            self.error(f"left out: {error}")
            return
        self._replies.append((reply, weight))
        metrics = filter_aggregatable_metrics(model.metrics or {})
        if metrics and weight > 0:
            name = meta.get("client_name", "")
            self._metrics.add(metrics, weight, name, model.current_round)

    def aggregate_model(self) -> FLModel:
        """Return the global adapter after the round; the last one if no site's model is kept.

        Raises:
            InputError: if the adapters cannot be aggregated; names what was expected.
        """
        last = self._global()
        state, prefix, is_numpy = _plain(last)
        t = self.fl_ctx.get_prop(AppConstants.CURRENT_ROUND, 0)
        if not self._replies:
            self.warning("no model was kept: the global adapter stays as it is")
            return FLModel(params_type=ParamsType.FULL, params=last, current_round=t)
        adapters, weights = zip(*self._replies, strict=True)
        found = self._server().aggregate(state, adapters, weights, t)
        params: Params = {prefix + key: x.numpy() if is_numpy else x for key, x in found.items()}
        if self.save_dir is not None:
            folder = Path(self.save_dir)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save({"model": found}, folder / f"round_{t + 1}.pt")
        metrics = self._metrics.get_result() or None
        self.reset_stats()
        return FLModel(ParamsType.FULL, params, metrics=metrics, current_round=t)

    def _server(self) -> AdapterServer:
        return AdapterServer(
            lora_alpha=self.lora_alpha,
            rule=self.rule,
            use_rslora=self.use_rslora,
            rank_levels=self.rank_levels,
            empty_partition=self.empty_partition,
            modules=self.modules,
            options=self.options,
            target_parameters=self.target_parameters,
            device="cpu",
            seed=self.seed,
        )

    def _global(self) -> Params:
        """Return the global adapter from which the sites started, out of the context."""
        found = self.fl_ctx.get_prop(AppConstants.GLOBAL_MODEL) if self.fl_ctx else None
        if not found or not found.get(ModelLearnableKey.WEIGHTS):
            wanted = "the initial adapter of the highest rank, as the job's model"
            raise expected("global model", None, wanted)
        return dict(found[ModelLearnableKey.WEIGHTS])


def _plain(params: Mapping[str, Any]) -> tuple[dict[str, Tensor], str, bool]:
    """Return PEFT's keys and tensors, the prefix of the keys, and whether they were arrays."""
    heads = {key.partition(PREFIX)[0].removesuffix(CORRECTION) for key in params if PREFIX in key}
    prefix = next(iter(heads)) if len(heads) == 1 else ""
    is_numpy = any(isinstance(value, np.ndarray) for value in params.values())
    tensors = {key.removeprefix(prefix): as_tensor(key, value) for key, value in params.items()}
    return tensors, prefix, is_numpy


def receive(
    model: FLModel, rank: int, *, lora_alpha: float, **options: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what a site of a rank trains, and what it first merges into its base weights.

    Args:
        model: what the site received.
        rank: the site's rank.
        lora_alpha: alpha of all sites and of the global adapter.
        options: other arguments of `truncate_state_dict`; `frozen_a=True` for the rule `ffa`.

    Returns:
        See `fedlora_sim.peft.server.receive_state`.

    Raises:
        InputError: if the rank is above that of the global adapter.
    """
    state, _, _ = _plain(model.params)
    return receive_state(state, rank, lora_alpha=lora_alpha, **options)
