(* Written by `python -m analysis.proofs.derived` from the sympy derivations; do not edit.

   Every definition is the expression that analysis/derivations derives under the same name, and
   that the tests compare with analysis/closed_form. *)

From Coq Require Import Reals QArith.
Open Scope R_scope.

Definition rates_staircase_energy (pi : R) (t : nat) : R :=
  pi^(2*t).
Definition rates_staircase_rate (pi : R) : R :=
  pi^2.
Definition rates_collapse_bound_constant (E_1 E_2 E_3 : R) : R :=
  (E_2 + E_3)/E_1.
Definition rates_collapse_bound_factor (pi_2 : R) : R :=
  pi_2^2.
Definition rates_collapse_bound_tightness (E_1 E_2 : R) : R :=
  E_2/E_1.
Definition cohorts_without_replacement_first (pi : R) : R :=
  pi.
Definition cohorts_without_replacement_second (K m pi : R) : R :=
  pi*(K*m*pi - K*pi + K - m)/(m*(K - 1)).
Definition cohorts_without_replacement_third (K m pi : R) : R :=
  pi*(K^2*m^2*pi^2 - 3*K^2*m*pi^2 + 3*K^2*m*pi + 2*K^2*pi^2 - 3*K^2*pi + K^2 - 3*K*m^2*pi + 3*K*m*pi - 3*K*m + 2*m^2)/(m^2*(K - 2)*(K - 1)).
Definition cohorts_without_replacement_fourth (K m pi : R) : R :=
  pi*(K^3*m^3*pi^3 - 6*K^3*m^2*pi^3 + 6*K^3*m^2*pi^2 + 11*K^3*m*pi^3 - 18*K^3*m*pi^2 + 7*K^3*m*pi - 6*K^3*pi^3 + 12*K^3*pi^2 - 7*K^3*pi + K^3 - 6*K^2*m^3*pi^2 + 18*K^2*m^2*pi^2 - 18*K^2*m^2*pi - 12*K^2*m*pi^2 + 19*K^2*m*pi - 7*K^2*m - K^2*pi + K^2 + 11*K*m^3*pi - 12*K*m^2*pi + 12*K*m^2 + K*m*pi - K*m - 6*m^3)/(m^3*(K - 3)*(K - 2)*(K - 1)).
Definition cohorts_without_replacement_squares (m pi : R) : R :=
  pi/m.
Definition multipliers_zero_pad (W : R) : R :=
  W^2.
Definition multipliers_flora (W a b x : R) : R :=
  W*(a*x + b - x) + x.
Definition multipliers_raflora : R :=
  1.
Definition base_rules_flora_moments_gain (S1 g : R) : R :=
  S1*g - S1 + 1.
Definition base_rules_flora_moments_shift (S1 c : R) : R :=
  S1*c.
Definition base_rules_flora_moments_rate (Q S1 S2 g nu : R) : R :=
  Q*nu^2 + 2*S1*g - 2*S1 + S2*g^2 - 2*S2*g + S2 + 1.
Definition base_rules_flora_moments_cross (S1 S2 c g : R) : R :=
  2*S1*c + 2*S2*c*g - 2*S2*c.
Definition base_rules_flora_moments_noise (Q S2 c tau : R) : R :=
  Q*tau^2 + S2*c^2.
Definition base_rules_fedex_total_after (W : R) (t : nat) : R :=
  (W + W^(2*t))/(W + 1).
Definition base_rules_fedex_total_limit (W : R) : R :=
  W/(W + 1).
Definition base_rules_fedex_rest_point_adapter : R :=
  0.
Definition base_rules_fedex_rest_point_base (a b : R) : R :=
  -b/(a - 1).
Definition floors_mean_recursion (S1 c g x1 : R) : R :=
  S1*c + S1*g*x1.
Definition floors_second_moment_recursion (Q S2 c g nu tau x1 x2 : R) : R :=
  Q*nu^2*x2 + Q*tau^2 + S2*c^2 + 2*S2*c*g*x1 + S2*g^2*x2.
Definition floors_rate (Q S2 g nu : R) : R :=
  Q*nu^2 + S2*g^2.
Definition floors_noise (Q S2 c tau : R) : R :=
  Q*tau^2 + S2*c^2.
Definition floors_floor (Q S2 g nu tau : R) : R :=
  -Q*tau^2/(Q*nu^2 + S2*g^2 - 1).
Definition floors_mean_floor (S1 c g : R) : R :=
  -S1*c/(S1*g - 1).
Definition floors_floor_with_drift (Q S1 S2 c g nu tau : R) : R :=
  (-Q*S1*g*tau^2 + Q*tau^2 + S1*S2*c^2*g + S2*c^2)/((S1*g - 1)*(Q*nu^2 + S2*g^2 - 1)).
Definition floors_energy_after (Q S2 g nu : R) (t : nat) (tau x2_0 : R) : R :=
  -Q*tau^2/(Q*nu^2 + S2*g^2 - 1) + (Q*nu^2 + S2*g^2)^t*(Q*tau^2 + x2_0*(Q*nu^2 + S2*g^2) - x2_0)/(Q*nu^2 + S2*g^2 - 1).
Definition floors_energy_at_boundary (Q : R) (t : nat) (tau x2_0 : R) : R :=
  (INR t)*Q*tau^2 + x2_0.
Definition floors_critical_gain_std (Q S2 g : R) : R :=
  sqrt(-S2*g^2 + 1)/sqrt(Q).
Definition floors_carry (P0 Q S2 c g nu tau x1 x2 : R) : R :=
  P0*x2 + Q*nu^2*x2 + Q*tau^2 + S2*c^2 + 2*S2*c*g*x1 + S2*g^2*x2.
Definition floors_raflora_rate (P0 Q g nu : R) : R :=
  Q*nu^2 + g^2*(1 - P0).
Definition floors_carry_excess : R :=
  0.
Definition trajectories_moments_after_mean (alpha beta : R) (t : nat) (x1_0 : R) : R :=
  (alpha*alpha^t*x1_0 + alpha^t*beta - alpha^t*x1_0 - beta)/(alpha - 1).
Definition trajectories_moments_after_energy (alpha beta delta2 kappa q : R) (t : nat) (x1_0 x2_0 : R) : R :=
  (-alpha^2*delta2*q^t + alpha^2*delta2 - alpha^2*q*q^t*x2_0 + alpha^2*q^t*x2_0 - alpha*alpha^t*kappa*q*x1_0 + alpha*alpha^t*kappa*x1_0 + alpha*beta*kappa*q^t - alpha*beta*kappa + alpha*delta2*q*q^t - alpha*delta2*q + alpha*delta2*q^t - alpha*delta2 + alpha*kappa*q*q^t*x1_0 - alpha*kappa*q^t*x1_0 + alpha*q^2*q^t*x2_0 - alpha*q^t*x2_0 - alpha^t*beta*kappa*q + alpha^t*beta*kappa + alpha^t*kappa*q*x1_0 - alpha^t*kappa*x1_0 + beta*kappa*q - beta*kappa*q^t - delta2*q*q^t + delta2*q - kappa*q*q^t*x1_0 + kappa*q^t*x1_0 - q^2*q^t*x2_0 + q*q^t*x2_0)/((-alpha + q)*(alpha - 1)*(q - 1)).
Definition drift_full_floor (W c g : R) : R :=
  -W*c/(W*g - 1).
Definition drift_zero_pad_floor (W c g : R) : R :=
  -W^2*c/(W^2*g - 1).
Definition drift_raflora_saturation (c g : R) : R :=
  -c/(g - 1).
Definition drift_raflora_growth_mean (P0 c : R) (t : nat) (x1_0 : R) : R :=
  -(INR t)*P0*c + (INR t)*c + x1_0.
Definition drift_raflora_growth_variance (P0 c : R) (t : nat) : R :=
  -(INR t)*P0*c^2*(P0 - 1).
Definition noise_fedavg_round_signal (H c g m x : R) : R :=
  H*(c + g*x)/m.
Definition noise_fedavg_round_variance (H m nu tau x : R) : R :=
  H*(nu^2*x^2 + tau^2)/m^2.
Definition noise_fedavg_round_ratio (H c g nu tau x : R) : R :=
  H*(c + g*x)^2/(nu^2*x^2 + tau^2).
Definition noise_raflora_round_signal (c g x : R) : R :=
  c + g*x.
Definition noise_raflora_round_variance (H nu tau x : R) : R :=
  (nu^2*x^2 + tau^2)/H.
Definition noise_raflora_round_ratio (H c g nu tau x : R) : R :=
  H*(c + g*x)^2/(nu^2*x^2 + tau^2).
Definition flow_amplitude_flow (M x : R) : R :=
  -2*x*(-M + x).
Definition flow_local_map (G M x : R) : R :=
  G*M*x/(G*x + M - x).
Definition flow_local_gain (G : R) : R :=
  G.
Definition flow_round_map (G M omega x : R) : R :=
  G*M*omega*x/(G*x + M - x).
Definition flow_inverse_round_map (G M omega y : R) : R :=
  y/(G*omega) + (G - 1)/(G*M*omega).
Definition flow_critical_amplitude (G M : R) (t : nat) (x_0 : R) : R :=
  M*x_0/((INR t)*G*x_0 - (INR t)*x_0 + M).
Definition flow_critical_law (G M : R) : R :=
  M/(G - 1).
Definition flow_floor (G M omega : R) : R :=
  M*(G*omega - 1)/(G - 1).
Definition flow_approach_below (G omega : R) : R :=
  G*omega.
Definition flow_approach_above (G omega : R) : R :=
  1/(G*omega).
Definition flow_critical_time (M omega : R) : R :=
  -ln(omega)/(2*M).

(* The same expressions over the rational numbers, where Coq can compute. *)
Module Rational.
Open Scope Q_scope.
Definition number := QArith_base.Q.

Definition rates_staircase_rate (pi : number) : number :=
  pi^2.
Definition rates_collapse_bound_constant (E_1 E_2 E_3 : number) : number :=
  (E_2 + E_3)/E_1.
Definition rates_collapse_bound_factor (pi_2 : number) : number :=
  pi_2^2.
Definition rates_collapse_bound_tightness (E_1 E_2 : number) : number :=
  E_2/E_1.
Definition cohorts_without_replacement_first (pi : number) : number :=
  pi.
Definition cohorts_without_replacement_second (K m pi : number) : number :=
  pi*(K*m*pi - K*pi + K - m)/(m*(K - 1)).
Definition cohorts_without_replacement_third (K m pi : number) : number :=
  pi*(K^2*m^2*pi^2 - 3*K^2*m*pi^2 + 3*K^2*m*pi + 2*K^2*pi^2 - 3*K^2*pi + K^2 - 3*K*m^2*pi + 3*K*m*pi - 3*K*m + 2*m^2)/(m^2*(K - 2)*(K - 1)).
Definition cohorts_without_replacement_fourth (K m pi : number) : number :=
  pi*(K^3*m^3*pi^3 - 6*K^3*m^2*pi^3 + 6*K^3*m^2*pi^2 + 11*K^3*m*pi^3 - 18*K^3*m*pi^2 + 7*K^3*m*pi - 6*K^3*pi^3 + 12*K^3*pi^2 - 7*K^3*pi + K^3 - 6*K^2*m^3*pi^2 + 18*K^2*m^2*pi^2 - 18*K^2*m^2*pi - 12*K^2*m*pi^2 + 19*K^2*m*pi - 7*K^2*m - K^2*pi + K^2 + 11*K*m^3*pi - 12*K*m^2*pi + 12*K*m^2 + K*m*pi - K*m - 6*m^3)/(m^3*(K - 3)*(K - 2)*(K - 1)).
Definition cohorts_without_replacement_squares (m pi : number) : number :=
  pi/m.
Definition multipliers_zero_pad (W : number) : number :=
  W^2.
Definition multipliers_flora (W a b x : number) : number :=
  W*(a*x + b - x) + x.
Definition multipliers_raflora : number :=
  1.
Definition base_rules_flora_moments_gain (S1 g : number) : number :=
  S1*g - S1 + 1.
Definition base_rules_flora_moments_shift (S1 c : number) : number :=
  S1*c.
Definition base_rules_flora_moments_rate (Q S1 S2 g nu : number) : number :=
  Q*nu^2 + 2*S1*g - 2*S1 + S2*g^2 - 2*S2*g + S2 + 1.
Definition base_rules_flora_moments_cross (S1 S2 c g : number) : number :=
  2*S1*c + 2*S2*c*g - 2*S2*c.
Definition base_rules_flora_moments_noise (Q S2 c tau : number) : number :=
  Q*tau^2 + S2*c^2.
Definition base_rules_fedex_total_limit (W : number) : number :=
  W/(W + 1).
Definition base_rules_fedex_rest_point_adapter : number :=
  0.
Definition base_rules_fedex_rest_point_base (a b : number) : number :=
  -b/(a - 1).
Definition floors_mean_recursion (S1 c g x1 : number) : number :=
  S1*c + S1*g*x1.
Definition floors_second_moment_recursion (Q S2 c g nu tau x1 x2 : number) : number :=
  Q*nu^2*x2 + Q*tau^2 + S2*c^2 + 2*S2*c*g*x1 + S2*g^2*x2.
Definition floors_rate (Q S2 g nu : number) : number :=
  Q*nu^2 + S2*g^2.
Definition floors_noise (Q S2 c tau : number) : number :=
  Q*tau^2 + S2*c^2.
Definition floors_floor (Q S2 g nu tau : number) : number :=
  -Q*tau^2/(Q*nu^2 + S2*g^2 - 1).
Definition floors_mean_floor (S1 c g : number) : number :=
  -S1*c/(S1*g - 1).
Definition floors_floor_with_drift (Q S1 S2 c g nu tau : number) : number :=
  (-Q*S1*g*tau^2 + Q*tau^2 + S1*S2*c^2*g + S2*c^2)/((S1*g - 1)*(Q*nu^2 + S2*g^2 - 1)).
Definition floors_carry (P0 Q S2 c g nu tau x1 x2 : number) : number :=
  P0*x2 + Q*nu^2*x2 + Q*tau^2 + S2*c^2 + 2*S2*c*g*x1 + S2*g^2*x2.
Definition floors_raflora_rate (P0 Q g nu : number) : number :=
  Q*nu^2 + g^2*(1 - P0).
Definition floors_carry_excess : number :=
  0.
Definition drift_full_floor (W c g : number) : number :=
  -W*c/(W*g - 1).
Definition drift_zero_pad_floor (W c g : number) : number :=
  -W^2*c/(W^2*g - 1).
Definition drift_raflora_saturation (c g : number) : number :=
  -c/(g - 1).
Definition noise_fedavg_round_signal (H c g m x : number) : number :=
  H*(c + g*x)/m.
Definition noise_fedavg_round_variance (H m nu tau x : number) : number :=
  H*(nu^2*x^2 + tau^2)/m^2.
Definition noise_fedavg_round_ratio (H c g nu tau x : number) : number :=
  H*(c + g*x)^2/(nu^2*x^2 + tau^2).
Definition noise_raflora_round_signal (c g x : number) : number :=
  c + g*x.
Definition noise_raflora_round_variance (H nu tau x : number) : number :=
  (nu^2*x^2 + tau^2)/H.
Definition noise_raflora_round_ratio (H c g nu tau x : number) : number :=
  H*(c + g*x)^2/(nu^2*x^2 + tau^2).
Definition flow_amplitude_flow (M x : number) : number :=
  -2*x*(-M + x).
Definition flow_local_map (G M x : number) : number :=
  G*M*x/(G*x + M - x).
Definition flow_local_gain (G : number) : number :=
  G.
Definition flow_round_map (G M omega x : number) : number :=
  G*M*omega*x/(G*x + M - x).
Definition flow_inverse_round_map (G M omega y : number) : number :=
  y/(G*omega) + (G - 1)/(G*M*omega).
Definition flow_critical_law (G M : number) : number :=
  M/(G - 1).
Definition flow_floor (G M omega : number) : number :=
  M*(G*omega - 1)/(G - 1).
Definition flow_approach_below (G omega : number) : number :=
  G*omega.
Definition flow_approach_above (G omega : number) : number :=
  1/(G*omega).

End Rational.
