(* Non-IID updates (the paper's App. B): the second-moment recursion, its floors and trajectories.

   Client k returns a_k x + b_k. Gains a_k and drifts b_k are drawn afresh in every round, with means
   g and c and variances nu^2 and tau^2; the server's weights w_k are random too. *)

From Coq Require Import Reals Lra Lia Arith.
From FedLoRA Require Import Sequences Derived.
Open Scope R_scope.

(* The sum of f over the clients 0 .. n - 1. *)
Fixpoint sum (n : nat) (f : nat -> R) : R :=
  match n with O => 0 | S k => sum k f + f k end.

Lemma sum_ext : forall n f g, (forall k, (k < n)%nat -> f k = g k) -> sum n f = sum n g.
Proof. induction n; intros f g H; simpl; [reflexivity | rewrite (IHn f g), H; auto with arith]. Qed.

Lemma sum_plus : forall n f g, sum n (fun k => f k + g k) = sum n f + sum n g.
Proof. induction n; intros; simpl; [ring | rewrite IHn; ring]. Qed.

Lemma sum_scale : forall n r f, sum n (fun k => r * f k) = r * sum n f.
Proof. induction n; intros; simpl; [ring | rewrite IHn; ring]. Qed.

Lemma sum_square : forall n f, sum n f ^ 2 = sum n (fun j => sum n (fun k => f j * f k)).
Proof.
  intros. rewrite (sum_ext n (fun j => sum n (fun k => f j * f k)) (fun j => sum n f * f j)).
  - rewrite sum_scale. ring.
  - intros. rewrite sum_scale. ring.
Qed.

Lemma sum_single : forall n j v,
  sum n (fun k => if (j =? k)%nat then v else 0) = if (j <? n)%nat then v else 0.
Proof.
  induction n; intros; simpl; [reflexivity|]. rewrite IHn.
  destruct (Nat.ltb_spec j n); destruct (Nat.eqb_spec j n); destruct (Nat.ltb_spec j (S n));
    try lia; ring.
Qed.

Section Recursion.

(* A random variable is a function of the outcome; E is its expectation, which is linear. *)
Variable outcome : Type.
Variable E : (outcome -> R) -> R.
Hypothesis E_ext : forall X Y, (forall o, X o = Y o) -> E X = E Y.
Hypothesis E_plus : forall X Y, E (fun o => X o + Y o) = E X + E Y.
Hypothesis E_scale : forall r X, E (fun o => r * X o) = r * E X.

(* The amplitude x at the start of the round, and weight, gain and drift of n clients. *)
Variable n : nat.
Variable x : outcome -> R.
Variables w a b : nat -> outcome -> R.
Variables g c nu tau : R.

(* Gains and drifts are fresh: independent of the weights, of the amplitude and of each other. *)
Hypothesis mean_gain : forall k, E (fun o => w k o * a k o * x o) = E (w k) * g * E x.
Hypothesis mean_drift : forall k, E (fun o => w k o * b k o) = E (w k) * c.
Hypothesis gains : forall j k, j <> k ->
  E (fun o => w j o * w k o * (a j o * a k o * x o ^ 2)) =
  E (fun o => w j o * w k o) * g ^ 2 * E (fun o => x o ^ 2).
Hypothesis gain_drift : forall j k, j <> k ->
  E (fun o => w j o * w k o * (a j o * b k o * x o)) = E (fun o => w j o * w k o) * (g * c) * E x.
Hypothesis drifts : forall j k, j <> k ->
  E (fun o => w j o * w k o * (b j o * b k o)) = E (fun o => w j o * w k o) * c ^ 2.
Hypothesis gain_square : forall k,
  E (fun o => w k o * w k o * (a k o * a k o * x o ^ 2)) =
  E (fun o => w k o * w k o) * (g ^ 2 + nu ^ 2) * E (fun o => x o ^ 2).
Hypothesis own_gain_drift : forall k,
  E (fun o => w k o * w k o * (a k o * b k o * x o)) = E (fun o => w k o * w k o) * (g * c) * E x.
Hypothesis drift_square : forall k,
  E (fun o => w k o * w k o * (b k o * b k o)) = E (fun o => w k o * w k o) * (c ^ 2 + tau ^ 2).

(* One round of averaging: x' = sum_k w_k (a_k x + b_k). *)
Definition next (o : outcome) : R := sum n (fun k => w k o * (a k o * x o + b k o)).

(* The moments of the weights: S1 = E[sum w], S2 = E[(sum w)^2], Q = E[sum w^2]. *)
Definition S1 : R := E (fun o => sum n (fun k => w k o)).
Definition S2 : R := E (fun o => sum n (fun k => w k o) ^ 2).
Definition Q : R := E (fun o => sum n (fun k => w k o * w k o)).

Lemma E_zero : E (fun _ => 0) = 0.
Proof.
  rewrite (E_ext _ (fun o => 0 * (fun _ => 0) o)) by (intro; ring).
  rewrite (E_scale 0 (fun _ => 0)). ring.
Qed.

Lemma E_sum : forall m X, E (fun o => sum m (fun k => X k o)) = sum m (fun k => E (X k)).
Proof.
  induction m; intros; simpl; [apply E_zero|].
  rewrite (E_plus (fun o => sum m (fun k => X k o)) (X m)), IHm. reflexivity.
Qed.

(* The mean amplitude: E[x'] = S1 (g E[x] + c). *)
Theorem mean_recursion : E next = floors_mean_recursion S1 c g (E x).
Proof.
  unfold next, S1. rewrite !E_sum.
  rewrite (sum_ext n _ (fun k => (g * E x + c) * E (w k))).
  - rewrite sum_scale. unfold floors_mean_recursion. ring.
  - intros k _. rewrite (E_ext _ (fun o => w k o * a k o * x o + w k o * b k o)) by (intro; ring).
    rewrite E_plus, mean_gain, mean_drift. ring.
Qed.

(* What two different clients contribute, and what one client contributes with itself. *)
Definition between : R := g ^ 2 * E (fun o => x o ^ 2) + 2 * (g * c) * E x + c ^ 2.
Definition within : R :=
  (g ^ 2 + nu ^ 2) * E (fun o => x o ^ 2) + 2 * (g * c) * E x + (c ^ 2 + tau ^ 2).

Lemma four_terms : forall j k,
  E (fun o => w j o * (a j o * x o + b j o) * (w k o * (a k o * x o + b k o))) =
  E (fun o => w j o * w k o * (a j o * a k o * x o ^ 2)) +
  E (fun o => w j o * w k o * (a j o * b k o * x o)) +
  E (fun o => w k o * w j o * (a k o * b j o * x o)) +
  E (fun o => w j o * w k o * (b j o * b k o)).
Proof. intros. rewrite <- !E_plus. apply E_ext. intro. ring. Qed.

Lemma pair_moment : forall j k,
  E (fun o => w j o * (a j o * x o + b j o) * (w k o * (a k o * x o + b k o))) =
  between * E (fun o => w j o * w k o) +
  (if (j =? k)%nat then (within - between) * E (fun o => w j o * w j o) else 0).
Proof.
  intros. rewrite four_terms. unfold between, within. destruct (Nat.eqb_spec j k) as [->|D].
  - rewrite gain_square, !own_gain_drift, drift_square. ring.
  - assert (D' : k <> j) by auto. rewrite gains, (gain_drift j k), (gain_drift k j), drifts by assumption.
    rewrite (E_ext (fun o => w k o * w j o) (fun o => w j o * w k o)) by (intro; ring). ring.
Qed.

(* The second moment: E[x'^2] = q' E[x^2] + 2 g c S2 E[x] + delta^2, as derived. *)
Theorem second_moment_recursion :
  E (fun o => next o ^ 2) =
  floors_second_moment_recursion Q S2 c g nu tau (E x) (E (fun o => x o ^ 2)).
Proof.
  assert (HS2 : S2 = sum n (fun j => sum n (fun k => E (fun o => w j o * w k o)))).
  { unfold S2. rewrite (E_ext _ _ (fun o => sum_square n (fun k => w k o))).
    rewrite (E_sum n (fun j o => sum n (fun k => w j o * w k o))).
    apply sum_ext. intros j _. apply (E_sum n (fun k o => w j o * w k o)). }
  assert (HQ : Q = sum n (fun j => E (fun o => w j o * w j o))).
  { unfold Q. apply (E_sum n (fun j o => w j o * w j o)). }
  unfold next.
  rewrite (E_ext _ _ (fun o => sum_square n (fun k => w k o * (a k o * x o + b k o)))).
  rewrite (E_sum n (fun j o => sum n (fun k =>
    w j o * (a j o * x o + b j o) * (w k o * (a k o * x o + b k o))))).
  rewrite (sum_ext n _ (fun j => between * sum n (fun k => E (fun o => w j o * w k o)) +
    (within - between) * E (fun o => w j o * w j o))).
  - rewrite sum_plus, !sum_scale, <- HS2, <- HQ.
    unfold between, within, floors_second_moment_recursion. ring.
  - intros j Hj.
    rewrite (E_sum n (fun k o => w j o * (a j o * x o + b j o) * (w k o * (a k o * x o + b k o)))).
    rewrite (sum_ext n _ (fun k => between * E (fun o => w j o * w k o) +
      (if (j =? k)%nat then (within - between) * E (fun o => w j o * w j o) else 0)))
      by (intros; apply pair_moment).
    rewrite sum_plus, sum_scale, sum_single. apply Nat.ltb_lt in Hj. rewrite Hj. reflexivity.
Qed.

(* Rounds without a contributor: empty is 1 there, else 0; all weights are 0 in such a round. *)
Variable empty : outcome -> R.
Variable P0 : R.
Hypothesis empty_binary : forall o, empty o * empty o = empty o.
Hypothesis empty_weightless : forall k o, empty o * w k o = 0.
Hypothesis empty_square : E (fun o => empty o * x o ^ 2) = P0 * E (fun o => x o ^ 2).

Lemma empty_next : forall o, empty o * next o = 0.
Proof.
  intro o. unfold next. rewrite <- sum_scale.
  rewrite (sum_ext n _ (fun _ => 0 * 0)).
  - rewrite sum_scale. ring.
  - intros k _. rewrite <- Rmult_assoc, empty_weightless. ring.
Qed.

(* Carry. A partition that is kept in rounds without a contributor gains P0 E[x^2]. *)
Theorem carry_recursion :
  E (fun o => (next o + empty o * x o) ^ 2) =
  floors_carry P0 Q S2 c g nu tau (E x) (E (fun o => x o ^ 2)).
Proof.
  rewrite (E_ext _ (fun o => next o ^ 2 + empty o * x o ^ 2)).
  - rewrite (E_plus (fun o => next o ^ 2)), second_moment_recursion, empty_square.
    unfold floors_second_moment_recursion, floors_carry. ring.
  - intro o. pose proof (empty_next o) as N. pose proof (empty_binary o) as B.
    replace ((next o + empty o * x o) ^ 2)
      with (next o ^ 2 + 2 * (empty o * next o) * x o + empty o * empty o * x o ^ 2) by ring.
    rewrite N, B. ring.
Qed.

(* raFLoRA's weights sum to 1 in every round with a contributor. *)
Hypothesis E_one : E (fun _ => 1) = 1.
Hypothesis empty_chance : E empty = P0.
Hypothesis normalized : forall o, sum n (fun k => w k o) = 1 - empty o.

(* raFLoRA: E[(sum w)^2] = 1 - P0. *)
Theorem raflora_second : S2 = 1 - P0.
Proof.
  unfold S2. rewrite (E_ext _ (fun o => 1 + -1 * empty o)).
  - rewrite (E_plus (fun _ => 1)), E_scale, E_one, empty_chance. ring.
  - intro o. rewrite normalized. pose proof (empty_binary o) as B.
    replace ((1 - empty o) ^ 2) with (1 - 2 * empty o + empty o * empty o) by ring. rewrite B. ring.
Qed.

(* raFLoRA that drops empty partitions loses energy at rate 1 - P0 for perfect gains. *)
Theorem raflora_zero_rate : g = 1 -> c = 0 -> nu = 0 -> tau = 0 ->
  E (fun o => next o ^ 2) = floors_raflora_rate P0 Q 1 0 * E (fun o => x o ^ 2).
Proof.
  intros Hg Hc Hn Ht. rewrite second_moment_recursion, raflora_second, Hg, Hc, Hn, Ht.
  unfold floors_second_moment_recursion, floors_raflora_rate. ring.
Qed.

(* raFLoRA that carries empty partitions over keeps the energy exactly. *)
Theorem raflora_carry_flat : g = 1 -> c = 0 -> nu = 0 -> tau = 0 ->
  E (fun o => (next o + empty o * x o) ^ 2) = (1 + floors_carry_excess) * E (fun o => x o ^ 2).
Proof.
  intros Hg Hc Hn Ht. rewrite carry_recursion, raflora_second, Hg, Hc, Hn, Ht.
  unfold floors_carry, floors_carry_excess. ring.
Qed.

End Recursion.

(* Trajectory of the energy for drifts of mean zero, exact for every t, if q' is not 1. *)
Theorem energy_trajectory : forall Q S2 g nu tau (m e : nat -> R),
  floors_rate Q S2 g nu <> 1 ->
  (forall t, e (S t) = floors_second_moment_recursion Q S2 0 g nu tau (m t) (e t)) ->
  forall t, e t = floors_energy_after Q S2 g nu t tau (e 0%nat).
Proof.
  intros Q S2 g nu tau m e H R t. unfold floors_rate in H.
  rewrite (affine_after (Q * nu ^ 2 + S2 * g ^ 2) (Q * tau ^ 2) e).
  - unfold floors_energy_after. set (q := Q * nu ^ 2 + S2 * g ^ 2) in *. set (p := q ^ t). field. lra.
  - exact H.
  - intro s. rewrite R. unfold floors_second_moment_recursion. ring.
Qed.

(* At q' = 1 there is no floor: the energy grows by delta^2 in every round. *)
Theorem energy_at_boundary : forall Q S2 g nu tau (m e : nat -> R),
  floors_rate Q S2 g nu = 1 ->
  (forall t, e (S t) = floors_second_moment_recursion Q S2 0 g nu tau (m t) (e t)) ->
  forall t, e t = floors_energy_at_boundary Q t tau (e 0%nat).
Proof.
  intros Q S2 g nu tau m e H R t. unfold floors_rate in H.
  rewrite (affine_unit (Q * tau ^ 2) e).
  - unfold floors_energy_at_boundary. ring.
  - intro s. rewrite R. unfold floors_second_moment_recursion.
    replace (e s) with ((Q * nu ^ 2 + S2 * g ^ 2) * e s) at 3 by (rewrite H; ring). ring.
Qed.

(* The floor. For q' below 1 in size the energy tends to delta^2 / (1 - q'). *)
Theorem floor_reached : forall Q S2 g nu tau (m e : nat -> R),
  Rabs (floors_rate Q S2 g nu) < 1 ->
  (forall t, e (S t) = floors_second_moment_recursion Q S2 0 g nu tau (m t) (e t)) ->
  Un_cv e (floors_floor Q S2 g nu tau).
Proof.
  intros Q S2 g nu tau m e H R. unfold floors_rate in H.
  assert (N : Q * nu ^ 2 + S2 * g ^ 2 <> 1) by (intro X; rewrite X, Rabs_R1 in H; lra).
  replace (floors_floor Q S2 g nu tau) with (Q * tau ^ 2 / (1 - (Q * nu ^ 2 + S2 * g ^ 2))).
  - apply affine_limit; [exact H|]. intro s. rewrite R. unfold floors_second_moment_recursion. ring.
  - unfold floors_floor. field. lra.
Qed.

(* Heterogeneity slows the suppression: q' grows with nu^2, by E[sum w^2]. *)
Theorem heterogeneity_slows : forall Q S2 g nu,
  floors_rate Q S2 g nu = floors_rate Q S2 g 0 + Q * nu ^ 2.
Proof. intros. unfold floors_rate. ring. Qed.

(* At the critical deviation q' is exactly 1. *)
Theorem heterogeneity_critical : forall Q S2 g, 0 < Q -> S2 * g ^ 2 <= 1 ->
  floors_rate Q S2 g (floors_critical_gain_std Q S2 g) = 1.
Proof.
  intros Q S2 g HQ H. unfold floors_rate, floors_critical_gain_std.
  assert (s : sqrt Q <> 0) by (apply Rgt_not_eq, sqrt_lt_R0; exact HQ).
  unfold Rdiv. rewrite Rpow_mult_distr, pow_inv.
  rewrite !pow2_sqrt by lra. field. lra.
Qed.

(* The mean amplitude for drifts of any mean tends to its floor. *)
Theorem mean_floor_reached : forall S1 c g (m : nat -> R), Rabs (S1 * g) < 1 ->
  (forall t, m (S t) = floors_mean_recursion S1 c g (m t)) -> Un_cv m (floors_mean_floor S1 c g).
Proof.
  intros S1 c g m H R.
  assert (N : S1 * g <> 1) by (intro X; rewrite X, Rabs_R1 in H; lra).
  replace (floors_mean_floor S1 c g) with (S1 * c / (1 - S1 * g)).
  - apply affine_limit; [exact H|]. intro s. rewrite R. unfold floors_mean_recursion. ring.
  - unfold floors_mean_floor. field. lra.
Qed.

(* Both moments after t rounds, for drifts of any mean: q', alpha and 1 all different. *)
Theorem moments_after : forall alpha beta delta2 kappa q (m e : nat -> R),
  alpha <> 1 -> q <> 1 -> alpha <> q ->
  (forall t, m (S t) = alpha * m t + beta) ->
  (forall t, e (S t) = q * e t + kappa * m t + delta2) ->
  forall t, m t = trajectories_moments_after_mean alpha beta t (m 0%nat) /\
    e t = trajectories_moments_after_energy alpha beta delta2 kappa q t (m 0%nat) (e 0%nat).
Proof.
  intros alpha beta delta2 kappa q m e Ha Hq Haq Rm Re t.
  unfold trajectories_moments_after_mean, trajectories_moments_after_energy.
  induction t as [|t [IHm IHe]].
  - split; simpl; field; repeat split; lra.
  - split.
    + rewrite Rm, IHm, <- tech_pow_Rmult. set (p := alpha ^ t). field. lra.
    + rewrite Re, IHm, IHe, <- !tech_pow_Rmult. set (p := alpha ^ t). set (s := q ^ t).
      field. repeat split; lra.
Qed.

(* The floor with drift: the energy tends to it for q' and alpha below 1 in size. *)
Theorem floor_with_drift_reached : forall Q S1 S2 c g nu tau (m e : nat -> R),
  Rabs (S1 * g) < 1 -> Rabs (floors_rate Q S2 g nu) < 1 -> S1 * g <> floors_rate Q S2 g nu ->
  (forall t, m (S t) = floors_mean_recursion S1 c g (m t)) ->
  (forall t, e (S t) = floors_second_moment_recursion Q S2 c g nu tau (m t) (e t)) ->
  Un_cv e (floors_floor_with_drift Q S1 S2 c g nu tau).
Proof.
  intros Q S1 S2 c g nu tau m e Ha Hq Haq Rm Re.
  set (alpha := S1 * g) in *. set (q := floors_rate Q S2 g nu) in *.
  assert (Na : alpha <> 1) by (intro X; rewrite X, Rabs_R1 in Ha; lra).
  assert (Nq : q <> 1) by (intro X; rewrite X, Rabs_R1 in Hq; lra).
  set (m0 := m 0%nat - S1 * c / (1 - alpha)).
  set (kappa := 2 * S2 * c * g).
  set (l := floors_floor_with_drift Q S1 S2 c g nu tau).
  set (h := kappa * m0 / (alpha - q)).
  assert (C : forall t, e t = (l + q ^ t * (e 0%nat - l - h)) + alpha ^ t * h).
  { intro t.
    assert (M : forall t, m t = S1 * c / (1 - alpha) + alpha ^ t * m0).
    { apply affine_after; [exact Na|]. intro s. rewrite Rm. unfold floors_mean_recursion, alpha. ring. }
    assert (L : l = q * l + kappa * (S1 * c / (1 - alpha)) + (Q * tau ^ 2 + S2 * c ^ 2)).
    { unfold l, floors_floor_with_drift, kappa, q, floors_rate, alpha in *. field. split; lra. }
    induction t; [simpl; ring|].
    rewrite Re. unfold floors_second_moment_recursion. rewrite M, IHt.
    rewrite <- (tech_pow_Rmult alpha t), <- (tech_pow_Rmult q t).
    set (K := kappa * (S1 * c / (1 - alpha)) + (Q * tau ^ 2 + S2 * c ^ 2)).
    assert (L' : l = q * l + K) by (rewrite L at 1; unfold K; ring).
    assert (A : kappa * (alpha ^ t * m0) = (alpha - q) * (alpha ^ t * h)).
    { unfold h. field. lra. }
    set (z := l + q ^ t * (e 0%nat - l - h) + alpha ^ t * h).
    transitivity (q * z + K + kappa * (alpha ^ t * m0)).
    - unfold K, q, floors_rate, kappa. ring.
    - rewrite A. unfold z.
      transitivity (q * l + K + (q * (q ^ t * (e 0%nat - l - h)) + alpha * (alpha ^ t * h))).
      + ring.
      + rewrite <- L'. ring. }
  apply limit_ext with (1 := C).
  pose proof (CV_plus _ _ _ _ (geometric_limit q l (e 0%nat - l - h) Hq)
    (power_vanishes alpha h Ha)) as L.
  rewrite Rplus_0_r in L. exact L.
Qed.

(* Equal signal-to-noise ratio: undoing the dilution amplifies signal and noise alike. *)
Theorem equal_signal_to_noise : forall H c g m nu tau x,
  H <> 0 -> m <> 0 -> nu ^ 2 * x ^ 2 + tau ^ 2 <> 0 ->
  noise_fedavg_round_signal H c g m x ^ 2 / noise_fedavg_round_variance H m nu tau x =
  noise_raflora_round_signal c g x ^ 2 / noise_raflora_round_variance H nu tau x.
Proof.
  intros H c g m nu tau x Hh Hm Hv. unfold noise_fedavg_round_signal, noise_fedavg_round_variance,
    noise_raflora_round_signal, noise_raflora_round_variance.
  set (V := nu ^ 2 * x ^ 2 + tau ^ 2) in *. field. auto.
Qed.
