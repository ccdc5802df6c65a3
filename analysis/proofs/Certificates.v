(* Written by `python -m analysis.proofs.certificates`; do not edit.

   Predicted numbers of the claims: each differs from its closed expression by at most half a unit
   of the last digit that reports print. *)

From Coq Require Import Reals.
From Interval Require Import Tactic.
From FedLoRA Require Import Derived.
Open Scope R_scope.

Example staircase_0 :
  Rabs (rates_staircase_rate (1/2) - 1/4) <= 1/20000000000.
Proof. unfold rates_staircase_rate. interval with (i_prec 80). Qed.

Example staircase_1 :
  Rabs (rates_staircase_rate (1/5) - 1/25) <= 1/200000000000.
Proof. unfold rates_staircase_rate. interval with (i_prec 80). Qed.

Example zero_pad_fourth_power_0 :
  Rabs (rates_staircase_rate (multipliers_zero_pad (1/2)) - 1/16) <= 1/200000000000.
Proof. unfold multipliers_zero_pad, rates_staircase_rate. interval with (i_prec 80). Qed.

Example zero_pad_fourth_power_1 :
  Rabs (rates_staircase_rate (multipliers_zero_pad (1/5)) - 1/625) <= 1/2000000000000.
Proof. unfold multipliers_zero_pad, rates_staircase_rate. interval with (i_prec 80). Qed.

Example cohort_rate_0 :
  Rabs (cohorts_without_replacement_second (20) (8) (3/5) - 3789/10000) <= 1/20000.
Proof. unfold cohorts_without_replacement_second. interval with (i_prec 80). Qed.

Example cohort_rate_1 :
  Rabs (cohorts_without_replacement_second (20) (8) (3/10) - 533/5000) <= 1/20000.
Proof. unfold cohorts_without_replacement_second. interval with (i_prec 80). Qed.

Example zero_pad_cohort_rate_0 :
  Rabs (cohorts_without_replacement_fourth (20) (12) (3/5) - 1481/10000) <= 1/20000.
Proof. unfold cohorts_without_replacement_fourth. interval with (i_prec 80). Qed.

Example zero_pad_cohort_rate_1 :
  Rabs (cohorts_without_replacement_fourth (20) (12) (3/10) - 1217/100000) <= 1/200000.
Proof. unfold cohorts_without_replacement_fourth. interval with (i_prec 80). Qed.

Example raflora_zero_cohort_0 :
  Rabs (floors_raflora_rate (14/285) (0) (1) (0) - 9509/10000) <= 1/20000.
Proof. unfold floors_raflora_rate. interval with (i_prec 80). Qed.

Example raflora_zero_cohort_1 :
  Rabs (floors_raflora_rate (91/285) (0) (1) (0) - 6807/10000) <= 1/20000.
Proof. unfold floors_raflora_rate. interval with (i_prec 80). Qed.

Example floor_fedavg_0 :
  Rabs (floors_floor (cohorts_without_replacement_squares (8) (1)) (cohorts_without_replacement_second (20) (8) (1)) (4/5) (3/10) (1/2) - 8961/100000) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_floor. interval with (i_prec 80). Qed.

Example floor_fedavg_1 :
  Rabs (floors_floor (cohorts_without_replacement_squares (8) (3/5)) (cohorts_without_replacement_second (20) (8) (3/5)) (4/5) (3/10) (1/2) - 1249/50000) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_floor. interval with (i_prec 80). Qed.

Example floor_fedavg_2 :
  Rabs (floors_floor (cohorts_without_replacement_squares (8) (3/10)) (cohorts_without_replacement_second (20) (8) (3/10)) (4/5) (3/10) (1/2) - 101/10000) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_floor. interval with (i_prec 80). Qed.

Example heterogeneity_slows_0 :
  Rabs (floors_rate (cohorts_without_replacement_squares (12) (3/5)) (cohorts_without_replacement_second (20) (12) (3/5)) (4/5) (2/5) - 1219/5000) <= 1/20000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_rate. interval with (i_prec 80). Qed.

Example heterogeneity_slows_1 :
  Rabs (floors_rate (cohorts_without_replacement_squares (12) (3/10)) (cohorts_without_replacement_second (20) (12) (3/10)) (4/5) (2/5) - 829/12500) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_rate. interval with (i_prec 80). Qed.

Example heterogeneity_slows_2 :
  Rabs (floors_rate (cohorts_without_replacement_squares (12) (3/5)) (cohorts_without_replacement_second (20) (12) (3/5)) (4/5) (4/5) - 1339/5000) <= 1/20000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_rate. interval with (i_prec 80). Qed.

Example heterogeneity_slows_3 :
  Rabs (floors_rate (cohorts_without_replacement_squares (12) (3/10)) (cohorts_without_replacement_second (20) (12) (3/10)) (4/5) (4/5) - 979/12500) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_rate. interval with (i_prec 80). Qed.

Example heterogeneity_slows_4 :
  Rabs (floors_rate (cohorts_without_replacement_squares (12) (3/5)) (cohorts_without_replacement_second (20) (12) (3/5)) (4/5) (6/5) - 1539/5000) <= 1/20000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_rate. interval with (i_prec 80). Qed.

Example heterogeneity_slows_5 :
  Rabs (floors_rate (cohorts_without_replacement_squares (12) (3/10)) (cohorts_without_replacement_second (20) (12) (3/10)) (4/5) (6/5) - 1229/12500) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_rate. interval with (i_prec 80). Qed.

Example heterogeneity_critical_0 :
  Rabs (floors_rate (cohorts_without_replacement_squares (20) (3/5)) (cohorts_without_replacement_second (20) (20) (3/5)) (4/5) (multipliers_flora (9/10) (1) (floors_critical_gain_std (cohorts_without_replacement_squares (20) (3/5)) (cohorts_without_replacement_second (20) (20) (3/5)) (4/5)) (0)) - 4269/5000) <= 1/20000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_critical_gain_std, floors_rate, multipliers_flora. interval with (i_prec 80). Qed.

Example heterogeneity_critical_1 :
  Rabs (floors_rate (cohorts_without_replacement_squares (20) (3/10)) (cohorts_without_replacement_second (20) (20) (3/10)) (4/5) (multipliers_flora (9/10) (1) (floors_critical_gain_std (cohorts_without_replacement_squares (20) (3/10)) (cohorts_without_replacement_second (20) (20) (3/10)) (4/5)) (0)) - 8209/10000) <= 1/20000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_critical_gain_std, floors_rate, multipliers_flora. interval with (i_prec 80). Qed.

Example heterogeneity_critical_2 :
  Rabs (floors_rate (cohorts_without_replacement_squares (20) (3/5)) (cohorts_without_replacement_second (20) (20) (3/5)) (4/5) (multipliers_flora (1) (1) (floors_critical_gain_std (cohorts_without_replacement_squares (20) (3/5)) (cohorts_without_replacement_second (20) (20) (3/5)) (4/5)) (0)) - 1) <= 1/2000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_critical_gain_std, floors_rate, multipliers_flora. interval with (i_prec 80). Qed.

Example heterogeneity_critical_3 :
  Rabs (floors_rate (cohorts_without_replacement_squares (20) (3/10)) (cohorts_without_replacement_second (20) (20) (3/10)) (4/5) (multipliers_flora (1) (1) (floors_critical_gain_std (cohorts_without_replacement_squares (20) (3/10)) (cohorts_without_replacement_second (20) (20) (3/10)) (4/5)) (0)) - 1) <= 1/2000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_critical_gain_std, floors_rate, multipliers_flora. interval with (i_prec 80). Qed.

Example heterogeneity_critical_4 :
  Rabs (floors_rate (cohorts_without_replacement_squares (20) (3/5)) (cohorts_without_replacement_second (20) (20) (3/5)) (4/5) (multipliers_flora (11/10) (1) (floors_critical_gain_std (cohorts_without_replacement_squares (20) (3/5)) (cohorts_without_replacement_second (20) (20) (3/5)) (4/5)) (0)) - 581/500) <= 1/2000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_critical_gain_std, floors_rate, multipliers_flora. interval with (i_prec 80). Qed.

Example heterogeneity_critical_5 :
  Rabs (floors_rate (cohorts_without_replacement_squares (20) (3/10)) (cohorts_without_replacement_second (20) (20) (3/10)) (4/5) (multipliers_flora (11/10) (1) (floors_critical_gain_std (cohorts_without_replacement_squares (20) (3/10)) (cohorts_without_replacement_second (20) (20) (3/10)) (4/5)) (0)) - 599/500) <= 1/2000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_critical_gain_std, floors_rate, multipliers_flora. interval with (i_prec 80). Qed.

Example noise_gain_0 :
  Rabs (floors_noise (cohorts_without_replacement_squares (8) (1)) (cohorts_without_replacement_second (20) (8) (1)) (0) (1/2) - 1/32) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_noise. interval with (i_prec 80). Qed.

Example noise_gain_1 :
  Rabs (floors_noise (cohorts_without_replacement_squares (8) (3/5)) (cohorts_without_replacement_second (20) (8) (3/5)) (0) (1/2) - 3/160) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_noise. interval with (i_prec 80). Qed.

Example noise_gain_2 :
  Rabs (floors_noise (cohorts_without_replacement_squares (8) (3/10)) (cohorts_without_replacement_second (20) (8) (3/10)) (0) (1/2) - 3/320) <= 1/2000000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_noise. interval with (i_prec 80). Qed.

Example noise_gain_3 :
  Rabs (floors_noise (1/8) (1) (0) (1/2) - 1/32) <= 1/200000.
Proof. unfold floors_noise. interval with (i_prec 80). Qed.

Example noise_gain_4 :
  Rabs (floors_noise (23468411/105814800) (125969/125970) (0) (1/2) - 1109/20000) <= 1/200000.
Proof. unfold floors_noise. interval with (i_prec 80). Qed.

Example noise_gain_5 :
  Rabs (floors_noise (280001/581400) (3153/3230) (0) (1/2) - 301/2500) <= 1/20000.
Proof. unfold floors_noise. interval with (i_prec 80). Qed.

Example long_run_fedavg_0 :
  Rabs (floors_floor (cohorts_without_replacement_squares (8) (1)) (cohorts_without_replacement_second (20) (8) (1)) (4/5) (3/10) (1/2) - 8961/100000) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_floor. interval with (i_prec 80). Qed.

Example long_run_fedavg_1 :
  Rabs (floors_floor (cohorts_without_replacement_squares (8) (3/5)) (cohorts_without_replacement_second (20) (8) (3/5)) (4/5) (3/10) (1/2) - 1249/50000) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_floor. interval with (i_prec 80). Qed.

Example long_run_fedavg_2 :
  Rabs (floors_floor (cohorts_without_replacement_squares (8) (3/10)) (cohorts_without_replacement_second (20) (8) (3/10)) (4/5) (3/10) (1/2) - 101/10000) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_floor. interval with (i_prec 80). Qed.

Example long_run_raflora_0 :
  Rabs (floors_floor (1/8) (1) (4/5) (3/10) (1/2) - 8961/100000) <= 1/200000.
Proof. unfold floors_floor. interval with (i_prec 80). Qed.

Example long_run_raflora_1 :
  Rabs (floors_floor (23468411/105814800) (125969/125970) (4/5) (3/10) (1/2) - 1631/10000) <= 1/20000.
Proof. unfold floors_floor. interval with (i_prec 80). Qed.

Example long_run_raflora_2 :
  Rabs (floors_floor (280001/581400) (3153/3230) (4/5) (3/10) (1/2) - 3627/10000) <= 1/20000.
Proof. unfold floors_floor. interval with (i_prec 80). Qed.

Example floor_drift_mean_0 :
  Rabs (floors_floor_with_drift (cohorts_without_replacement_squares (8) (1)) (1) (cohorts_without_replacement_second (20) (8) (1)) (3/20) (4/5) (3/10) (1/2) - 6703/10000) <= 1/20000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_floor_with_drift. interval with (i_prec 80). Qed.

Example floor_drift_mean_1 :
  Rabs (floors_floor_with_drift (cohorts_without_replacement_squares (8) (3/5)) (3/5) (cohorts_without_replacement_second (20) (8) (3/5)) (3/20) (4/5) (3/10) (1/2) - 573/10000) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_floor_with_drift. interval with (i_prec 80). Qed.

Example floor_drift_mean_2 :
  Rabs (floors_floor_with_drift (cohorts_without_replacement_squares (8) (3/10)) (3/10) (cohorts_without_replacement_second (20) (8) (3/10)) (3/20) (4/5) (3/10) (1/2) - 1431/100000) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_floor_with_drift. interval with (i_prec 80). Qed.

Example flora_dilutes_loss_0 :
  Rabs (rates_staircase_rate (base_rules_flora_moments_gain (1/2) (9/10)) - 361/400) <= 1/20000000000.
Proof. unfold base_rules_flora_moments_gain, rates_staircase_rate. interval with (i_prec 80). Qed.

Example flora_dilutes_loss_1 :
  Rabs (rates_staircase_rate (base_rules_flora_moments_gain (1/5) (9/10)) - 2401/2500) <= 1/20000000000.
Proof. unfold base_rules_flora_moments_gain, rates_staircase_rate. interval with (i_prec 80). Qed.

Example flora_linear_growth_0 :
  Rabs (multipliers_flora (1/2) (1) (1) (0) - 1/2) <= 1/20000000000.
Proof. unfold multipliers_flora. interval with (i_prec 80). Qed.

Example flora_linear_growth_1 :
  Rabs (multipliers_flora (1/5) (1) (1) (0) - 1/5) <= 1/20000000000.
Proof. unfold multipliers_flora. interval with (i_prec 80). Qed.

Example flora_linear_growth_2 :
  Rabs (multipliers_flora (1/2) (1) (1) (0) - 1/2) <= 1/20000000000.
Proof. unfold multipliers_flora. interval with (i_prec 80). Qed.

Example flora_linear_growth_3 :
  Rabs (multipliers_flora (1/5) (1) (1) (0) - 1/5) <= 1/20000000000.
Proof. unfold multipliers_flora. interval with (i_prec 80). Qed.

Example flora_linear_growth_4 :
  Rabs (multipliers_flora (1/2) (1) (1) (0) - 1/2) <= 1/20000000000.
Proof. unfold multipliers_flora. interval with (i_prec 80). Qed.

Example flora_linear_growth_5 :
  Rabs (multipliers_flora (1/5) (1) (1) (0) - 1/5) <= 1/20000000000.
Proof. unfold multipliers_flora. interval with (i_prec 80). Qed.

Example flora_cohort_growth_0 :
  Rabs (multipliers_flora (3/5) (1) (1) (0) - 3/5) <= 1/20000.
Proof. unfold multipliers_flora. interval with (i_prec 80). Qed.

Example flora_cohort_growth_1 :
  Rabs (multipliers_flora (3/10) (1) (1) (0) - 3/10) <= 1/20000.
Proof. unfold multipliers_flora. interval with (i_prec 80). Qed.

Example flora_cohort_growth_2 :
  Rabs (multipliers_flora (3/5) (1) (1) (0) - 3/5) <= 1/20000.
Proof. unfold multipliers_flora. interval with (i_prec 80). Qed.

Example flora_cohort_growth_3 :
  Rabs (multipliers_flora (3/10) (1) (1) (0) - 3/10) <= 1/20000.
Proof. unfold multipliers_flora. interval with (i_prec 80). Qed.

Example flora_cohort_growth_4 :
  Rabs (multipliers_flora (3/5) (1) (1) (0) - 3/5) <= 1/20000.
Proof. unfold multipliers_flora. interval with (i_prec 80). Qed.

Example flora_cohort_growth_5 :
  Rabs (multipliers_flora (3/10) (1) (1) (0) - 3/10) <= 1/20000.
Proof. unfold multipliers_flora. interval with (i_prec 80). Qed.

Example fedex_settles_0 :
  Rabs (base_rules_fedex_total_limit (1/2) - 3333333333/10000000000) <= 1/20000000000.
Proof. unfold base_rules_fedex_total_limit. interval with (i_prec 80). Qed.

Example fedex_settles_1 :
  Rabs (base_rules_fedex_total_limit (1/5) - 1666666667/10000000000) <= 1/20000000000.
Proof. unfold base_rules_fedex_total_limit. interval with (i_prec 80). Qed.

Example fedex_approach_0 :
  Rabs (rates_staircase_rate (1/2) - 1/4) <= 1/20000000000.
Proof. unfold rates_staircase_rate. interval with (i_prec 80). Qed.

Example fedex_approach_1 :
  Rabs (rates_staircase_rate (1/5) - 1/25) <= 1/200000000000.
Proof. unfold rates_staircase_rate. interval with (i_prec 80). Qed.

Example drift_floor_fedavg_0 :
  Rabs (floors_mean_floor (4/5) (2/25) (1) - 8/25) <= 1/20000.
Proof. unfold floors_mean_floor. interval with (i_prec 80). Qed.

Example drift_floor_fedavg_1 :
  Rabs (floors_mean_floor (3/5) (3/50) (1) - 9/100) <= 1/200000.
Proof. unfold floors_mean_floor. interval with (i_prec 80). Qed.

Example drift_floor_fedavg_2 :
  Rabs (floors_mean_floor (2/5) (1/20) (1) - 3333/100000) <= 1/200000.
Proof. unfold floors_mean_floor. interval with (i_prec 80). Qed.

Example drift_floor_fedavg_3 :
  Rabs (floors_mean_floor (1/5) (1/25) (1) - 1/100) <= 1/200000.
Proof. unfold floors_mean_floor. interval with (i_prec 80). Qed.

Example drift_floor_zero_pad_0 :
  Rabs (floors_mean_floor (cohorts_without_replacement_second (20) (8) (4/5)) (2/25) (1) - 1503/10000) <= 1/20000.
Proof. unfold cohorts_without_replacement_second, floors_mean_floor. interval with (i_prec 80). Qed.

Example drift_floor_zero_pad_1 :
  Rabs (floors_mean_floor (cohorts_without_replacement_second (20) (8) (3/5)) (3/50) (1) - 3661/100000) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, floors_mean_floor. interval with (i_prec 80). Qed.

Example drift_floor_zero_pad_2 :
  Rabs (floors_mean_floor (cohorts_without_replacement_second (20) (8) (2/5)) (1/20) (1) - 109/10000) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, floors_mean_floor. interval with (i_prec 80). Qed.

Example drift_floor_zero_pad_3 :
  Rabs (floors_mean_floor (cohorts_without_replacement_second (20) (8) (1/5)) (1/25) (1) - 1111/500000) <= 1/2000000.
Proof. unfold cohorts_without_replacement_second, floors_mean_floor. interval with (i_prec 80). Qed.

Example drift_saturation_0 :
  Rabs (drift_raflora_saturation (1/10) (9/10) - 1) <= 1/2000.
Proof. unfold drift_raflora_saturation. interval with (i_prec 80). Qed.

Example drift_saturation_1 :
  Rabs (drift_raflora_saturation (2/25) (9/10) - 4/5) <= 1/20000.
Proof. unfold drift_raflora_saturation. interval with (i_prec 80). Qed.

Example drift_saturation_2 :
  Rabs (drift_raflora_saturation (3/50) (9/10) - 3/5) <= 1/20000.
Proof. unfold drift_raflora_saturation. interval with (i_prec 80). Qed.

Example drift_saturation_3 :
  Rabs (drift_raflora_saturation (1/20) (9/10) - 1/2) <= 1/20000.
Proof. unfold drift_raflora_saturation. interval with (i_prec 80). Qed.

Example drift_saturation_4 :
  Rabs (drift_raflora_saturation (1/25) (9/10) - 2/5) <= 1/20000.
Proof. unfold drift_raflora_saturation. interval with (i_prec 80). Qed.

Example review_settling_speed_0 :
  Rabs (floors_rate (cohorts_without_replacement_squares (15) (1)) (cohorts_without_replacement_second (20) (15) (1)) (1) (2/5) - 1011/1000) <= 1/2000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_rate. interval with (i_prec 80). Qed.

Example review_settling_speed_1 :
  Rabs (floors_rate (cohorts_without_replacement_squares (15) (3/5)) (cohorts_without_replacement_second (20) (15) (3/5)) (1) (2/5) - 1853/5000) <= 1/20000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_rate. interval with (i_prec 80). Qed.

Example review_settling_speed_2 :
  Rabs (floors_rate (cohorts_without_replacement_squares (15) (3/10)) (cohorts_without_replacement_second (20) (15) (3/10)) (1) (2/5) - 1211/12500) <= 1/200000.
Proof. unfold cohorts_without_replacement_second, cohorts_without_replacement_squares, floors_rate. interval with (i_prec 80). Qed.
