(* Sampled cohorts: m of K clients, uniformly and without replacement, as finite sums. *)

From Coq Require Import Reals Lra Lia List Arith.
From FedLoRA Require Import Derived.
Import ListNotations.
Open Scope R_scope.

(* All cohorts of m clients. *)
Fixpoint cohorts {A : Type} (m : nat) (clients : list A) {struct clients} : list (list A) :=
  match m, clients with
  | O, _ => [[]]
  | S _, [] => []
  | S fewer, k :: others => map (cons k) (cohorts fewer others) ++ cohorts m others
  end.

(* The binomial coefficient, by Pascal's rule. *)
Fixpoint binomial (n k : nat) : nat :=
  match k, n with
  | O, _ => 1
  | S _, O => 0
  | S k', S n' => binomial n' k' + binomial n' k
  end.

(* The sum of f over a list. *)
Fixpoint sum {A : Type} (f : A -> R) (l : list A) : R :=
  match l with [] => 0 | k :: others => f k + sum f others end.

(* The mean of F over all cohorts: the expectation for a uniform cohort. *)
Definition mean {A : Type} (m : nat) (clients : list A) (F : list A -> R) : R :=
  sum F (cohorts m clients) / INR (length (cohorts m clients)).

Lemma sum_step : forall A (f : A -> R) k l, sum f (k :: l) = f k + sum f l.
Proof. reflexivity. Qed.

Lemma sum_app : forall A (f : A -> R) l r, sum f (l ++ r) = sum f l + sum f r.
Proof. induction l; intros; simpl; [ring | rewrite IHl; ring]. Qed.

Lemma sum_ext : forall A (f g : A -> R) l, (forall k, f k = g k) -> sum f l = sum g l.
Proof. induction l; intros; simpl; [reflexivity | rewrite H, (IHl H); reflexivity]. Qed.

Lemma sum_scale : forall A (f : A -> R) r l, sum (fun k => r * f k) l = r * sum f l.
Proof. induction l; simpl; [ring | rewrite IHl; ring]. Qed.

Lemma cohorts_zero : forall A (l : list A), cohorts 0 l = [[]].
Proof. destruct l; reflexivity. Qed.

Lemma binomial_zero : forall n, binomial n 0 = 1%nat.
Proof. destruct n; reflexivity. Qed.

(* There are C(K, m) cohorts. *)
Theorem cohorts_count : forall A (l : list A) m, length (cohorts m l) = binomial (length l) m.
Proof.
  induction l as [|k l IH]; intros [|m]; simpl; try reflexivity.
  rewrite app_length, map_length, !IH. reflexivity.
Qed.

Lemma binomial_step : forall n k, (S n * binomial n k = S k * binomial (S n) (S k))%nat.
Proof.
  induction n as [|n IH]; intro k.
  - destruct k; simpl; [reflexivity | lia].
  - change (binomial (S (S n)) (S k)) with (binomial (S n) k + binomial (S n) (S k))%nat.
    rewrite Nat.mul_add_distr_l, <- IH. destruct k as [|k].
    + rewrite !binomial_zero. lia.
    + change (binomial (S n) (S k)) with (binomial n k + binomial n (S k))%nat.
      pose proof (IH k) as I. change (binomial (S n) (S k)) with (binomial n k + binomial n (S k))%nat in I.
      nia.
Qed.

Lemma binomial_positive : forall n k, (k <= n)%nat -> (0 < binomial n k)%nat.
Proof.
  induction n; intros [|k] H; simpl; try lia. specialize (IHn k). lia.
Qed.

(* The number of cohorts that contain one given client, and two. *)
Definition with_one (K m : nat) : nat :=
  match m with O => 0 | S m' => binomial (pred K) m' end.
Definition with_two (K m : nat) : nat :=
  match m with S (S m') => binomial (pred (pred K)) m' | _ => 0 end.

Lemma with_one_step : forall K m, (0 < K)%nat ->
  (with_one K m + with_one K (S m) = binomial K m)%nat.
Proof. intros [|K] [|m] H; simpl; try lia. rewrite binomial_zero. reflexivity. Qed.

Lemma with_two_step : forall K m, (1 < K)%nat ->
  (with_two K m + with_two K (S m) = with_two (S K) (S m))%nat.
Proof.
  intros [|[|K]] [|[|m]] H; simpl; try lia. rewrite binomial_zero. reflexivity.
Qed.

Lemma with_one_two : forall K m, with_one K m = with_two (S K) (S m).
Proof. intros K [|m]; reflexivity. Qed.

Lemma sum_cons : forall A (F : list A -> R) k (l : list (list A)),
  sum F (map (cons k) l) = sum (fun S => F (k :: S)) l.
Proof. induction l; simpl; [reflexivity | rewrite IHl; reflexivity]. Qed.

Lemma sum_shift : forall A (f : list A -> R) r (l : list (list A)),
  sum (fun S => r + f S) l = r * INR (length l) + sum f l.
Proof. induction l; [simpl; ring | rewrite !sum_step, IHl; cbn [length]; rewrite S_INR; ring]. Qed.

Lemma sum_square_shift : forall A (f : list A -> R) r (l : list (list A)),
  sum (fun S => (r + f S) ^ 2) l =
  r ^ 2 * INR (length l) + 2 * r * sum f l + sum (fun S => f S ^ 2) l.
Proof. induction l; [simpl; ring | rewrite !sum_step, IHl; cbn [length]; rewrite S_INR; ring]. Qed.

(* Sum over all cohorts. Every client is in the same number of cohorts. *)
Theorem sum_of_sums : forall A (v : A -> R) l m,
  sum (sum v) (cohorts m l) = INR (with_one (length l) m) * sum v l.
Proof.
  induction l as [|k l IH]; intros [|m]; try (simpl; ring).
  simpl cohorts. rewrite sum_app, sum_cons.
  change (sum (fun S => sum v (k :: S)) (cohorts m l))
    with (sum (fun S => v k + sum v S) (cohorts m l)).
  rewrite (sum_shift _ (sum v)), !IH, cohorts_count, sum_step.
  change (with_one (length (k :: l)) (S m)) with (binomial (length l) m).
  destruct (Nat.eq_dec (length l) 0) as [Z|P].
  - apply length_zero_iff_nil in Z. subst. simpl sum. ring.
  - rewrite <- (with_one_step (length l) m) by lia. rewrite plus_INR. ring.
Qed.

Lemma square_of_few : forall A (v : A -> R) l, (length l <= 1)%nat ->
  sum v l ^ 2 - sum (fun k => v k ^ 2) l = 0.
Proof. intros A v [|k [|k' l]] H; simpl in *; try ring. lia. Qed.

(* Sum of squares over all cohorts. It also counts the cohorts that contain a pair of clients. *)
Theorem sum_of_squares : forall A (v : A -> R) l m,
  sum (fun S => sum v S ^ 2) (cohorts m l) =
  INR (with_one (length l) m) * sum (fun k => v k ^ 2) l +
  INR (with_two (length l) m) * (sum v l ^ 2 - sum (fun k => v k ^ 2) l).
Proof.
  induction l as [|k l IH]; intros [|m]; try (simpl; ring).
  simpl cohorts. rewrite sum_app, sum_cons.
  change (sum (fun S => sum v (k :: S) ^ 2) (cohorts m l))
    with (sum (fun S => (v k + sum v S) ^ 2) (cohorts m l)).
  rewrite (sum_square_shift _ (sum v)), !IH, cohorts_count, sum_of_sums.
  change (with_one (length (k :: l)) (S m)) with (binomial (length l) m).
  change (length (k :: l)) with (S (length l)). rewrite <- with_one_two.
  rewrite !sum_step.
  set (s := sum v l). set (q := sum (fun k => v k ^ 2) l).
  destruct (le_lt_dec (length l) 1) as [few|many].
  - pose proof (square_of_few _ v l few) as N. fold s q in N.
    destruct (Nat.eq_dec (length l) 0) as [Z|P].
    + apply length_zero_iff_nil in Z. subst l. unfold s, q. simpl sum. ring.
    + rewrite <- (with_one_step (length l) m) by lia. rewrite plus_INR.
      replace ((v k + s) ^ 2 - (v k ^ 2 + q)) with (2 * v k * s + (s ^ 2 - q)) by ring.
      rewrite N. ring.
  - rewrite <- (with_one_step (length l) m) by lia.
    rewrite (with_one_two (length l) m) at 4.
    rewrite <- (with_two_step (length l) m) by exact many. rewrite !plus_INR.
    pose proof (with_one_two (length l) m) as T.
    rewrite <- (with_two_step (length l) m) in T by exact many.
    apply (f_equal INR) in T. rewrite plus_INR in T. rewrite T. ring.
Qed.

(* A client is in the share m / K of all cohorts, a pair in m (m - 1) / (K (K - 1)) of them. *)
Lemma one_share : forall K m, (0 < K)%nat ->
  INR (with_one K m) * INR K = INR m * INR (binomial K m).
Proof.
  intros [|K] [|m] H; try lia; [simpl; ring|]. rewrite <- !mult_INR. f_equal. simpl with_one.
  pose proof (binomial_step K m). lia.
Qed.

Lemma two_share : forall K m, (1 < K)%nat ->
  INR (with_two K m) * (INR K * (INR K - 1)) = INR m * (INR m - 1) * INR (binomial K m).
Proof.
  intros [|[|K]] [|[|m]] H; try lia; try (simpl; ring).
  simpl with_two. pose proof (binomial_step K m) as A. pose proof (binomial_step (S K) (S m)) as B.
  apply (f_equal INR) in A. apply (f_equal INR) in B. rewrite !mult_INR in A, B.
  replace (INR (S (S K)) - 1) with (INR (S K)) by (rewrite (S_INR (S K)); ring).
  replace (INR (S (S m)) - 1) with (INR (S m)) by (rewrite (S_INR (S m)); ring).
  replace (INR (binomial K m) * (INR (S (S K)) * INR (S K)))
    with (INR (S (S K)) * (INR (S K) * INR (binomial K m))) by ring.
  rewrite A. replace (INR (S (S K)) * (INR (S m) * INR (binomial (S K) (S m))))
    with (INR (S m) * (INR (S (S K)) * INR (binomial (S K) (S m)))) by ring.
  rewrite B. ring.
Qed.

(* Contributors. A client is true if it carries the direction, with equal sample counts. *)
Definition counts (k : bool) : R := if k then 1 else 0.
Definition contributors (S : list bool) : R := sum counts S.

(* The share W of the contributors in a cohort of m clients. *)
Definition share (m : nat) (S : list bool) : R := contributors S / INR m.

(* Coverage pi: the share of the contributors among all clients. *)
Definition pi (clients : list bool) : R := contributors clients / INR (length clients).

Lemma counts_square : forall l, sum (fun k => counts k ^ 2) l = contributors l.
Proof. intro l. apply sum_ext. intros []; unfold counts; ring. Qed.

Lemma count_nonzero : forall (l : list bool) m, (m <= length l)%nat ->
  INR (length (cohorts m l)) <> 0.
Proof.
  intros l m H. rewrite cohorts_count. apply not_0_INR.
  pose proof (binomial_positive (length l) m H). lia.
Qed.

(* The mean share is the coverage: E[W] = pi. *)
Theorem mean_share : forall clients m, (0 < m <= length clients)%nat ->
  mean m clients (share m) = cohorts_without_replacement_first (pi clients).
Proof.
  intros clients m [Hm HK]. unfold mean, cohorts_without_replacement_first, pi.
  pose proof (count_nonzero clients m HK) as N.
  assert (M : INR m <> 0) by (apply not_0_INR; lia).
  assert (L : INR (length clients) <> 0) by (apply not_0_INR; lia).
  rewrite (sum_ext _ _ (fun S => / INR m * sum counts S)) by (intro; unfold share, contributors; field; exact M).
  rewrite (sum_scale _ (sum counts)), sum_of_sums. fold (contributors clients).
  pose proof (one_share (length clients) m ltac:(lia)) as O. rewrite cohorts_count in *.
  apply Rmult_eq_reg_r with (INR (binomial (length clients) m) * INR m * INR (length clients)).
  - field_simplify; [|repeat split; assumption..]. 
    replace (INR (with_one (length clients) m) * contributors clients * INR (length clients))
      with (INR (with_one (length clients) m) * INR (length clients) * contributors clients) by ring.
    rewrite O. ring.
  - repeat apply Rmult_integral_contrapositive_currified; assumption.
Qed.

(* The mean squared share, exactly as derived: pi^2 + pi (1 - pi) (K - m) / (m (K - 1)). *)
Theorem mean_square_share : forall clients m,
  (0 < m <= length clients)%nat -> (1 < length clients)%nat ->
  mean m clients (fun S => share m S ^ 2) =
  cohorts_without_replacement_second (INR (length clients)) (INR m) (pi clients).
Proof.
  intros clients m [Hm HK] H1. unfold mean, cohorts_without_replacement_second, pi.
  pose proof (count_nonzero clients m HK) as N.
  assert (M : INR m <> 0) by (apply not_0_INR; lia).
  assert (L : INR (length clients) <> 0) by (apply not_0_INR; lia).
  assert (L1 : INR (length clients) - 1 <> 0).
  { apply lt_1_INR in H1. lra. }
  rewrite (sum_ext _ _ (fun S => / INR m ^ 2 * sum counts S ^ 2))
    by (intro; unfold share, contributors; field; exact M).
  rewrite (sum_scale _ (fun S => sum counts S ^ 2)), sum_of_squares, counts_square.
  fold (contributors clients).
  pose proof (one_share (length clients) m ltac:(lia)) as O.
  pose proof (two_share (length clients) m H1) as T. rewrite cohorts_count in *.
  set (B := INR (binomial (length clients) m)) in *. set (K := INR (length clients)) in *.
  set (c := contributors clients).
  assert (O' : INR (with_one (length clients) m) = INR m * B / K) by (rewrite <- O; field; exact L).
  assert (T' : INR (with_two (length clients) m) = INR m * (INR m - 1) * B / (K * (K - 1)))
    by (rewrite <- T; field; split; assumption).
  rewrite O', T'. field. repeat split; assumption.
Qed.

(* The mean of sum_k w_k^2 over contributors, each of weight 1 / m: pi / m. *)
Theorem mean_sum_of_squares : forall clients m, (0 < m <= length clients)%nat ->
  mean m clients (fun S => contributors S / INR m ^ 2) =
  cohorts_without_replacement_squares (INR m) (pi clients).
Proof.
  intros clients m H. unfold cohorts_without_replacement_squares.
  assert (M : INR m <> 0) by (apply not_0_INR; lia).
  pose proof (mean_share clients m H) as E. unfold cohorts_without_replacement_first in E.
  rewrite <- E. unfold mean, Rdiv.
  rewrite (sum_ext _ (fun S => contributors S * / INR m ^ 2) (fun S => / INR m * share m S))
    by (intro; unfold share; field; exact M).
  rewrite sum_scale. ring.
Qed.

(* A cohort without contributor loses the direction. *)
Definition empty (S : list bool) : bool := forallb negb S.

(* C(K - n, m) cohorts have no contributor. *)
Theorem empty_count : forall clients m,
  length (filter empty (cohorts m clients)) = binomial (length (filter negb clients)) m.
Proof.
  assert (C : forall k (l : list (list bool)), length (filter empty (map (cons k) l)) =
    if k then 0%nat else length (filter empty l)).
  { intros [] l; induction l as [|S l IH]; simpl; try reflexivity.
    - exact IH.
    - unfold empty in *. simpl. destruct (forallb negb S); simpl; rewrite IH; reflexivity. }
  assert (A : forall (l r : list (list bool)),
    length (filter empty (l ++ r)) = (length (filter empty l) + length (filter empty r))%nat).
  { intros l r. rewrite filter_app, app_length. reflexivity. }
  induction clients as [|k l IH]; intros [|m]; try reflexivity.
  - rewrite binomial_zero. reflexivity.
  - simpl cohorts. rewrite A, C, !IH. destruct k; simpl; [reflexivity|]. reflexivity.
Qed.

(* The probability P0 that a round has no contributor: C(K - n, m) / C(K, m). *)
Definition extinction (clients : list bool) (m : nat) : R :=
  INR (binomial (length (filter negb clients)) m) / INR (binomial (length clients) m).

(* All sequences of t cohorts. *)
Fixpoint sequences {A : Type} (t : nat) (l : list A) : list (list A) :=
  match t with
  | O => [[]]
  | S t' => flat_map (fun k => map (cons k) (sequences t' l)) l
  end.

Lemma filter_cons : forall A (p : A -> bool) k (l : list (list A)),
  length (filter (forallb p) (map (cons k) l)) = if p k then length (filter (forallb p) l) else 0%nat.
Proof.
  intros A p k l. destruct (p k) eqn:P; induction l as [|S l IH]; simpl; try reflexivity;
    rewrite P; simpl; [|exact IH]. destruct (forallb p S); simpl; rewrite IH; reflexivity.
Qed.

(* The number of sequences of t good cohorts is the number of good cohorts to the power t. *)
Theorem sequences_count : forall A (p : A -> bool) (l : list A) t,
  length (filter (forallb p) (sequences t l)) = (length (filter p l) ^ t)%nat.
Proof.
  intros A p l t. induction t as [|t IH]; [reflexivity|].
  simpl sequences. simpl Nat.pow.
  assert (G : forall r : list A, length (filter (forallb p)
      (flat_map (fun k => map (cons k) (sequences t l)) r)) =
      (length (filter p r) * length (filter p l) ^ t)%nat).
  { induction r as [|k r IHr]; [reflexivity|]. simpl flat_map.
    rewrite filter_app, app_length, filter_cons, IHr, IH. simpl. destruct (p k); simpl; lia. }
  apply G.
Qed.

Lemma filter_split : forall A (p : A -> bool) (l : list A),
  (length (filter p l) + length (filter (fun k => negb (p k)) l) = length l)%nat.
Proof. induction l as [|k l IH]; simpl; [reflexivity|]. destruct (p k); simpl; lia. Qed.

Lemma all_sequences : forall A (l : list A) t, length (sequences t l) = (length l ^ t)%nat.
Proof.
  intros A l t. induction t as [|t IH]; [reflexivity|]. simpl.
  assert (G : forall r : list A, length (flat_map (fun k => map (cons k) (sequences t l)) r) =
      (length r * length l ^ t)%nat).
  { induction r; [reflexivity|]. simpl. rewrite app_length, map_length, IHr, IH. reflexivity. }
  apply G.
Qed.

(* Survival. In t independent rounds a direction always has a contributor with probability
   (1 - P0)^t. *)
Theorem survival : forall clients m t, (m <= length clients)%nat ->
  INR (length (filter (forallb (fun S => negb (empty S))) (sequences t (cohorts m clients)))) /
  INR (length (sequences t (cohorts m clients))) = (1 - extinction clients m) ^ t.
Proof.
  intros clients m t H.
  rewrite sequences_count, all_sequences, !pow_INR.
  pose proof (count_nonzero clients m H) as N.
  pose proof (filter_split _ empty (cohorts m clients)) as F. apply (f_equal INR) in F.
  rewrite plus_INR, empty_count in F. unfold extinction. rewrite <- (cohorts_count _ clients m).
  replace (INR (length (filter (fun S => negb (empty S)) (cohorts m clients))))
    with (INR (length (cohorts m clients)) - INR (binomial (length (filter negb clients)) m)) by lra.
  replace (1 - INR (binomial (length (filter negb clients)) m) / INR (length (cohorts m clients)))
    with ((INR (length (cohorts m clients)) - INR (binomial (length (filter negb clients)) m)) *
      / INR (length (cohorts m clients))) by (field; exact N).
  rewrite Rpow_mult_distr, pow_inv. reflexivity.
Qed.
