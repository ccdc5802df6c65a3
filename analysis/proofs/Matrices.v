(* Matrix identities of the server rules, over any field; and how raFLoRA depends on the gauge. *)

From mathcomp Require Import all_ssreflect all_algebra.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import GRing.Theory.
Local Open Scope ring_scope.

Section Identities.

Variable F : fieldType.
Variables d_out d_in r : nat.

(* Gauge freedom. The update B A does not depend on the gauge G of its factors. *)
Theorem gauge_invariance (B : 'M[F]_(d_out, r)) (A : 'M[F]_(r, d_in)) (G : 'M[F]_r) :
  G \in unitmx -> (B *m G) *m (invmx G *m A) = B *m A.
Proof. by move=> unit; rewrite mulmxA -(mulmxA B) mulmxV // mulmx1. Qed.

(* Scaling. A scalar can multiply B, A or the product: the result is the same. *)
Theorem scaling_either (s : F) (B : 'M[F]_(d_out, r)) (A : 'M[F]_(r, d_in)) :
  (s *: B) *m A = s *: (B *m A) /\ B *m (s *: A) = s *: (B *m A).
Proof. by split; [rewrite scalemxAl | rewrite scalemxAr]. Qed.

(* Weighted sums over a cohort of K clients. *)
Variable K : nat.
Variable p : 'I_K -> F.

(* FedAvg: all clients' parts of partition h, over the weight of the whole cohort. *)
Definition fedavg (carries : pred 'I_K) (X : 'I_K -> 'M[F]_(d_out, d_in)) :=
  (\sum_k p k)^-1 *: \sum_(k | carries k) p k *: X k.

(* raFLoRA: the same sum, over the weight of the contributors. *)
Definition raflora (carries : pred 'I_K) (X : 'I_K -> 'M[F]_(d_out, d_in)) :=
  (\sum_(k | carries k) p k)^-1 *: \sum_(k | carries k) p k *: X k.

(* The share W_h of the contributors. *)
Definition share (carries : pred 'I_K) : F := (\sum_(k | carries k) p k) / \sum_k p k.

(* Partition identity. Partition h of FedAvg is W_h times that of raFLoRA, for any updates: no common
   basis is needed. *)
Theorem partition_identity (carries : pred 'I_K) X :
  \sum_(k | carries k) p k != 0 -> fedavg carries X = share carries *: raflora carries X.
Proof.
move=> some; rewrite /fedavg /raflora /share scalerA.
by rewrite mulrAC divff // mul1r.
Qed.

(* Equal ranks. If all clients carry the partition, raFLoRA is FedAvg. *)
Theorem equal_ranks X : raflora predT X = fedavg predT X.
Proof. by []. Qed.

(* FFA-LoRA. With a common A, averaging B is averaging products. *)
Theorem ffa_is_fedavg (B : 'I_K -> 'M[F]_(d_out, r)) (A : 'M[F]_(r, d_in)) :
  (\sum_k p k *: B k) *m A = \sum_k p k *: (B k *m A).
Proof. by rewrite mulmx_suml; apply: eq_bigr => k _; rewrite scalemxAl. Qed.

(* FedEx-LoRA. Averaged factors and residual add up to the average of products. *)
Theorem fedex_exact (B : 'I_K -> 'M[F]_(d_out, r)) (A : 'I_K -> 'M[F]_(r, d_in)) :
  let adapter := (\sum_k p k *: B k) *m (\sum_k p k *: A k) in
  adapter + (\sum_k p k *: (B k *m A k) - adapter) = \sum_k p k *: (B k *m A k).
Proof. by rewrite /= addrC subrK. Qed.

(* FLoRA. The product of stacked factors is the sum of the products. *)
Theorem flora_stacking r' (B : 'M[F]_(d_out, r)) (B' : 'M[F]_(d_out, r'))
  (A : 'M[F]_(r, d_in)) (A' : 'M[F]_(r', d_in)) :
  row_mx B B' *m col_mx A A' = B *m A + B' *m A'.
Proof. by rewrite mul_row_col. Qed.

(* Replication. Filling the rows that a client does not hold with the mean of their owners, and then
   averaging over all, is averaging over the owners (RBLA). *)
Theorem replication_is_rbla (owns : pred 'I_K) (X : 'I_K -> 'M[F]_(d_out, d_in)) :
  \sum_k p k = 1 -> \sum_(k | owns k) p k != 0 ->
  \sum_k p k *: (if owns k then X k else raflora owns X) = raflora owns X.
Proof.
move=> one some.
rewrite (bigID owns) /= (eq_bigr (fun k => p k *: X k)); last by move=> k ->.
rewrite (eq_bigr (fun k => p k *: raflora owns X) (P := fun k => ~~ owns k));
  last by move=> k /negbTE ->.
rewrite -scaler_suml.
have -> : \sum_(k | owns k) p k *: X k = (\sum_(k | owns k) p k) *: raflora owns X.
  by rewrite /raflora scalerA divff // scale1r.
by rewrite -scalerDl -(bigID owns predT) one scale1r.
Qed.

End Identities.

Section Gauge.

(* raFLoRA on factors: client 1 has rank 2, client 2 rank 1 and an update of zero, both weigh 1 / 2.
   Column 0 is averaged over both, column 1 is that of client 1 alone. *)
Variable F : fieldType.
Hypothesis odd : (2%:R : F) != 0.
Definition raflora_two (B A : 'M[F]_2) : 'M[F]_2 :=
  2%:R^-1 *: (col 0 B *m row 0 A) + col 1 B *m row 1 A.

(* The gauge that exchanges both columns. *)
Definition swap : 'M[F]_2 := \matrix_(i, j) (i != j)%:R.

Lemma swap_swap : swap *m swap = 1%:M.
Proof.
apply/matrixP=> i j; rewrite !mxE !big_ord_recl big_ord0 !mxE.
by case: i j => [[|[|i]] Hi] [[|[|j]] Hj] //=; rewrite ?mulr0 ?mul0r ?mulr1 ?addr0 ?add0r.
Qed.

(* The same update in another gauge. *)
Theorem same_update : (1%:M *m swap) *m (swap *m 1%:M) = (1%:M : 'M[F]_2) *m 1%:M.
Proof. by rewrite mul1mx mulmx1 swap_swap mulmx1. Qed.

(* The witness. The two gauges of one update give different results: raFLoRA depends on the gauge. *)
Theorem raflora_depends_on_gauge :
  raflora_two (1%:M *m swap) (swap *m 1%:M) != raflora_two 1%:M 1%:M.
Proof.
apply/eqP => /matrixP /(_ 1 1).
rewrite mul1mx mulmx1 !mxE !big_ord_recl !big_ord0 !mxE /=.
rewrite !(mulr0, mul0r, mulr1, addr0, add0r) => /eqP.
apply/negP; apply: contra odd => /eqP half.
have : 2%:R * 2%:R^-1 = 2%:R * 1 :> F by rewrite half.
rewrite divff // mulr1 => two. 
have : (1 : F) + 0 = 1 + 1 by rewrite addr0 -[RHS]/(2%:R) -two.
by move/addrI/esym/eqP; rewrite oner_eq0.
Qed.

End Gauge.

