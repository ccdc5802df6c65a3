(* The federation: clients with a weight p_k and a rank r_k, and what they carry.

   Directions are numbered from 0, so a client of rank r carries the directions j < r. The paper is
   Wu, Hu, Min, Wang, arXiv 2602.13486. *)

From Coq Require Import Reals Lra Lia List Arith.
Import ListNotations.
Open Scope R_scope.

(* A client is its weight p_k and its rank r_k. *)
Definition client := (R * nat)%type.

(* An update has one amplitude per direction of the common basis. *)
Definition amplitudes := nat -> R.

(* A client of rank r carries direction j if j < r. *)
Definition carries (j : nat) (k : client) : bool := (j <? snd k)%nat.

(* The sum of f over all clients. *)
Fixpoint over (clients : list client) (f : client -> R) : R :=
  match clients with [] => 0 | k :: others => f k + over others f end.

(* The weight of all clients; 1 in a federation. *)
Definition total (clients : list client) : R := over clients fst.

(* Coverage pi_j: the weight of the clients that carry direction j. *)
Definition coverage (clients : list client) (j : nat) : R :=
  over clients (fun k => if carries j k then fst k else 0).

(* The best truncation to rank r keeps the first r amplitudes: what an idle client returns. *)
Definition returned (k : client) (x : amplitudes) (j : nat) : R :=
  if carries j k then x j else 0.

(* FedAvg in product space (FlexLoRA): the average over all clients. *)
Definition fedavg (clients : list client) (x : amplitudes) : amplitudes :=
  fun j => over clients (fun k => fst k * returned k x j).

(* raFLoRA (the paper's Eq. 8): the average over the clients that carry the direction. *)
Definition raflora (clients : list client) (x : amplitudes) : amplitudes :=
  fun j => fedavg clients x j / coverage clients j.

(* The update after t rounds of a rule. *)
Fixpoint after (t : nat) (rule : amplitudes -> amplitudes) (x : amplitudes) : amplitudes :=
  match t with O => x | S earlier => rule (after earlier rule x) end.

(* No client has a negative weight. *)
Definition weighted (clients : list client) : Prop := Forall (fun k => 0 <= fst k) clients.

Lemma over_ext : forall clients f g, (forall k, f k = g k) -> over clients f = over clients g.
Proof. induction clients; intros f g H; simpl; [reflexivity | rewrite H, (IHclients f g H); reflexivity]. Qed.

Lemma over_scale : forall clients f c, over clients (fun k => f k * c) = over clients f * c.
Proof. induction clients; intros f c; simpl; [ring | rewrite IHclients; ring]. Qed.

Lemma over_le : forall clients f g, weighted clients ->
  (forall k, 0 <= fst k -> f k <= g k) -> over clients f <= over clients g.
Proof.
  induction clients as [|k others IH]; intros f g W H; simpl; [lra|].
  inversion W; subst. pose proof (H k H2). pose proof (IH f g H3 H). lra.
Qed.

(* The coverage of a direction lies between 0 and the weight of all clients. *)
Lemma coverage_bounds : forall clients j, weighted clients ->
  0 <= coverage clients j <= total clients.
Proof.
  intros clients j W. split.
  - replace 0 with (over clients (fun _ => 0)).
    + apply over_le; [exact W|]. intros k P. destruct (carries j k); lra.
    + clear W; induction clients; simpl; [reflexivity | rewrite IHclients; ring].
  - apply over_le; [exact W|]. intros k P. destruct (carries j k); lra.
Qed.

(* Coverage never grows with the direction: the staircase of rank levels. *)
Lemma coverage_antitone : forall clients i j, weighted clients -> (i <= j)%nat ->
  coverage clients j <= coverage clients i.
Proof.
  intros clients i j W L. apply over_le; [exact W|]. intros k P. unfold carries.
  destruct (j <? snd k)%nat eqn:J; destruct (i <? snd k)%nat eqn:I; try lra.
  apply Nat.ltb_lt in J; apply Nat.ltb_ge in I; lia.
Qed.

(* One round of FedAvg multiplies an idle direction by its coverage. *)
Lemma fedavg_multiplier : forall clients x j, fedavg clients x j = coverage clients j * x j.
Proof.
  intros. unfold fedavg, coverage. rewrite <- over_scale. apply over_ext.
  intro k. unfold returned. destruct (carries j k); ring.
Qed.
