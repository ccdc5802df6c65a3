"""Exact instances: small federations whose moments, rates and floors Coq computes itself.

    python -m analysis.proofs.instances

`Instances.v` states the fractions that Python computes by enumerating all cohorts; Coq proves each
by its own enumeration over the rational numbers. A test compares the fractions with `closed_form`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path

from fedlora_sim.randomness import stream
from fedlora_sim.storage import write_text

FILE = Path(__file__).parent / "Instances.v"
COUNT = 50
SEED = 21

NUMBERS = (
    "coverage",
    "second",
    "squares",
    "empty",
    "contributor_squares",
    "rate",
    "floor",
    "raflora_rate",
    "raflora_floor",
)
"""What is computed of a direction: coverage, `E[W^2]`, `E[sum w^2]`, `P0`, raFLoRA's `E[sum w^2]`,
and rate and floor of FedAvg and of raFLoRA that drops empty partitions."""


@dataclass(frozen=True)
class Instance:
    """A small federation with cohorts drawn without replacement.

    Args:
        samples: sample counts of the clients.
        ranks: ranks of the clients.
        cohort_size: m.
        gain_mean, gain_std, drift_std: g, nu and tau, with powers of two as denominators, so that
            they are floating-point numbers too.
    """

    samples: tuple[int, ...]
    ranks: tuple[int, ...]
    cohort_size: int
    gain_mean: Fraction
    gain_std: Fraction
    drift_std: Fraction

    @property
    def directions(self) -> list[int]:
        """The highest direction of each rank level, from 0."""
        return [level - 1 for level in sorted(set(self.ranks))]

    def numbers(self, direction: int) -> list[Fraction]:
        """Return the values of `NUMBERS` for one direction, exactly."""
        clients = list(zip(self.samples, self.ranks, strict=True))
        own = [count for count, rank in clients if rank > direction]
        coverage = Fraction(sum(own), sum(self.samples))
        second = squares = empty = inside = Fraction(0)
        cohorts = list(combinations(clients, self.cohort_size))
        for cohort in cohorts:
            total = sum(count for count, _ in cohort)
            carried = [count for count, rank in cohort if rank > direction]
            weight, square = sum(carried), sum(count**2 for count in carried)
            second += Fraction(weight, total) ** 2
            squares += Fraction(square, total**2)
            empty += not carried
            inside += Fraction(square, weight**2) if carried else 0
        second, squares, empty, inside = (
            value / len(cohorts) for value in (second, squares, empty, inside)
        )
        g2, nu2, tau2 = (x**2 for x in (self.gain_mean, self.gain_std, self.drift_std))
        rate = nu2 * squares + g2 * second
        kept = nu2 * inside + g2 * (1 - empty)
        floors = tau2 * squares / (1 - rate), tau2 * inside / (1 - kept)
        return [coverage, second, squares, empty, inside, rate, floors[0], kept, floors[1]]


def instances() -> list[Instance]:
    """Return the federations, drawn once from a fixed seed."""
    return [_draw(i) for i in range(COUNT)]


def _draw(number: int) -> Instance:
    rng = stream(SEED, f"proofs.instances.{number}")
    count = int(rng.integers(2, 6))
    return Instance(
        tuple(int(n) for n in rng.integers(1, 10, size=count)),
        tuple(int(r) for r in rng.integers(1, 5, size=count)),
        int(rng.integers(1, count + 1)),
        Fraction(int(rng.integers(4, 8)), 8),
        Fraction(int(rng.integers(0, 3)), 8),
        Fraction(int(rng.integers(1, 5)), 4),
    )


HEAD = """\
(* Written by `python -m analysis.proofs.instances`; do not edit.

   Exact instances. Coq enumerates all cohorts of a small federation with unequal sample counts over
   the rational numbers, and the result is, fraction by fraction, the one that Python computes. *)

From Coq Require Import QArith List Arith.
From FedLoRA Require Import Cohorts Derived.
Import ListNotations.
Open Scope Q_scope.

(* A client is its sample count n_k and its rank r_k. *)
Definition client := (Z * nat)%type.

Definition count (f : client -> Z) (cohort : list client) : Z :=
  fold_right (fun k total => (f k + total)%Z) 0%Z cohort.
Definition samples (k : client) : Z := fst k.
Definition carried (j : nat) (k : client) : Z := if (j <? snd k)%nat then fst k else 0%Z.
Definition squared (j : nat) (k : client) : Z := (carried j k * carried j k)%Z.
Definition ratio (a b : Z) : Q := inject_Z a / inject_Z b.

(* The mean over all cohorts of m clients. *)
Definition mean (m : nat) (clients : list client) (F : list client -> Q) : Q :=
  let all := cohorts m clients in
  Qred (fold_right (fun S total => Qred (F S + total)) 0 all / inject_Z (Z.of_nat (length all))).

(* Coverage, E[W^2], E[sum w^2], P0, raFLoRA's E[sum w^2], then rates and floors of both rules. *)
Definition numbers (m : nat) (g nu tau : Q) (clients : list client) (j : nat) : list Q :=
  let second := mean m clients (fun S =>
    ratio (count (carried j) S * count (carried j) S) (count samples S * count samples S)) in
  let squares := mean m clients (fun S =>
    ratio (count (squared j) S) (count samples S * count samples S)) in
  let empty := mean m clients (fun S => if (count (carried j) S =? 0)%Z then 1 else 0) in
  let inside := mean m clients (fun S => if (count (carried j) S =? 0)%Z then 0 else
    ratio (count (squared j) S) (count (carried j) S * count (carried j) S)) in
  map Qred
    [ ratio (count (carried j) clients) (count samples clients);
      second; squares; empty; inside;
      Rational.floors_rate squares second g nu;
      Rational.floors_floor squares second g nu tau;
      Rational.floors_raflora_rate empty inside g nu;
      Rational.floors_floor inside (1 - empty) g nu tau ].
"""


def fraction(value: Fraction) -> str:
    """Return a fraction in Coq's syntax."""
    return f"{value.numerator}#{value.denominator}"


def _example(number: int, instance: Instance) -> str:
    pairs = zip(instance.samples, instance.ranks, strict=True)
    clients = "; ".join(f"({count}%Z, {rank}%nat)" for count, rank in pairs)
    law = (instance.gain_mean, instance.gain_std, instance.drift_std)
    given = " ".join(f"({fraction(value)})" for value in law)
    directions = "; ".join(f"{j}%nat" for j in instance.directions)
    rows = [_row(instance.numbers(j)) for j in instance.directions]
    return (
        f"Example federation_{number:02} :\n"
        f"  map (numbers {instance.cohort_size} {given}\n    [{clients}]) [{directions}] =\n"
        "  [ " + ";\n    ".join(rows) + " ].\nProof. vm_compute. reflexivity. Qed.\n"
    )


def _row(values: Sequence[Fraction]) -> str:
    return f"[{'; '.join(map(fraction, values))}]"


def text() -> str:
    """Return the file."""
    return "\n".join([HEAD, *(_example(i, one) for i, one in enumerate(instances()))])


if __name__ == "__main__":
    write_text(FILE, text())
