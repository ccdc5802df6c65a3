(* Suppression under full participation: the staircase of rates, and the rules that avoid it. *)

From Coq Require Import Reals Lra Lia List Arith.
From FedLoRA Require Import Federation Derived.
Import ListNotations.
Open Scope R_scope.

(* Suppression. After t rounds of FedAvg, direction j keeps pi_j^t of its amplitude. *)
Theorem suppression : forall clients x j t,
  after t (fedavg clients) x j = coverage clients j ^ t * x j.
Proof. induction t; simpl; [ring | rewrite fedavg_multiplier, IHt; ring]. Qed.

(* The staircase. The energy of direction j, relative to its start, is pi_j^(2 t). *)
Theorem staircase : forall clients x j t, x j <> 0 ->
  after t (fedavg clients) x j ^ 2 / x j ^ 2 = rates_staircase_energy (coverage clients j) t.
Proof.
  intros clients x j t H. rewrite suppression. unfold rates_staircase_energy.
  rewrite Rpow_mult_distr, <- pow_mult, (Nat.mul_comm t 2). field. exact H.
Qed.

(* The rate. In every round the energy of direction j falls by the factor pi_j^2. *)
Theorem staircase_rate : forall clients x j t,
  after (S t) (fedavg clients) x j ^ 2 =
  rates_staircase_rate (coverage clients j) * after t (fedavg clients) x j ^ 2.
Proof. intros. rewrite !suppression. unfold rates_staircase_rate. simpl. ring. Qed.

(* The steps go down: a direction of a higher level has no larger rate. *)
Theorem staircase_descends : forall clients i j, weighted clients -> (i <= j)%nat ->
  rates_staircase_rate (coverage clients j) <= rates_staircase_rate (coverage clients i).
Proof.
  intros clients i j W L. unfold rates_staircase_rate. apply pow_incr.
  split; [apply coverage_bounds; exact W | apply coverage_antitone; assumption].
Qed.

(* The shared directions, which all clients carry, keep their amplitude. *)
Theorem shared_directions_stay : forall clients x j t, total clients = 1 ->
  coverage clients j = total clients -> after t (fedavg clients) x j = x j.
Proof. intros clients x j t T C. rewrite suppression, C, T, pow1. ring. Qed.

(* raFLoRA keeps every direction that a client of positive weight carries. *)
Theorem raflora_keeps : forall clients x j t, coverage clients j <> 0 ->
  after t (raflora clients) x j = multipliers_raflora * x j.
Proof.
  intros clients x j t H. unfold multipliers_raflora. induction t; simpl; [ring|].
  unfold raflora at 1. rewrite fedavg_multiplier, IHt. field. exact H.
Qed.

(* One round of raFLoRA times the coverage is one round of FedAvg, for every state. *)
Theorem raflora_fedavg : forall clients x j, coverage clients j <> 0 ->
  coverage clients j * raflora clients x j = fedavg clients x j.
Proof. intros clients x j H. unfold raflora. field. exact H. Qed.

(* Factors. The factors of A and B hold b_j and a_j, whose product is the amplitude. *)
Definition average (clients : list client) (f : amplitudes) (j : nat) : R :=
  over clients (fun k => fst k * returned k f j).

(* The product of averaged zero-padded factors (FedIT). *)
Definition zero_pad (clients : list client) (b a : amplitudes) (j : nat) : R :=
  average clients b j * average clients a j.

(* Zero padding dilutes A and B once each: one round multiplies the product by W^2. *)
Theorem zero_pad_multiplier : forall clients b a j,
  zero_pad clients b a j = multipliers_zero_pad (coverage clients j) * (b j * a j).
Proof.
  intros. unfold zero_pad, multipliers_zero_pad.
  change (average clients) with (fedavg clients). rewrite !fedavg_multiplier. ring.
Qed.

(* The exponent doubles. After t rounds of zero padding the energy is W^(4 t) of its start. *)
Theorem zero_pad_fourth_power : forall clients b a j t,
  (after t (average clients) b j * after t (average clients) a j) ^ 2 =
  rates_staircase_energy (multipliers_zero_pad (coverage clients j)) t * (b j * a j) ^ 2.
Proof.
  intros. change (average clients) with (fedavg clients). rewrite !suppression.
  unfold rates_staircase_energy, multipliers_zero_pad.
  rewrite <- pow_mult. replace (2 * (2 * t))%nat with (t * 4)%nat by lia.
  rewrite pow_mult. simpl. ring.
Qed.

(* RBLA averages each factor over the clients that hold it. *)
Definition rbla (clients : list client) (b a : amplitudes) (j : nat) : R :=
  (average clients b j / coverage clients j) * (average clients a j / coverage clients j).

(* RBLA keeps what raFLoRA keeps. *)
Theorem rbla_is_raflora : forall clients b a j, coverage clients j <> 0 ->
  rbla clients b a j = raflora clients (fun i => b i * a i) j.
Proof.
  intros clients b a j H. unfold rbla, raflora. change (average clients) with (fedavg clients).
  rewrite !fedavg_multiplier. field. exact H.
Qed.
