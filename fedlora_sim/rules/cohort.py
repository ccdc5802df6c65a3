"""The cohort and the result of a round, and the checks of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedlora_sim.errors import check_choice, check_positive_int, check_sequence, expected
from fedlora_sim.federation import EMPTY_PARTITION, check_num_samples
from fedlora_sim.lora import LoRAFactors, best_factors, check_tensor_finite
from fedlora_sim.lowrank import (
    LazySequence,
    LowRankProduct,
    StartingDirections,
    compute_dtype,
    is_safe,
    pad_last,
    times_power,
)

# The cohort: updates, weights and carried directions of one round


@dataclass(frozen=True, eq=False)
class StackedUpdates(Sequence[LoRAFactors]):
    """Updates of one rank as one pair of tensors; an item is a view of one client's factors.

    Sums over the clients take one operation for all of them.

    Args:
        factors: `lora_A` (..., K, r, d_in), `lora_B` (..., K, d_out, r), with the scaling of all.
    """

    factors: LoRAFactors

    def __len__(self) -> int:
        return self.factors.lora_A.shape[-3]

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self[i] for i in range(len(self))[k]]
        a, b = (x[..., k, :, :] for x in (self.factors.lora_A, self.factors.lora_B))
        return LoRAFactors(a, b, self.factors.scaling)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return the columns of B (..., r, K, d_out) and the rows of A (..., r, K, d_in).

        The order in memory that needs no copy for sums over the clients.
        """
        return self.factors.lora_B.movedim(-1, -3), self.factors.lora_A.transpose(-3, -2)

    def product(self, weights: Tensor, near: StartingDirections | None) -> LowRankProduct:
        """Return `sum_k B_k diag(w_k) A_k` for weights (..., K, r)."""
        b, a = (x.flatten(-3, -2) for x in self.rows())
        return LowRankProduct([(b.mT, a)], weights.mT.flatten(-2), near)

    def summed(self, weights_b: Tensor, weights_a: Tensor) -> tuple[Tensor, Tensor]:
        """Return `sum_k B_k diag(w_k)` and `sum_k diag(w_k) A_k` for weights (..., K, r)."""
        pairs = zip((weights_b, weights_a), self.rows(), strict=True)
        b, a = ((w.mT.unsqueeze(-2) @ rows).squeeze(-2) for w, rows in pairs)
        return b.mT, a


@dataclass(frozen=True, eq=False)
class Cohort:
    """Updates of a round with each client's weight and carried directions.

    Args:
        updates: one update per client, `lora_A` (..., r_k, d_in), `lora_B` (..., d_out, r_k); any
            sequence, including one that loads a client when it is indexed. In `StackedUpdates` all
            clients have r_max columns, column i at rank index i.
        weights: unnormalized aggregation weight of each client (its sample count), (..., K).
        members: which rank indices each client carries, boolean (..., K, r_max).
        positions: rank index of each column of each client, K tensors of shape (r_k,).
        scaling: LoRA scaling of each client, (K,) in the compute dtype.
        rank_levels: distinct ranks of the federation, ascending; the last one is r_max.
        near: directions that are probably close to those of the sum of the updates.
    """

    updates: Sequence[LoRAFactors]
    weights: Tensor
    members: Tensor
    positions: Sequence[Tensor]
    scaling: Tensor
    rank_levels: tuple[int, ...]
    near: StartingDirections | None = None

    @property
    def num_clients(self) -> int:
        """Number of clients K in the cohort."""
        return len(self.positions)

    @property
    def r_max(self) -> int:
        """Highest rank level of the federation."""
        return self.members.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the round is computed."""
        return self.scaling.dtype

    @classmethod
    def from_updates(
        cls,
        updates: Sequence[LoRAFactors],
        weights: Tensor,
        rank_levels: tuple[int, ...],
        positions: Sequence[Tensor] | None = None,
    ) -> Cohort:
        """Return a cohort; clients carry their first r_k directions unless `positions` is given.

        Args:
            updates: one update per client, as for `Cohort`.
            weights: unnormalized client weights, (..., K).
            rank_levels: distinct ranks of the federation.
            positions: rank index of each column of each client.
        """
        heads = list(map(_head, updates))
        device, dtype = heads[0][2], compute_dtype(heads[0][3])
        if positions is None:
            positions = [torch.arange(rank, device=device) for rank, *_ in heads]
        members = torch.zeros(len(heads), rank_levels[-1], dtype=torch.bool, device=device)
        for k, held in enumerate(positions):
            members[k, held] = True
        scaling = torch.tensor([s for _, s, *_ in heads], dtype=dtype, device=device)
        weights = weights.to(dtype).to(device)
        return cls(updates, weights, members, positions, scaling, rank_levels)

    def _column_weights(self, shares: Tensor) -> Tensor:
        """Return the weight of each column, (..., R), from those of each (client, direction)."""
        columns = [shares[..., k, held] for k, held in enumerate(self.positions)]
        return torch.cat(columns, dim=-1)

    def product(self, shares: Tensor) -> LowRankProduct:
        """Return `sum_k s_k B_k diag(w_k) A_k` for shares (..., K, r_max), as a lazy product."""
        scaled, updates = shares * self.scaling.unsqueeze(-1), self.updates
        if isinstance(updates, StackedUpdates):
            return updates.product(scaled, self.near)
        weights = self._column_weights(scaled)
        blocks = LazySequence(len(updates), lambda k: _block(updates[k]))
        return LowRankProduct(blocks, weights)

    def norms(self) -> Tensor:
        """Return the Frobenius norm `||dW_k||_F` of each update, (..., K), without forming dW_k.

        Norms that overflow the compute dtype are all divided by one power of two.
        """
        if isinstance(self.updates, StackedUpdates):
            norms = self.updates.factors.norm().to(self.dtype)
        else:
            norms = torch.stack(list(map(LoRAFactors.norm, self.updates)), dim=-1).to(self.dtype)
        if is_safe(norms.amax(-1), self.dtype):
            return norms
        parts = zip(*map(LoRAFactors.scaled_norm, self.updates), strict=True)
        values, powers = (torch.stack(list(part), dim=-1) for part in parts)
        powers = torch.where(values > 0, powers, powers.amin(-1, keepdim=True))
        return times_power(values, powers - powers.amax(-1, keepdim=True)).to(self.dtype)

    def canonical(self) -> Cohort:
        """Return the same updates in their SVD gauge, with columns sorted by energy."""
        updates, dtype = self.updates, self.dtype
        scaling = torch.ones_like(self.scaling)  # the singular values include it
        if isinstance(updates, StackedUpdates):
            stack = StackedUpdates(updates.factors.canonical())
            return replace(self, updates=stack, scaling=scaling)

        def canonical(k: int) -> LoRAFactors:
            return updates[k].to(dtype).canonical()

        return replace(self, updates=LazySequence(len(updates), canonical), scaling=scaling)


def _head(update: LoRAFactors) -> tuple[int, float, torch.device, torch.dtype]:
    return update.rank, update.scaling, update.device, update.dtype


def _block(update: LoRAFactors) -> tuple[Tensor, Tensor]:
    return update.lora_B, update.lora_A


# The result: the adapter for the clients, and the base correction


@dataclass(frozen=True, eq=False)
class Aggregated:
    """Result of an aggregation: `dW = adapter + base`.

    Args:
        adapter: the global adapter, rank r_max, from which clients are allocated their factors.
        base: an exact correction that the rule merges into the frozen weights, where every client
            has all of it from then on; None for rules without one. It references the clients'
            factors without copying them: do not modify those in place.
        exact: the whole update as one product, if the rule has it in this form, without the columns
            that the adapter keeps (the base subtracts them).
        state: values by name that the rule wants to receive in the next round; usually empty.

    A lost component of the adapter has two zero factors and therefore no gradient. Give such
    components (`LoRAFactors.lost_columns`) a fresh A before sending the adapter to clients.
    """

    adapter: LoRAFactors
    base: LowRankProduct | None = None
    exact: LowRankProduct | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def product(self) -> LowRankProduct:
        """Adapter plus base correction as one lazy low-rank product."""
        if self.exact is not None:
            return self.exact
        if self.base is None:
            return self.adapter.product
        adapter = self.adapter.to(self.base.dtype)
        return self.base.plus(adapter.lora_B, adapter.lora_A, adapter.product.weights)

    def delta(self) -> Tensor:
        """Return the whole update as a dense matrix, (..., d_out, d_in)."""
        return self.adapter.delta() if self.base is None else self.product.dense()

    def total(self, r: int | None = None) -> LoRAFactors:
        """Return the whole update as one adapter.

        Args:
            r: rank of the best approximation to return, padded with zeros if the update has fewer
                columns. None returns the exact update: the adapter unchanged if there is no base
                correction, else an adapter of rank min(R, d_out, d_in), R the number of all
                columns, in SVD gauge with scaling 1.

        Returns:
            Factors in the adapter's dtype.

        Raises:
            InputError: if r is not a whole number of at least 1 or exceeds min(d_out, d_in).
        """
        if r is None and self.base is None:
            return self.adapter
        limit = min(self.adapter.d_out, self.adapter.d_in)
        if r is not None and check_positive_int("r", r) > limit:
            raise expected("r", r, f"at most min(d_out, d_in) = {limit}")
        return best_factors(self.product, r).to(self.adapter.dtype)

    def singular_values(self) -> Tensor:
        """Return the leading r_max singular values of the whole update, (..., r_max)."""
        return pad_last(self.product.singular_values(self.adapter.rank), self.adapter.rank)


# Checks of a round before it is aggregated


@dataclass(frozen=True, eq=False)
class Round:
    """A checked round.

    Args:
        cohort: the participating clients, in the compute dtype.
        empty_partition: `zero | carry | error`.
        dtype: dtype of the updates.
    """

    cohort: Cohort
    empty_partition: str
    dtype: torch.dtype


def check_round(
    updates: Sequence[LoRAFactors],
    weights: Sequence[float] | None,
    *,
    rank_levels: Sequence[int] | None,
    positions: Sequence[Sequence[int]] | None,
    previous: LoRAFactors | None,
    empty_partition: str,
    svd_only: str | None,
) -> Round:
    """Check the arguments of a round and return it without clients of weight zero.

    Args:
        updates: as for `aggregate`.
        weights: unnormalized, one per client; equal when None.
        rank_levels: as for `aggregate`.
        positions: as for `aggregate`.
        previous: as for `aggregate`.
        empty_partition: as for `aggregate`.
        svd_only: label of the rule if it supports SVD allocation only, else None.

    Raises:
        InputError: if an argument is invalid; names the argument, its value and what was expected.
    """
    form, ranks = _check_updates(updates)
    weights = check_num_samples((1.0,) * len(ranks) if weights is None else weights, len(ranks))
    levels = _check_levels(rank_levels, ranks, min(form.d_in, form.d_out))
    held = _check_positions(positions, ranks, levels[-1], svd_only)
    _check_previous(previous, form, levels[-1])
    empty_partition = check_choice("empty_partition", empty_partition, EMPTY_PARTITION)
    # Clients of weight zero are left out. Relative weights fit every dtype.
    present = [k for k, weight in enumerate(weights) if weight > 0]
    shares = torch.tensor([weights[k] for k in present], dtype=torch.float64) / max(weights)
    kept = None if held is None else [held[k].to(form.device) for k in present]
    cohort_updates = LazySequence(len(present), lambda k: updates[present[k]])
    cohort = Cohort.from_updates(cohort_updates, shares, levels, kept)
    return Round(cohort, empty_partition, form.dtype)


@dataclass(frozen=True)
class _Form:
    """Properties besides the rank that all updates of a cohort must share."""

    batch: tuple[int, ...]
    d_out: int
    d_in: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, update: LoRAFactors) -> _Form:
        batch = tuple(update.lora_A.shape[:-2])
        return cls(batch, update.d_out, update.d_in, update.dtype, update.device)

    def __str__(self) -> str:
        dims = f"d_out={self.d_out}, d_in={self.d_in}"
        return f"batch={self.batch}, {dims}, {self.dtype}, {self.device}"


def _check_updates(updates: Sequence[LoRAFactors]) -> tuple[_Form, list[int]]:
    """Refuse an empty cohort, updates that do not match and values that are not finite.

    Returns:
        The form that the updates share, and the rank of each client.
    """
    if not isinstance(updates, Sequence):
        raise expected("updates", type(updates).__name__, "a sequence of LoRAFactors")
    if len(updates) == 0:
        raise expected("updates", [], "a cohort of at least one client")
    form, rank, total = _check_update(0, updates[0], None)
    ranks, totals = [rank], [total]
    for k in range(1, len(updates)):  # by index: a loop variable would keep one more client
        _, rank, total = _check_update(k, updates[k], form)
        ranks.append(rank)
        totals.append(total)
    # One value for all clients: the host waits for everything that was launched before it.
    if not bool(torch.isfinite(torch.stack(totals)).all()):
        for k in range(len(updates)):
            _check_update_finite(k, updates[k])
    return form, ranks


def _check_update_finite(k: int, update: LoRAFactors) -> None:
    check_tensor_finite(f"updates[{k}].lora_A", update.lora_A)
    check_tensor_finite(f"updates[{k}].lora_B", update.lora_B)


def _check_update(k: int, update: LoRAFactors, wanted: _Form | None) -> tuple[_Form, int, Tensor]:
    """Return form, rank and the sum of all entries, which is not finite if an entry is not."""
    if not isinstance(update, LoRAFactors):
        raise expected(f"updates[{k}]", type(update).__name__, "LoRAFactors")
    form = _Form.of(update)
    if wanted is not None and form != wanted:
        raise expected(f"updates[{k}]", str(form), f"the form of updates[0], {wanted}")
    limits = torch.finfo(compute_dtype(update.dtype))
    if update.scaling != 0 and not limits.tiny <= abs(update.scaling) <= limits.max:
        size = f"0, or a size from {limits.tiny:.2g} to {limits.max:.2g}, as {limits.dtype} holds"
        raise expected(f"updates[{k}].scaling", update.scaling, size)
    return form, update.rank, update.lora_A.sum() + update.lora_B.sum()


def check_result(result: Aggregated) -> Aggregated:
    """Refuse a result that overflows its dtype.

    Raises:
        InputError: names the factor and the dtype.
    """
    for name in ("lora_A", "lora_B"):
        tensor = getattr(result.adapter, name)
        if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
            first = tensor[~torch.isfinite(tensor)].flatten()[0].item()
            wanted = f"updates whose aggregate {tensor.dtype} can hold"
            raise expected(f"{name} of the aggregate", first, wanted)
    return result


def _check_levels(
    rank_levels: Sequence[int] | None, ranks: Sequence[int], limit: int
) -> tuple[int, ...]:
    given = (
        ranks
        if rank_levels is None
        else check_sequence("rank_levels", rank_levels, "ranks", ordered=False)
    )
    levels = tuple(sorted({check_positive_int("rank_levels", level) for level in given}))
    if not levels or levels[-1] > limit:
        raise expected("rank_levels", list(given), f"ranks from 1 to min(d_in, d_out) = {limit}")
    for k, rank in enumerate(ranks):
        if rank not in levels:
            raise expected(f"updates[{k}].rank", rank, f"one of the rank levels {list(levels)}")
    return levels


def _check_positions(
    positions: Sequence[Sequence[int]] | None,
    ranks: Sequence[int],
    r_max: int,
    svd_only: str | None,
) -> list[Tensor] | None:
    if positions is None:
        return None
    if svd_only is not None:
        raise expected("positions", list(positions), f"None for {svd_only}: SVD allocation only")
    given = check_sequence("positions", positions, "one row of rank indices per client")
    if len(given) != len(ranks):
        raise expected("positions", f"{len(given)} rows", f"{len(ranks)}, one per client")
    rows = []
    for k, (row, rank) in enumerate(zip(given, ranks, strict=True)):
        expectation = f"{rank} distinct rank indices in 0..{r_max - 1}"
        held = check_sequence(f"positions[{k}]", row, expectation)
        allowed = [i for i in range(r_max) if i in held]
        if len(held) != rank or len(allowed) != rank:
            raise expected(f"positions[{k}]", held, expectation)
        rows.append(torch.tensor([int(i) for i in held]))  # type: ignore[call-overload]
    return rows


def _check_previous(previous: LoRAFactors | None, form: _Form, r_max: int) -> None:
    if previous is None:
        return
    if not isinstance(previous, LoRAFactors):
        raise expected("previous", type(previous).__name__, "LoRAFactors or None")
    if _Form.of(previous) != form:
        raise expected("previous", str(_Form.of(previous)), f"the form of the updates, {form}")
    if previous.rank != r_max:
        raise expected("previous.rank", previous.rank, f"the highest rank level, {r_max}")
    check_tensor_finite("previous.lora_A", previous.lora_A)
    check_tensor_finite("previous.lora_B", previous.lora_B)
