(* Strictness: one client of positive weight below the rank is enough for collapse. *)

From Coq Require Import Reals Lra Lia List Arith.
From FedLoRA Require Import Federation Derived.
Import ListNotations.
Open Scope R_scope.

(* Strict dilution. If one client of positive weight does not carry direction j, then pi_j is below
   the total weight, whatever the other clients are. *)
Theorem strict : forall clients j, weighted clients ->
  Exists (fun k => 0 < fst k /\ carries j k = false) clients ->
  coverage clients j < total clients.
Proof.
  intros clients j W E. induction clients as [|k others IH]; [inversion E|].
  inversion W; subst. pose proof (proj2 (coverage_bounds others j H2)) as B.
  unfold coverage, total in *. simpl. inversion E; subst.
  - destruct H0 as [P N]. rewrite N. lra.
  - specialize (IH H2 H0). destruct (carries j k); lra.
Qed.

(* No dilution otherwise. If every client of positive weight carries direction j, nothing is lost. *)
Theorem no_dilution : forall clients j, weighted clients ->
  Forall (fun k => 0 < fst k -> carries j k = true) clients ->
  coverage clients j = total clients.
Proof.
  intros clients j W A. induction clients as [|k others IH]; [reflexivity|].
  inversion W; subst. inversion A; subst. specialize (IH H2 H4).
  unfold coverage, total in *. simpl. rewrite IH.
  destruct (carries j k) eqn:C; [reflexivity|].
  destruct (Rle_lt_or_eq_dec _ _ H1) as [P|<-]; [discriminate (H3 P) | ring].
Qed.

(* Collapse. One such client makes FedAvg lose direction j: its amplitude falls below any bound. *)
Theorem collapse : forall clients x j eps, weighted clients -> total clients = 1 ->
  Exists (fun k => 0 < fst k /\ carries j k = false) clients -> 0 < eps ->
  exists T, forall t, (T <= t)%nat -> Rabs (after t (fedavg clients) x j) < eps.
Proof.
  intros clients x j eps W T E He.
  pose proof (strict clients j W E) as S. rewrite T in S.
  pose proof (proj1 (coverage_bounds clients j W)) as P.
  assert (G : Rabs (coverage clients j) < 1) by (rewrite Rabs_pos_eq; assumption).
  assert (Hx : 0 <= Rabs (x j)) by apply Rabs_pos.
  assert (He' : 0 < eps / (Rabs (x j) + 1)) by (apply Rdiv_lt_0_compat; lra).
  destruct (pow_lt_1_zero _ G _ He') as [N HN]. exists N. intros t Ht. specialize (HN t Ht).
  replace (after t (fedavg clients) x j) with (coverage clients j ^ t * x j).
  - rewrite Rabs_mult. apply Rle_lt_trans with (Rabs (coverage clients j ^ t) * (Rabs (x j) + 1)).
    + apply Rmult_le_compat_l; [apply Rabs_pos | lra].
    + apply Rmult_lt_compat_r with (r := Rabs (x j) + 1) in HN; [|lra].
      replace (eps / (Rabs (x j) + 1) * (Rabs (x j) + 1)) with eps in HN by (field; lra). exact HN.
  - clear. induction t; simpl; [ring | rewrite fedavg_multiplier, <- IHt; ring].
Qed.

(* Persistence of raFLoRA. It keeps the same direction, as long as one client of positive weight
   carries it. *)
Theorem raflora_persists : forall clients x j t, 0 < coverage clients j ->
  after t (raflora clients) x j = x j.
Proof.
  intros clients x j t P. induction t; simpl; [reflexivity|].
  unfold raflora at 1. rewrite fedavg_multiplier, IHt. field. lra.
Qed.
