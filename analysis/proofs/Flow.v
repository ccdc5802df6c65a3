(* LoRA's own training as a gradient flow: logistic growth, threshold, floor and rates. *)

From Coq Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
From FedLoRA Require Import Sequences Derived.
Open Scope R_scope.

(* The flow of one direction from balanced factors: x' = 2 x (M - x). The amplitude after local time T
   is the derived local map, with G = exp(2 M T): every positive solution of the flow is this one. *)
Theorem local_map : forall (x : R -> R) M T, 0 < M -> 0 < T ->
  (forall s, 0 <= s <= T -> 0 < x s) ->
  (forall s, 0 <= s <= T -> is_derive x s (flow_amplitude_flow M (x s))) ->
  x T = flow_local_map (exp (2 * M * T)) M (x 0).
Proof.
  intros x M T HM HT P D.
  set (h := fun s => (/ x s - / M) * exp (2 * M * s)).
  assert (Z : forall s, 0 <= s <= T -> is_derive h s 0).
  { intros s Hs. unfold h. specialize (D s Hs). specialize (P s Hs).
    unfold flow_amplitude_flow in D.
    evar_last.
    - apply (is_derive_mult (fun s => / x s - / M) (fun s => exp (2 * M * s))).
      + apply (is_derive_minus (fun s => / x s) (fun _ => / M)).
        * apply is_derive_inv; [exact D | lra].
        * apply is_derive_const.
      + auto_derive; [exact I | reflexivity].
      + intros n m. apply Rmult_comm.
    - unfold plus, mult, minus, opp, zero; simpl. unfold plus, opp; simpl. field. split; lra. }
  assert (E : h 0 = h T) by (apply eq_is_derive; [intros; apply Z; assumption | exact HT]).
  unfold h in E. rewrite Rmult_0_r, exp_0, Rmult_1_r in E.
  assert (P0 : 0 < x 0) by (apply P; lra). assert (PT : 0 < x T) by (apply P; lra).
  unfold flow_local_map. set (G := exp (2 * M * T)) in *.
  assert (HG : 1 < G) by (unfold G; rewrite <- exp_0; apply exp_increasing;
    apply Rmult_lt_0_compat; lra).
  assert (N : 0 < G * x 0 + M - x 0) by (assert (0 < (G - 1) * x 0) by (apply Rmult_lt_0_compat; lra); lra).
  apply Rmult_eq_reg_l with (/ x T * / x 0 * (G * x 0 + M - x 0)).
  - replace (/ x T * / x 0 * (G * x 0 + M - x 0) * x T) with (/ x 0 * (G * x 0 + M - x 0)) by (field; lra).
    replace (/ x T * / x 0 * (G * x 0 + M - x 0) * (G * M * x 0 / (G * x 0 + M - x 0)))
      with (G * M * / x T) by (field; lra).
    replace (G * M * / x T) with (M * ((/ x T - / M) * G) + G) by (field; lra).
    rewrite <- E. field. lra.
  - apply Rgt_not_eq. apply Rmult_lt_0_compat; [|exact N].
    apply Rmult_lt_0_compat; apply Rinv_0_lt_compat; assumption.
Qed.

(* A small amplitude grows by G in one round of local training. *)
Theorem local_gain : forall G M, 0 < M ->
  is_derive (fun x => flow_local_map G M x) 0 (flow_local_gain G).
Proof. intros. unfold flow_local_map, flow_local_gain. auto_derive; [lra | field; lra]. Qed.

(* Rounds: local training, then the rule's multiplier omega (W for FedAvg, W^2 for zero padding, 1 for
   raFLoRA). *)
Section Rounds.

Variables G M omega : R.
Hypothesis training : 1 < G.
Hypothesis target : 0 < M.
Hypothesis multiplier : 0 < omega.
Variable x : nat -> R.
Hypothesis start : 0 < x 0%nat.
Hypothesis rounds : forall t, x (S t) = flow_round_map G M omega (x t).

Lemma denominator : forall y, 0 < y -> 0 < G * y + M - y.
Proof. intros y H. assert (0 < (G - 1) * y) by (apply Rmult_lt_0_compat; lra). lra. Qed.

Lemma positive : forall t, 0 < x t.
Proof.
  induction t; [exact start|]. rewrite rounds. unfold flow_round_map.
  apply Rdiv_lt_0_compat; [|apply denominator; exact IHt].
  repeat apply Rmult_lt_0_compat; lra.
Qed.

(* In y = 1 / x a round is affine. *)
Theorem inverse_round : forall t, / x (S t) = flow_inverse_round_map G M omega (/ x t).
Proof.
  intro t. rewrite rounds. pose proof (positive t) as P. pose proof (denominator _ P) as D.
  unfold flow_round_map, flow_inverse_round_map. field. repeat split; lra.
Qed.

Lemma growth_positive : 0 < G * omega.
Proof. apply Rmult_lt_0_compat; lra. Qed.

(* The inverse amplitude after t rounds, off the threshold. *)
Lemma inverse_after : G * omega <> 1 -> forall t,
  / x t = (G - 1) / (M * (G * omega - 1)) +
    (1 / (G * omega)) ^ t * (/ x 0%nat - (G - 1) / (M * (G * omega - 1))).
Proof.
  intros H t. pose proof growth_positive as Q.
  assert (N : 1 / (G * omega) <> 1).
  { intro X. apply H. apply Rmult_eq_reg_l with (1 / (G * omega)); [|lra].
    rewrite X at 2. field. lra. }
  rewrite (affine_after (1 / (G * omega)) ((G - 1) / (G * M * omega)) (fun t => / x t) N).
  - replace ((G - 1) / (G * M * omega) / (1 - 1 / (G * omega)))
      with ((G - 1) / (M * (G * omega - 1))); [reflexivity|].
    field. repeat split; lra.
  - intro s. rewrite inverse_round. unfold flow_inverse_round_map. field. 
    pose proof (positive s). repeat split; lra.
Qed.

(* The floor is the rest point of a round that is not zero. *)
Theorem floor_rests : G * omega <> 1 ->
  flow_round_map G M omega (flow_floor G M omega) = flow_floor G M omega.
Proof.
  intro H. unfold flow_round_map, flow_floor. pose proof growth_positive.
  field. split; [lra|]. 
  replace (G * (M * (G * omega - 1)) + M * (G - 1) - M * (G * omega - 1))
    with (M * (G - 1) * (G * omega)) by ring.
  apply Rgt_not_eq. repeat apply Rmult_lt_0_compat; lra.
Qed.

(* Below the threshold the direction collapses to zero, at least by omega G in every round. *)
Theorem collapse_below : G * omega < 1 -> Un_cv x 0.
Proof.
  intro H. pose proof growth_positive as Q.
  assert (B : forall t, 0 <= x t <= (G * omega) ^ t * x 0%nat).
  { induction t; [simpl; lra|]. pose proof (positive t) as P. pose proof (positive (S t)).
    split; [lra|]. rewrite rounds, <- tech_pow_Rmult. unfold flow_round_map.
    pose proof (denominator _ P) as D.
    apply Rle_trans with (G * omega * x t).
    - apply Rmult_le_reg_r with (G * x t + M - x t); [exact D|].
      replace (G * M * omega * x t / (G * x t + M - x t) * (G * x t + M - x t))
        with (G * omega * x t * M) by (field; lra).
      apply Rmult_le_compat_l; [left; apply Rmult_lt_0_compat; lra|].
      assert (0 < (G - 1) * x t) by (apply Rmult_lt_0_compat; lra). lra.
    - replace (G * omega * (G * omega) ^ t * x 0%nat)
        with (G * omega * ((G * omega) ^ t * x 0%nat)) by ring.
      apply Rmult_le_compat_l; lra. }
  assert (A : Rabs (G * omega) < 1) by (rewrite Rabs_pos_eq; lra).
  intros eps He. destruct (power_vanishes _ (x 0%nat) A eps He) as [T HT].
  exists T. intros t Ht. specialize (HT t Ht). unfold R_dist in *.
  rewrite Rminus_0_r in *. destruct (B t). rewrite Rabs_pos_eq in * by lra. lra.
Qed.

(* Above it, the amplitude tends to the floor M (omega G - 1) / (G - 1), from any positive start. *)
Theorem floor_above : 1 < G * omega -> Un_cv x (flow_floor G M omega).
Proof.
  intro H. assert (N : G * omega <> 1) by lra. pose proof growth_positive as Q.
  assert (A : Rabs (1 / (G * omega)) < 1).
  { rewrite Rabs_pos_eq.
    - apply Rmult_lt_reg_r with (G * omega); [exact Q|].
      replace (1 / (G * omega) * (G * omega)) with 1 by (field; lra). lra.
    - left. apply Rdiv_lt_0_compat; lra. }
  apply is_lim_seq_Reals.
  apply is_lim_seq_ext with (u := fun t => / (/ x t)).
  - intro t. pose proof (positive t). field. lra.
  - replace (flow_floor G M omega) with (/ ((G - 1) / (M * (G * omega - 1)))).
    + apply (is_lim_seq_inv (fun t => / x t) ((G - 1) / (M * (G * omega - 1)))).
      * apply is_lim_seq_Reals. apply limit_ext with (1 := inverse_after N).
        apply geometric_limit. exact A.
      * intro X. injection X as X. revert X. apply Rgt_not_eq, Rdiv_lt_0_compat; [lra|].
        apply Rmult_lt_0_compat; lra.
    + unfold flow_floor. field. repeat split; lra.
Qed.

(* Exactly 1 / (omega G) a round is the rate above, in 1 / x. *)
Theorem rate_above : G * omega <> 1 -> forall t,
  / x (S t) - / flow_floor G M omega =
  flow_approach_above G omega * (/ x t - / flow_floor G M omega).
Proof.
  intros H t. rewrite inverse_round. unfold flow_inverse_round_map, flow_floor, flow_approach_above.
  pose proof growth_positive. pose proof (positive t). field. repeat split; lra.
Qed.

(* At the threshold the amplitude falls like 1 / t: it is M x_0 / (M + t (G - 1) x_0). *)
Theorem critical : G * omega = 1 -> forall t, x t = flow_critical_amplitude G M t (x 0%nat).
Proof.
  intros H t. pose proof (positive t) as P. pose proof start as P0.
  assert (E : / x t = / x 0%nat + INR t * ((G - 1) / M)).
  { apply (affine_unit _ (fun t => / x t)). intro s. rewrite inverse_round.
    unfold flow_inverse_round_map. replace (G * M * omega) with (M * (G * omega)) by ring.
    rewrite H. pose proof (positive s). field. split; lra. }
  rewrite <- (Rinv_inv (x t)), E. unfold flow_critical_amplitude.
  pose proof (pos_INR t) as I. assert (0 <= INR t * (G - 1) * x 0%nat).
  { apply Rmult_le_pos; [apply Rmult_le_pos; lra | lra]. }
  field. repeat split; lra.
Qed.

(* Its inverse grows by (G - 1) / M in every round: x falls like 1 / t. *)
Theorem critical_growth : G * omega = 1 -> forall t,
  / x (S t) - / x t = / flow_critical_law G M.
Proof.
  intros H t. rewrite inverse_round. unfold flow_inverse_round_map, flow_critical_law.
  replace (G * M * omega) with (M * (G * omega)) by ring. rewrite H.
  pose proof (positive t). field. repeat split; lra.
Qed.

End Rounds.

(* The slope of a round at zero is omega G, the rate below the threshold. *)
Theorem rate_below : forall G M omega, 0 < M ->
  is_derive (fun x => flow_round_map G M omega x) 0 (flow_approach_below G omega).
Proof. intros. unfold flow_round_map, flow_approach_below. auto_derive; [lra | field; lra]. Qed.

(* The threshold in local time: omega exp(2 M T) = 1 exactly at T = ln(1 / omega) / (2 M). *)
Theorem critical_time : forall omega M T, 0 < omega -> 0 < M ->
  (exp (2 * M * T) * omega = 1 <-> T = flow_critical_time M omega).
Proof.
  intros omega M T Ho HM. unfold flow_critical_time. split; intro H.
  - assert (E : 2 * M * T = - ln omega).
    { rewrite <- (ln_exp (2 * M * T)). replace (exp (2 * M * T)) with (/ omega).
      - apply ln_Rinv. exact Ho.
      - apply Rmult_eq_reg_r with omega; [|lra]. rewrite H. field. lra. }
    apply Rmult_eq_reg_l with (2 * M); [|lra]. rewrite E. field. lra.
  - rewrite H. replace (2 * M * (- ln omega / (2 * M))) with (- ln omega) by (field; lra).
    rewrite exp_Ropp, exp_ln by exact Ho. field. lra.
Qed.
