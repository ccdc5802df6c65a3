"""Proofs for all weights: a rule's `direction_weights` with symbolic weights, decided by z3.

The conformance suite samples cohorts; this module decides laws on the weights for all weights and
norms at small sizes. A rule is run once on symbols in place of numbers, so that third-party rules
need no change. Laws that a rule declares not to hold get their smallest counterexample in whole
numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.errors import InputError, expected
from fedlora_sim.rules import AggregationRule
from fedlora_sim.rules.external import ExternalRule

Objects = NDArray[np.object_]

PATIENCE_MS = 20_000
"""Milliseconds for one case of one law."""

LARGEST_TOTAL = 12
"""Largest sum of whole numbers that is tried for a counterexample."""

SIZES = (1, 2, 3)
"""Numbers of clients."""

LEVELS = 2
"""Directions: the first is carried by all clients, the second by those of the higher rank."""


class NotSymbolicError(TypeError):
    """An operation that has no meaning for symbols; the message names it."""


def solver() -> Any:
    """Return the module z3.

    Raises:
        InputError: if it is not installed; names the command that installs it.
    """
    try:
        import z3
    except ImportError:
        raise InputError("--prove needs z3: pip install 'fedlora-sim[prove]'") from None
    return z3


# Tensors of symbols


class SymbolicTensor:
    """A tensor of symbolic numbers or truth values, for functions that are written for torch.

    Args:
        values: z3 expressions or Python numbers, as an array of objects.
        facts: list to which the definitions of roots are added.
    """

    def __init__(self, values: Any, facts: list[Any]) -> None:
        self.values: Objects = np.asarray(values, dtype=object)
        self.facts = facts

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch on symbols, by the method of its name."""
        name = getattr(function, "__name__", str(function))
        own = next(a for a in arguments if isinstance(a, SymbolicTensor))
        if name == "where":
            return own._where(*arguments)
        method = getattr(cls, {"true_divide": "div", "true_div": "div"}.get(name, name), None)
        if method is None:
            raise NotSymbolicError(f"torch.{name}")
        first = arguments[0]
        if not isinstance(first, SymbolicTensor):
            first = own._like(_numbers(first))
        return method(first, *arguments[1:], **(options or {}))

    def _like(self, values: Any) -> SymbolicTensor:
        return SymbolicTensor(values, self.facts)

    def _map(self, function: Callable[..., Any], *others: Any) -> SymbolicTensor:
        arrays = np.broadcast_arrays(self.values, *(_numbers(other) for other in others))
        found = [function(*each) for each in zip(*(a.ravel() for a in arrays), strict=True)]
        values = np.empty(len(found), dtype=object)
        values[:] = found
        return self._like(values.reshape(arrays[0].shape))

    def _where(self, condition: Any, one: Any, other: Any) -> SymbolicTensor:
        z3 = solver()

        def choose(c: Any, a: Any, b: Any) -> Any:
            return z3.If(c, _real(a), _real(b)) if z3.is_expr(c) else (a if c else b)

        return self._like(_numbers(condition))._map(choose, one, other)

    def where(self, condition: Any, other: Any) -> SymbolicTensor:
        """Return own values where the condition holds, and others elsewhere."""
        return self._where(condition, self, other)

    def __getattr__(self, name: str) -> Any:
        """Refuse what symbols cannot do.

        Raises:
            NotSymbolicError: names the attribute.
        """
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotSymbolicError(f"Tensor.{name}")

    def __bool__(self) -> bool:
        """Refuse to branch.

        Raises:
            NotSymbolicError: always.
        """
        raise NotSymbolicError("a branch on the values of weights")

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Any) -> SymbolicTensor:
        return self._map(lambda a, b: _real(a) + _real(b), other)

    def __mul__(self, other: Any) -> SymbolicTensor:
        return self._map(lambda a, b: _real(a) * _real(b), other)

    def __sub__(self, other: Any) -> SymbolicTensor:
        return self._map(lambda a, b: _real(a) - _real(b), other)

    def __rsub__(self, other: Any) -> SymbolicTensor:
        return self._map(lambda a, b: _real(b) - _real(a), other)

    def __truediv__(self, other: Any) -> SymbolicTensor:
        return self._map(lambda a, b: _real(a) / _real(b), other)

    def __rtruediv__(self, other: Any) -> SymbolicTensor:
        return self._map(lambda a, b: _real(b) / _real(a), other)

    def __neg__(self) -> SymbolicTensor:
        return self._map(lambda a: -_real(a))

    def __pow__(self, exponent: Any) -> SymbolicTensor:
        power = Fraction(str(exponent))
        if power == Fraction(1, 2):
            return self.sqrt()
        if power.denominator != 1 or power < 0:
            raise NotSymbolicError(f"a power of {exponent}")

        def raised(a: Any) -> Any:
            result = _real(1)
            for _ in range(int(power)):
                result = result * _real(a)
            return result

        return self._map(raised)

    def __gt__(self, other: Any) -> SymbolicTensor:
        return self._map(lambda a, b: _real(a) > _real(b), other)

    def __ge__(self, other: Any) -> SymbolicTensor:
        return self._map(lambda a, b: _real(a) >= _real(b), other)

    def __lt__(self, other: Any) -> SymbolicTensor:
        return self._map(lambda a, b: _real(a) < _real(b), other)

    def __le__(self, other: Any) -> SymbolicTensor:
        return self._map(lambda a, b: _real(a) <= _real(b), other)

    def __eq__(self, other: Any) -> SymbolicTensor:  # type: ignore[override]
        return self._map(lambda a, b: _real(a) == _real(b), other)

    def __ne__(self, other: Any) -> SymbolicTensor:  # type: ignore[override]
        return self._map(lambda a, b: _real(a) != _real(b), other)

    def __and__(self, other: Any) -> SymbolicTensor:
        return self._map(lambda a, b: solver().And(_truth(a), _truth(b)), other)

    def __or__(self, other: Any) -> SymbolicTensor:
        return self._map(lambda a, b: solver().Or(_truth(a), _truth(b)), other)

    def __invert__(self) -> SymbolicTensor:
        return self._map(lambda a: solver().Not(_truth(a)))

    def __getitem__(self, index: Any) -> SymbolicTensor:
        return self._like(self.values[index])

    __radd__ = add = __add__
    __rmul__ = mul = multiply = __mul__
    __rand__ = logical_and = __and__
    __ror__ = logical_or = __or__
    sub, rsub, div, divide, neg = __sub__, __rsub__, __truediv__, __truediv__, __neg__
    gt, ge, lt, le, eq, ne, logical_not = __gt__, __ge__, __lt__, __le__, __eq__, __ne__, __invert__

    def pow(self, exponent: Any) -> SymbolicTensor:
        """Return a power by a whole number or 1/2."""
        return self**exponent

    def square(self) -> SymbolicTensor:
        """Return the squares."""
        return self * self

    def sqrt(self) -> SymbolicTensor:
        """Return the roots, as new symbols that are defined by their squares."""
        z3 = solver()

        def root(a: Any) -> Any:
            symbol = z3.FreshReal("root")
            self.facts.append(z3.And(symbol >= 0, symbol * symbol == _real(a)))
            return symbol

        return self._map(root)

    def abs(self) -> SymbolicTensor:
        """Return the absolute values."""
        return self._map(lambda a: solver().If(_real(a) >= 0, _real(a), -_real(a)))

    def clamp_min(self, least: Any) -> SymbolicTensor:
        """Return the values, and the least one in place of smaller ones."""
        z3 = solver()
        return self._map(lambda a, b: z3.If(_real(a) >= _real(b), _real(a), _real(b)), least)

    maximum = clamp_min

    def sum(self, dim: Any = None, keepdim: bool = False) -> SymbolicTensor:
        """Return the sum over dimensions."""
        reals = self._map(_real).values
        return self._like(np.asarray(reals.sum(axis=dim, keepdims=keepdim), dtype=object))

    def mean(self, dim: Any = None, keepdim: bool = False) -> SymbolicTensor:
        """Return the mean over dimensions."""
        total = self.sum(dim, keepdim)
        return total / (self.values.size // total.values.size)

    def unsqueeze(self, dim: int) -> SymbolicTensor:
        """Return the tensor with one more dimension."""
        return self._like(np.expand_dims(self.values, dim))

    def squeeze(self, dim: int) -> SymbolicTensor:
        """Return the tensor without a dimension of size 1."""
        return self._like(np.squeeze(self.values, dim))

    def to(self, *_: Any, **__: Any) -> SymbolicTensor:
        """Return the tensor itself: symbols have no dtype and no device."""
        return self

    double = float = contiguous = clone = detach = to

    def expand(self, *shape: int) -> SymbolicTensor:
        """Return the tensor in a larger shape."""
        kept = tuple(
            own if wanted == -1 else wanted
            for own, wanted in zip(self.values.shape[-len(shape) :], shape, strict=False)
        )
        return self._like(np.broadcast_to(self.values, kept))

    def expand_as(self, other: Any) -> SymbolicTensor:
        """Return the tensor in the shape of another."""
        return self._like(np.broadcast_to(self.values, tuple(other.shape)))

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or one dimension of it."""
        return self.shape if dim is None else self.shape[dim]

    @property
    def shape(self) -> torch.Size:
        """The shape."""
        return torch.Size(self.values.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return int(self.values.ndim)

    @property
    def mT(self) -> SymbolicTensor:  # the name of torch
        """The tensor with its last two dimensions exchanged."""
        return self._like(np.swapaxes(self.values, -1, -2))

    @property
    def dtype(self) -> torch.dtype:
        """A dtype for functions that ask for it."""
        return torch.float64

    @property
    def device(self) -> torch.device:
        """A device for functions that ask for it."""
        return torch.device("cpu")


def _numbers(value: Any) -> Objects:
    if isinstance(value, SymbolicTensor):
        return value.values
    if isinstance(value, Tensor):
        return np.asarray(value.tolist(), dtype=object)
    return np.asarray(value, dtype=object)


def _real(value: Any) -> Any:
    """Return a number as a z3 expression; truth values count 0 or 1."""
    z3 = solver()
    if z3.is_bool(value):
        return z3.If(value, z3.RealVal(1), z3.RealVal(0))
    if z3.is_expr(value):
        return value
    exact = Fraction(int(value)) if isinstance(value, bool) else Fraction(value)
    return z3.RealVal(f"{exact.numerator}/{exact.denominator}")


def _truth(value: Any) -> Any:
    z3 = solver()
    return value if z3.is_expr(value) else z3.BoolVal(bool(value))


# Laws on weights

Result = Literal["proved", "failed", "expected", "skipped", "undecided"]


@dataclass(frozen=True)
class WeightProof:
    """The outcome of one law of one rule.

    Args:
        law: name of the property.
        status: `proved`: it holds for all weights and norms at the tried sizes; `failed`: it is
            declared and does not hold, or declared absent and holds; `expected`: declared absent,
            with a counterexample; `skipped`: not declared, or not expressible; `undecided`: z3 gave
            no answer.
        statement: the law.
        reason: the finding, in one line.
        seconds: time of the law.
        counterexample: weights, ranks and norms of the smallest counterexample; None if there is
            none.
    """

    law: str
    status: Result
    statement: str
    reason: str
    seconds: float
    counterexample: Mapping[str, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class _Round:
    """Symbolic weights and norms of the clients, and their ranks."""

    weights: tuple[Any, ...]
    norms: tuple[Any, ...]
    ranks: tuple[int, ...]

    def take(self, clients: Sequence[int], weights: Sequence[Any] | None = None) -> _Round:
        """Return the round of these clients, with their own weights or these."""
        chosen = [self.weights[k] for k in clients] if weights is None else weights
        return _Round(
            tuple(chosen),
            tuple(self.norms[k] for k in clients),
            tuple(self.ranks[k] for k in clients),
        )


Equation = tuple[Any, Any]
Law = Callable[[Callable[[_Round], Objects], _Round, Any], list[Equation]]


def _order(shares: Callable[[_Round], Objects], one: _Round, _: Any) -> list[Equation]:
    """Compare with every exchange of two neighbors, which generate all orders."""
    own, found = shares(one), []
    for k in range(len(one.ranks) - 1):
        order = list(range(len(one.ranks)))
        order[k], order[k + 1] = order[k + 1], order[k]
        found += _pairs(shares(one.take(order)), own[order])
    return found


def _scale(shares: Callable[[_Round], Objects], one: _Round, factor: Any) -> list[Equation]:
    scaled = one.take(range(len(one.ranks)), [factor * w for w in one.weights])
    return _pairs(shares(scaled), shares(one))


def _repetition(shares: Callable[[_Round], Objects], one: _Round, _: Any) -> list[Equation]:
    count = len(one.ranks)
    twice = one.take(range(count), [2 * one.weights[0], *one.weights[1:]])
    often = shares(one.take([*range(count), 0]))
    merged = often[:count].copy()
    merged[0] = merged[0] + often[count]
    return _pairs(merged, shares(twice))


def _zero(shares: Callable[[_Round], Objects], one: _Round, _: Any) -> list[Equation]:
    count = len(one.ranks)
    if count < 2:
        return []
    silent = shares(one.take(range(count), [*one.weights[:-1], _real(0)]))
    nothing = np.array([_real(0)] * LEVELS, dtype=object)
    alone = shares(one.take(range(count - 1)))
    return _pairs(silent[:-1], alone) + _pairs(silent[-1], nothing)


def _pairs(found: Objects, wanted: Objects) -> list[Equation]:
    return list(zip(found.ravel(), wanted.ravel(), strict=True))


LAWS: dict[str, tuple[str, Law]] = {
    "client_order": ("The weights do not depend on the order of the clients.", _order),
    "weight_scale": ("Multiplying all weights by a positive number changes nothing.", _scale),
    "weight_repetition": (
        "A client of weight 2 w has the weights of the same client of weight w listed twice.",
        _repetition,
    ),
    "zero_weight": ("A client of weight 0 changes nothing.", _zero),
}
"""Laws on weights by the property that declares them."""


def prove_weights(
    rule: AggregationRule, on_result: Callable[[WeightProof], object] = lambda proof: None
) -> list[WeightProof]:
    """Decide the laws on weights for all weights and norms, at up to three clients and two levels.

    Args:
        rule: a rule that is weights per client and direction.
        on_result: called with every outcome.

    Returns:
        One outcome per law of `LAWS`.

    Raises:
        InputError: if the rule has its own step, or z3 is not installed.
    """
    solver()
    if isinstance(rule, ExternalRule):
        raise expected("rule", rule.label, "a rule that is weights per client and direction")
    proofs = []
    for name in LAWS:
        proofs.append(_decide(rule, name))
        on_result(proofs[-1])
    return proofs


def _decide(rule: AggregationRule, name: str) -> WeightProof:
    statement, law = LAWS[name]
    declared, started = getattr(rule.properties, name), time.monotonic()

    def outcome(
        status: Result, reason: str, example: Mapping[str, tuple[int, ...]] | None = None
    ) -> WeightProof:
        taken = round(time.monotonic() - started, 3)
        return WeightProof(name, status, statement, reason, taken, example)

    if declared is None:
        return outcome("skipped", "not declared")
    try:
        broken = None
        for case in _cases():
            answer = _violated(rule, law, case)
            if answer == "unknown":
                return outcome("undecided", f"z3 gave no answer for ranks {case.ranks}")
            if answer == "sat":
                broken = _smallest(rule, law)
                break
        else:
            if declared:
                return outcome("proved", f"for all weights of up to {SIZES[-1]} clients")
            return outcome("failed", "declared not to hold, but it holds for all weights")
    except NotSymbolicError as error:
        return outcome("skipped", f"not expressible: {error}")
    found = "counterexample" if broken else "it does not hold for real weights"
    return outcome("failed" if declared else "expected", found, broken)


def _cases() -> Iterator[_Round]:
    """Yield symbolic rounds of every size and every assignment of ranks, small ones first."""
    z3 = solver()
    for count in SIZES:
        weights = tuple(z3.Real(f"w{k + 1}") for k in range(count))
        norms = tuple(z3.Real(f"n{k + 1}") for k in range(count))
        for ranks in product(range(1, LEVELS + 1), repeat=count):
            yield _Round(weights, norms, ranks)


def _question(rule: AggregationRule, law: Law, case: _Round) -> tuple[list[Any], Any]:
    """Return the assumptions of a case, and the statement that the law is violated."""
    z3 = solver()
    factor, facts = z3.Real("c"), list[Any]()

    def shares(one: _Round) -> Objects:
        members = torch.tensor([[rank > j for j in range(LEVELS)] for rank in one.ranks])
        weights = SymbolicTensor(list(one.weights), facts)
        norms = SymbolicTensor(list(one.norms), facts) if rule.weights_from_norms else None
        found: Any = rule.direction_weights(weights, members, norms)  # type: ignore[arg-type]
        if not isinstance(found, SymbolicTensor):
            raise NotSymbolicError(f"weights of type {type(found).__name__}")
        return np.broadcast_to(found._map(_real).values, (len(one.ranks), LEVELS))

    equations = law(shares, case, factor)
    # Where the last client has no weight, the others must have some.
    least = case.weights[:-1] if law is _zero and len(case.weights) > 1 else case.weights
    given = [w >= 0 for w in case.weights] + [z3.Sum(list(least)) > 0, factor > 0]
    given += [norm > 0 for norm in case.norms] + facts
    return given, z3.Or([found != wanted for found, wanted in equations])


def _violated(rule: AggregationRule, law: Law, case: _Round) -> str:
    z3 = solver()
    given, violated = _question(rule, law, case)
    asked = z3.Solver()
    asked.set("timeout", PATIENCE_MS)
    asked.add(*given, violated)
    return str(asked.check())


def _smallest(rule: AggregationRule, law: Law) -> dict[str, tuple[int, ...]] | None:
    """Return the counterexample in whole numbers of least sum, with the fewest clients."""
    z3 = solver()
    for case in _cases():
        given, violated = _question(rule, law, case)
        factor = [z3.Real("c") == 2]
        symbols = [*case.weights, *(case.norms if rule.weights_from_norms else ())]
        fixed = [] if rule.weights_from_norms else [norm == 1 for norm in case.norms]
        for total in range(1, LARGEST_TOTAL + 1):
            asked = z3.Solver()
            asked.set("timeout", PATIENCE_MS)
            whole = [z3.Or([s == value for value in range(total + 1)]) for s in symbols]
            asked.add(*given, *factor, *fixed, *whole, z3.Sum(symbols) == total, violated)
            if str(asked.check()) != "sat":
                continue
            model = asked.model()
            return {
                "weights": tuple(_whole(model, w) for w in case.weights),
                "ranks": case.ranks,
                **(
                    {"norms": tuple(_whole(model, norm) for norm in case.norms)}
                    if rule.weights_from_norms
                    else {}
                ),
            }
    return None


def _whole(model: Any, symbol: Any) -> int:
    return int(model.eval(symbol, model_completion=True).as_fraction())
