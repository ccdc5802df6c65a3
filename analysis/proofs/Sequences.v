(* Sequences: affine recursions, solved for every t, and their limits. *)

From Coq Require Import Reals Lra Lia.
Open Scope R_scope.

(* Un_cv e l (Coq's library) says that e tends to l. *)

(* e' = q e + d has the rest point d / (1 - q), which it approaches by a factor q in every round. *)
Lemma affine_after : forall q d (e : nat -> R), q <> 1 ->
  (forall t, e (S t) = q * e t + d) ->
  forall t, e t = d / (1 - q) + q ^ t * (e 0%nat - d / (1 - q)).
Proof.
  intros q d e H R t. induction t.
  - simpl. field. lra.
  - rewrite R, IHt, <- tech_pow_Rmult. field. lra.
Qed.

(* e' = e + d grows linearly. *)
Lemma affine_unit : forall d (e : nat -> R),
  (forall t, e (S t) = e t + d) -> forall t, e t = e 0%nat + INR t * d.
Proof. intros d e R t. induction t; [simpl; ring | rewrite R, IHt, S_INR; ring]. Qed.

(* e' = q e decays or grows geometrically. *)
Lemma geometric_after : forall q (e : nat -> R),
  (forall t, e (S t) = q * e t) -> forall t, e t = q ^ t * e 0%nat.
Proof. intros q e R t. induction t; [simpl; ring | rewrite R, IHt, <- tech_pow_Rmult; ring]. Qed.

(* A power of a number below 1 in size vanishes, whatever its factor. *)
Lemma power_vanishes : forall q D, Rabs q < 1 -> Un_cv (fun t => q ^ t * D) 0.
Proof.
  intros q D H eps He.
  assert (HD : 0 <= Rabs D) by apply Rabs_pos.
  assert (He' : 0 < eps / (Rabs D + 1)) by (apply Rdiv_lt_0_compat; lra).
  destruct (pow_lt_1_zero _ H _ He') as [T HT]. exists T. intros t Ht.
  unfold R_dist. rewrite Rminus_0_r, Rabs_mult.
  apply Rle_lt_trans with (Rabs (q ^ t) * (Rabs D + 1)).
  - apply Rmult_le_compat_l; [apply Rabs_pos | lra].
  - replace eps with (eps / (Rabs D + 1) * (Rabs D + 1)) by (field; lra).
    apply Rmult_lt_compat_r; [lra | apply HT; lia].
Qed.

(* A constant tends to itself. *)
Lemma constant_limit : forall l, Un_cv (fun _ => l) l.
Proof. intros l eps He. exists 0%nat. intros. rewrite R_dist_eq. exact He. Qed.

(* Sequences that agree have the same limit. *)
Lemma limit_ext : forall e f l, (forall t, e t = f t) -> Un_cv f l -> Un_cv e l.
Proof. intros e f l H C eps He. destruct (C eps He) as [T HT]. exists T. intros. rewrite H. auto. Qed.

(* l plus a vanishing power tends to l. *)
Lemma geometric_limit : forall q l D, Rabs q < 1 -> Un_cv (fun t => l + q ^ t * D) l.
Proof.
  intros q l D H. pose proof (CV_plus _ _ _ _ (constant_limit l) (power_vanishes q D H)) as C.
  rewrite Rplus_0_r in C. exact C.
Qed.

(* An affine recursion of slope below 1 in size tends to its rest point. *)
Lemma affine_limit : forall q d (e : nat -> R), Rabs q < 1 ->
  (forall t, e (S t) = q * e t + d) -> Un_cv e (d / (1 - q)).
Proof.
  intros q d e H R. assert (N : q <> 1) by (intros ->; rewrite Rabs_R1 in H; lra).
  apply limit_ext with (2 := geometric_limit q _ (e 0%nat - d / (1 - q)) H).
  apply affine_after; assumption.
Qed.
