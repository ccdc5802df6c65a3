(* Rules that merge into the base: FLoRA, FedEx-LoRA and the increment form; constant drift. *)

From Coq Require Import Reals Lra Lia List.
From FedLoRA Require Import Federation Sequences Derived.
Import ListNotations.
Open Scope R_scope.

(* FLoRA and the increment form: the base keeps x_j and adds the weighted average of the clients'
   changes.
   A client of gain g and drift c that carries the direction returns g x_j + c. *)
Definition increment (clients : list client) (g c : R) (x : amplitudes) : amplitudes :=
  fun j => x j + over clients (fun k => fst k * returned k (fun i => g * x i + c - x i) j).

(* Only the increment is diluted: x' = x + W (g x + c - x). *)
Theorem increment_multiplier : forall clients g c x j,
  increment clients g c x j = multipliers_flora (coverage clients j) g c (x j).
Proof.
  intros. unfold increment, multipliers_flora.
  change (over clients (fun k => fst k * returned k (fun i => g * x i + c - x i) j))
    with (fedavg clients (fun i => g * x i + c - x i) j).
  rewrite fedavg_multiplier. ring.
Qed.

(* No compounding: an amplitude that every client returns unchanged is kept, for every coverage and
   every t. *)
Theorem increment_keeps : forall clients x j t, after t (increment clients 1 0) x j = x j.
Proof.
  intros. induction t; simpl; [reflexivity|].
  rewrite increment_multiplier, IHt. unfold multipliers_flora. ring.
Qed.

(* Growth W. A drift c adds W c in every round. *)
Theorem increment_growth : forall clients c x j t,
  after t (increment clients 1 c) x j = x j + INR t * (coverage clients j * c).
Proof.
  intros. apply (affine_unit _ (fun t => after t (increment clients 1 c) x j)).
  intro s. simpl. rewrite increment_multiplier. unfold multipliers_flora. ring.
Qed.

(* Diluted loss. A gain g below 1 multiplies the amplitude by 1 - W (1 - g) in every round, not by
   W g. *)
Theorem increment_loss : forall clients g x j t,
  after t (increment clients g 0) x j = (1 - coverage clients j * (1 - g)) ^ t * x j.
Proof.
  intros. apply (geometric_after _ (fun t => after t (increment clients g 0) x j)).
  intro s. simpl. rewrite increment_multiplier. unfold multipliers_flora. ring.
Qed.

(* Never collapse. With gains of at least 1 and drifts that are not negative, no amplitude falls. *)
Theorem increment_never_collapses : forall clients g c x j t, weighted clients ->
  1 <= g -> 0 <= c -> 0 <= x j -> x j <= after t (increment clients g c) x j.
Proof.
  intros clients g c x j t W Hg Hc Hx.
  pose proof (proj1 (coverage_bounds clients j W)) as P. induction t; simpl; [lra|].
  rewrite increment_multiplier. unfold multipliers_flora. set (y := after t _ x j) in *.
  assert (0 <= coverage clients j * (g * y + c - y)); [|lra].
  apply Rmult_le_pos; [exact P|]. assert (0 <= (g - 1) * y) by (apply Rmult_le_pos; lra). lra.
Qed.

(* FedEx-LoRA. Adapter x and base z of one direction. Clients return y = a (x + z) + b - z; averaged
   factors hold W^2 y, and the residual (W - W^2) y joins the base. *)
Definition fedex (W a b : R) (s : R * R) : R * R :=
  let y := a * (fst s + snd s) + b - snd s in (W ^ 2 * y, snd s + (W - W ^ 2) * y).

Fixpoint fedex_after (W : R) (t : nat) (x0 : R) : R * R :=
  match t with O => (x0, 0) | S t' => fedex W 1 0 (fedex_after W t' x0) end.

Lemma fedex_adapter : forall W t x0, fst (fedex_after W t x0) = (W ^ 2) ^ t * x0.
Proof.
  intros. induction t; simpl; [ring|]. unfold fedex in *. simpl. 
  replace (1 * (fst (fedex_after W t x0) + snd (fedex_after W t x0)) + 0 - snd (fedex_after W t x0))
    with (fst (fedex_after W t x0)) by ring. rewrite IHt. simpl. ring.
Qed.

(* The total x + z after t rounds, with perfect gains and an empty base at the start. *)
Theorem fedex_total : forall W t x0, 1 + W <> 0 ->
  fst (fedex_after W t x0) + snd (fedex_after W t x0) = base_rules_fedex_total_after W t * x0.
Proof.
  intros W t x0 H. rewrite fedex_adapter. unfold base_rules_fedex_total_after. rewrite pow_mult.
  induction t.
  - simpl. field. lra.
  - change (fedex_after W (S t) x0) with (fedex W 1 0 (fedex_after W t x0)). unfold fedex.
    cbv zeta. simpl snd.
    replace (1 * (fst (fedex_after W t x0) + snd (fedex_after W t x0)) + 0 - snd (fedex_after W t x0))
      with (fst (fedex_after W t x0)) by ring.
    rewrite fedex_adapter, <- (tech_pow_Rmult (W ^ 2) t). set (p := (W ^ 2) ^ t) in *.
    replace (snd (fedex_after W t x0)) with ((W + p) / (W + 1) * x0 - p * x0) by (rewrite <- IHt; ring).
    field. lra.
Qed.

(* FedEx settles at W / (1 + W) of its start: neither kept nor lost. *)
Theorem fedex_settles : forall W x0, 0 <= W < 1 ->
  Un_cv (fun t => fst (fedex_after W t x0) + snd (fedex_after W t x0))
    (base_rules_fedex_total_limit W * x0).
Proof.
  intros W x0 [H0 H1].
  assert (G : Rabs (W ^ 2) < 1).
  { rewrite Rabs_pos_eq by apply pow2_ge_0. simpl. rewrite Rmult_1_r.
    apply Rle_lt_trans with (1 * W); [apply Rmult_le_compat_r; lra | lra]. }
  apply limit_ext with (f := fun t => base_rules_fedex_total_limit W * x0 + (W ^ 2) ^ t * (x0 / (W + 1))).
  - intro t. rewrite fedex_total by lra.
    unfold base_rules_fedex_total_after, base_rules_fedex_total_limit. rewrite pow_mult. field. lra.
  - apply geometric_limit. exact G.
Qed.

(* Its distance from the limit falls by W^2 in every round. *)
Theorem fedex_approach : forall W t x0, 1 + W <> 0 ->
  fst (fedex_after W (S t) x0) + snd (fedex_after W (S t) x0) - base_rules_fedex_total_limit W * x0 =
  W ^ 2 * (fst (fedex_after W t x0) + snd (fedex_after W t x0) - base_rules_fedex_total_limit W * x0).
Proof.
  intros W t x0 H. rewrite !fedex_total by exact H.
  unfold base_rules_fedex_total_after, base_rules_fedex_total_limit.
  rewrite !pow_mult, <- (tech_pow_Rmult (W ^ 2) t). field. lra.
Qed.

(* With a gain below 1 FedEx rests where the adapter is empty and the base holds b / (1 - a). *)
Theorem fedex_rest : forall W a b, a <> 1 ->
  fedex W a b (base_rules_fedex_rest_point_adapter, base_rules_fedex_rest_point_base a b) =
  (base_rules_fedex_rest_point_adapter, base_rules_fedex_rest_point_base a b).
Proof.
  intros W a b H. unfold fedex, base_rules_fedex_rest_point_adapter, base_rules_fedex_rest_point_base.
  simpl. f_equal; field; lra.
Qed.

(* A constant drift. Averaging products over all clients settles at W c / (1 - g W). *)
Theorem drift_floor_fedavg : forall W g c (x : nat -> R), Rabs (W * g) < 1 ->
  (forall t, x (S t) = W * (g * x t + c)) -> Un_cv x (drift_full_floor W c g).
Proof.
  intros W g c x H R. assert (N : W * g <> 1) by (intro X; rewrite X, Rabs_R1 in H; lra).
  replace (drift_full_floor W c g) with (W * c / (1 - W * g)) by (unfold drift_full_floor; field; lra).
  apply affine_limit; [exact H|]. intro. rewrite R. ring.
Qed.

(* Zero padding settles at W^2 c / (1 - g W^2). *)
Theorem drift_floor_zero_pad : forall W g c (x : nat -> R), Rabs (W ^ 2 * g) < 1 ->
  (forall t, x (S t) = W ^ 2 * (g * x t + c)) -> Un_cv x (drift_zero_pad_floor W c g).
Proof.
  intros W g c x H R. assert (N : W ^ 2 * g <> 1) by (intro X; rewrite X, Rabs_R1 in H; lra).
  replace (drift_zero_pad_floor W c g) with (W ^ 2 * c / (1 - W ^ 2 * g))
    by (unfold drift_zero_pad_floor; field; lra).
  apply affine_limit; [exact H|]. intro. rewrite R. ring.
Qed.

(* raFLoRA with a gain below 1 saturates at c / (1 - g). *)
Theorem drift_saturation : forall g c (x : nat -> R), Rabs g < 1 ->
  (forall t, x (S t) = g * x t + c) -> Un_cv x (drift_raflora_saturation c g).
Proof.
  intros g c x H R. assert (N : g <> 1) by (intros ->; rewrite Rabs_R1 in H; lra).
  replace (drift_raflora_saturation c g) with (c / (1 - g))
    by (unfold drift_raflora_saturation; field; lra).
  apply affine_limit; assumption.
Qed.

(* raFLoRA at gain 1 grows linearly, by c times the probability 1 - P0 of a contributor. *)
Theorem drift_linear : forall P0 c (m : nat -> R),
  (forall t, m (S t) = m t + (1 - P0) * c) ->
  forall t, m t = drift_raflora_growth_mean P0 c t (m 0%nat).
Proof.
  intros P0 c m R t. rewrite (affine_unit ((1 - P0) * c) m) by exact R.
  unfold drift_raflora_growth_mean. ring.
Qed.
