(* The collapse bound: 1 - rho(t) <= C gamma^t, with explicit constants. *)

From Coq Require Import Reals Lra Lia List.
From FedLoRA Require Import Federation Derived.
Import ListNotations.
Open Scope R_scope.

(* A partition above the shared one: its initial energy E_h and its coverage pi_h. *)
Definition partition := (R * R)%type.

(* The energy above the shared directions after t rounds of FedAvg: sum_h E_h pi_h^(2 t). *)
Fixpoint higher (parts : list partition) (t : nat) : R :=
  match parts with
  | [] => 0
  | (E, pi) :: others => E * rates_staircase_energy pi t + higher others t
  end.

(* The share of the energy outside the shared directions: 1 - rho(t). *)
Definition outside (shared : R) (parts : list partition) (t : nat) : R :=
  higher parts t / (shared + higher parts t).

(* Energies are not negative, and no coverage exceeds that of the second level. *)
Definition below (second : R) (parts : list partition) : Prop :=
  Forall (fun h => 0 <= fst h /\ 0 <= snd h <= second) parts.

Lemma higher_nonneg : forall second parts t, below second parts -> 0 <= higher parts t.
Proof.
  intros second parts t H. induction H as [|[E pi] others [HE [Hp _]] _ IH]; simpl in *; [lra|].
  apply Rplus_le_le_0_compat; [|exact IH].
  apply Rmult_le_pos; [exact HE | apply pow_le; exact Hp].
Qed.

Lemma higher_falls : forall second parts t, below second parts ->
  higher parts t <= higher parts 0 * (second ^ 2) ^ t.
Proof.
  intros second parts t H. induction H as [|[E pi] others [HE [Hp Hs]] _ IH]; simpl in *; [lra|].
  unfold rates_staircase_energy in *. rewrite pow_mult.
  assert (G : (pi ^ 2) ^ t <= (second * (second * 1)) ^ t).
  { apply pow_incr. split; [apply pow2_ge_0|]. simpl. apply Rmult_le_compat; lra. }
  simpl in *. rewrite Rmult_plus_distr_r. apply Rplus_le_compat; [|exact IH].
  apply Rmult_le_compat_l with (r := E) in G; [lra | exact HE].
Qed.

(* The bound. The share outside the shared directions is at most C gamma^t in every round, with
   C = E_high / E_shared and gamma the squared coverage of the second level. *)
Theorem collapse_bound : forall shared second parts t,
  0 < shared -> 0 <= second -> below second parts ->
  outside shared parts t <=
  higher parts 0 / shared * rates_collapse_bound_factor second ^ t.
Proof.
  intros shared second parts t Hs Hp H. unfold outside, rates_collapse_bound_factor.
  pose proof (higher_nonneg second parts t H) as N.
  pose proof (higher_falls second parts t H) as F.
  apply Rle_trans with (higher parts t / shared).
  - apply Rmult_le_compat_l; [exact N|]. apply Rinv_le_contravar; lra.
  - unfold Rdiv. replace (higher parts 0 * / shared * (second ^ 2) ^ t)
      with (higher parts 0 * (second ^ 2) ^ t * / shared) by ring.
    apply Rmult_le_compat_r; [left; apply Rinv_0_lt_compat; exact Hs | exact F].
Qed.

(* With three levels the constant is the derived one, (E_2 + E_3) / E_1. *)
Theorem collapse_constant : forall E_1 E_2 E_3 pi_2 pi_3, 0 < E_1 ->
  higher [(E_2, pi_2); (E_3, pi_3)] 0 / E_1 = rates_collapse_bound_constant E_1 E_2 E_3.
Proof.
  intros. unfold rates_collapse_bound_constant, rates_staircase_energy. simpl.
  unfold rates_staircase_energy. simpl. field. lra.
Qed.

(* If the coverage of the second level is below 1, the share outside the shared directions tends to
   0. *)
Theorem collapse_limit : forall shared second parts eps,
  0 < shared -> 0 <= second < 1 -> below second parts -> 0 < eps ->
  exists T, forall t, (T <= t)%nat -> outside shared parts t < eps.
Proof.
  intros shared second parts eps Hs [H0 H1] H He.
  assert (G : Rabs (second ^ 2) < 1).
  { rewrite Rabs_pos_eq; [|apply pow2_ge_0]. simpl. rewrite Rmult_1_r.
    destruct (Req_dec second 0) as [->|]; [lra|]. 
    apply Rlt_trans with (1 * second); [apply Rmult_lt_compat_r; lra | lra]. }
  set (C := higher parts 0 / shared).
  assert (HC : 0 <= C).
  { apply Rmult_le_pos; [eapply higher_nonneg; exact H | left; apply Rinv_0_lt_compat; exact Hs]. }
  assert (He' : 0 < eps / (C + 1)) by (apply Rdiv_lt_0_compat; lra).
  destruct (pow_lt_1_zero _ G _ He') as [T HT]. exists T. intros t Ht.
  eapply Rle_lt_trans; [apply collapse_bound with (second := second); assumption|].
  fold C. unfold rates_collapse_bound_factor. specialize (HT t Ht).
  rewrite Rabs_pos_eq in HT; [|apply pow_le, pow2_ge_0].
  apply Rle_lt_trans with ((C + 1) * (second ^ 2) ^ t).
  - apply Rmult_le_compat_r; [apply pow_le, pow2_ge_0 | lra].
  - apply Rmult_lt_compat_l with (r := C + 1) in HT; [|lra].
    replace ((C + 1) * (eps / (C + 1))) with eps in HT by (field; lra). exact HT.
Qed.
