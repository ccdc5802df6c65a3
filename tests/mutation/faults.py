"""The faults to plant: a replacement, the tests to run on it, and the test that should catch it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A fault in one file.

    Args:
        name: what is wrong, in words.
        path: the file.
        old: the text to replace; it occurs once.
        new: the faulty text.
        tests: arguments of pytest, files first.
        catcher: name of the test that should fail.
    """

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]
    catcher: str

    @property
    def test_files(self) -> tuple[str, ...]:
        """The files among the arguments."""
        return tuple(name for name in self.tests if name.endswith(".py"))


DRAWS = ("tests/engines/test_draws.py",)
FORMULAS = ("tests/rules/test_aggregation_reference.py",)
POLICIES = ("tests/rules/test_aggregation_policies.py",)
FEDERATION = ("tests/core/test_federation.py",)
BATCHES = ("tests/core/test_lowrank_batches.py",)
TOLERANCES = ("tests/core/test_tolerances.py",)
DESCENT = ("tests/engines/test_descent.py",)
LOCAL = ("tests/finetune/test_local_training.py",)
BATCH_PLANS = ("tests/finetune/test_batches.py",)
SUBSETS = ("tests/tasks/test_text_data.py", "-k", "shares or samples")
ENERGIES = ("tests/closed_form/test_closed_form_energies.py",)
PERSISTENT = ("tests/closed_form/test_closed_form_persistent.py",)
ESTIMATORS = ("tests/stats/test_estimators.py",)
SURVIVORS = ("tests/claims/test_survivors.py",)
FIELLER = ("tests/stats/test_fieller.py",)
VERDICT = ("tests/stats/test_verdict.py",)
CONTROLS = ("tests/claims/test_controls.py",)
CLAIM_RUNS = ("tests/claims/test_claims.py",)
MEASURE = ("tests/collapse/test_collapse_measure.py",)
SWEEP_STORE = ("tests/sweep/test_store.py",)

FAULTS = (
    Fault(
        "the forecast is calibrated on the rounds on which it is scored",
        "analysis/studies/forecast.py",
        "pasts = tuple(past_of(dataset.sel(seed=[seed]), count)",
        "pasts = tuple(past_of(dataset.sel(seed=[seed]), last)",
        ("tests/studies/test_forecast.py",),
        "test_a_forecast_does_not_see_the_rounds_that_it_predicts",
    ),
    Fault(
        "drifts are drawn from the stream of the gains",
        "fedlora_sim/engines/draws.py",
        'draw("drifts", ',
        'draw("gains", ',
        DRAWS,
        "test_gains_are_independent_of_drifts",
    ),
    Fault(
        "the initial A is 1.2 times too wide",
        "fedlora_sim/finetune/batches.py",
        "bound = d_in**-0.5",
        "bound = 1.2 * d_in**-0.5",
        DRAWS,
        "test_the_initial_a_is_pefts_kaiming_draw",
    ),
    Fault(
        "uniform cohorts prefer the first client by 1%",
        "fedlora_sim/federation.py",
        "    last = np.partition(keys, size - 1, axis=-1)",
        "    keys[..., 0] *= 0.99\n    last = np.partition(keys, size - 1, axis=-1)",
        DRAWS,
        "test_every_cohort_has_its_probability",
    ),
    Fault(
        "a simulator's cohort takes the first client of a group in place of a repeated one",
        "fedlora_sim/engines/cohort_draws.py",
        "chosen[j] = torch.where(repeats, ceiling[j], chosen[j])",
        "chosen[j] = torch.where(repeats, ceiling[0], chosen[j])",
        DRAWS,
        "test_every_cohort_has_its_probability",
    ),
    Fault(
        "the numbers of clients forget in how many ways the last group can be drawn",
        "fedlora_sim/engines/cohort_draws.py",
        "weight = np.exp(log.sum(1) - log.sum(1).max())",
        "weight = np.exp(log[:, :-1].sum(1))",
        DRAWS,
        "test_every_cohort_has_its_probability",
    ),
    Fault(
        "the high word of a product forgets a carry",
        "fedlora_sim/randomness.py",
        "second = x_low * high + (first & half)",
        "second = x_low * high",
        ("tests/core/test_philox.py",),
        "test_philox_gives_the_known_answers",
    ),
    Fault(
        "cohorts drawn by size forget the sizes of small clients",
        "fedlora_sim/federation.py",
        "rng.multinomial(size, federation.weights, size=rounds)",
        "rng.multinomial(size, federation.weights.round(2) / federation.weights.round(2).sum(), "
        "size=rounds)",
        DRAWS,
        "test_every_cohort_has_its_probability",
    ),
    Fault(
        "an empty Bernoulli cohort is replaced by the first client",
        "fedlora_sim/federation.py",
        "counts[empty] = rng.random((empty.size, shape[1])) < probability",
        "counts[empty, 0] = 1",
        DRAWS,
        "test_every_cohort_has_its_probability",
    ),
    Fault(
        "bases keep the signs of the QR factorization",
        "fedlora_sim/engines/draws.py",
        "return q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)",
        "return q",
        DRAWS,
        "test_the_initial_basis_is_haar",
    ),
    # Aggregation.
    Fault(
        "contributors to a partition are weighted by their squared sample counts",
        "fedlora_sim/rules/base.py",
        "contributing = weights.unsqueeze(-1) * members",
        "contributing = weights.square().unsqueeze(-1) * members",
        (*FORMULAS, "-k", "formula and raflora"),
        "test_every_rule_agrees_with_its_formula",
    ),
    Fault(
        "canonical factors hold the LoRA scaling, which is applied again",
        "fedlora_sim/rules/cohort.py",
        "scaling = torch.ones_like(self.scaling)",
        "scaling = self.scaling",
        (*FORMULAS, "-k", "formula and canonicalize"),
        "test_every_rule_agrees_with_its_formula",
    ),
    Fault(
        "unequal scalings go to B alone where A and B are averaged",
        "fedlora_sim/rules/averages.py",
        "return 1.0, root, root",
        "return 1.0, scalings.unsqueeze(-1), one",
        (*FORMULAS, "-k", "formula and zero_pad"),
        "test_every_rule_agrees_with_its_formula",
    ),
    Fault(
        "the last adapter's scaling is forgotten where partitions are carried",
        "fedlora_sim/rules/averages.py",
        "scaling = mask * factors.scaling",
        "scaling = mask",
        (*POLICIES, "-k", "carry"),
        "test_carry_keeps_partitions_without_contributor",
    ),
    Fault(
        "factors that rbla carries keep the scaling of the last adapter",
        "fedlora_sim/rules/averages.py",
        "last = kept.rescale(scaling)",
        "last = kept",
        (*POLICIES, "-k", "carries"),
        "test_rbla_carries_the_factors_themselves",
    ),
    Fault(
        "clients drawn by size are weighted by size again",
        "fedlora_sim/federation.py",
        "return counts.astype(np.float64)",
        "return counts * np.asarray(self._samples)[clients]",
        FEDERATION,
        "test_cohort_weights_count_samples_and_repeats",
    ),
    # Singular values.
    Fault(
        "one layer that the Gram path holds is enough to trust a batch's singular values",
        "fedlora_sim/lowrank.py",
        'if path == "gram" or bool(core.trusted.all()):',
        'if path == "gram" or bool(core.trusted.any()):',
        BATCHES,
        "test_singular_values_of_one_bad_layer_are_right",
    ),
    Fault(
        "one layer that the Gram path holds is enough to trust a batch's vectors",
        "fedlora_sim/lowrank.py",
        "if not fall_back or bool(core.trusted.all()):",
        "if not fall_back or bool(core.trusted.any()):",
        BATCHES,
        "test_layers_of_a_batch_are_corrected_one_by_one",
    ),
    Fault(
        "vectors of the Gram path are trusted with a thousand times the rounding",
        "fedlora_sim/lowrank.py",
        'torch.finfo(dtype).eps * summed <= relative("factorization", dtype) / 4',
        'torch.finfo(dtype).eps * summed <= relative("factorization", dtype) * 250',
        ("tests/core/test_lowrank_paths.py", "-k", "detects or orthonormal"),
        "test_vectors_stay_orthonormal_where_one_factor_is_nearly_dependent",
    ),
    Fault(
        "a product that was rescaled is put back by half of its exponent",
        "fedlora_sim/lowrank.py",
        "found = times_power(values, 2 * m.reshape(",
        "found = times_power(values, m.reshape(",
        ("tests/core/test_range.py", "-k", "power or single_precision_of_every"),
        "test_aggregation_commutes_with_powers_of_two",
    ),
    Fault(
        "results of factorizations may differ a thousand times more",
        "fedlora_sim/tolerances.py",
        '"factorization": {"float64": 1e-12, "float32": 2e-5},',
        '"factorization": {"float64": 1e-9, "float32": 2e-2},',
        TOLERANCES,
        "test_tolerances_are_a_few_roundings_wide",
    ),
    Fault(
        "the effective rank is that of energies, not of amplitudes",
        "fedlora_sim/metrics.py",
        "p = np.sqrt(rows[start : start + step])",
        "p = rows[start : start + step].copy()",
        ("tests/core/test_metrics.py", "-k", "effective"),
        "test_effective_rank_by_hand",
    ),
    Fault(
        "a matrix is taken for one of few directions without a certificate",
        "fedlora_sim/lowrank.py",
        "lies_within = residual <= bound",
        "lies_within = residual < torch.inf",
        ("tests/core/test_leading_svd.py",),
        "test_the_leading_triplets_are_those_of_lapack",
    ),
    Fault(
        "columns are taken for orthogonal without a look",
        "fedlora_sim/lowrank.py",
        "orthogonal = orthogonal & (off.abs().amax((-2, -1)) <= rounding)",
        "orthogonal = orthogonal & (off.abs().amax((-2, -1)) <= 1)",
        ("tests/core/test_leading_svd.py",),
        "test_singular_values_of_one_block_are_those_of_lapack",
    ),
    Fault(
        "directions of the last round are taken for singular vectors without a certificate",
        "fedlora_sim/lowrank.py",
        "trusted = near.orthonormal & (left <= bound)",
        "trusted = near.orthonormal & (left < torch.inf)",
        ("tests/core/test_svd_near.py",),
        "test_what_the_directions_do_not_show_is_solved_from_scratch",
    ),
    Fault(
        "a stacked cohort is summed with the weights of A on B",
        "fedlora_sim/rules/cohort.py",
        "pairs = zip((weights_b, weights_a), self.rows(), strict=True)",
        "pairs = zip((weights_a, weights_a), self.rows(), strict=True)",
        ("tests/rules/test_stacked_cohorts.py",),
        "test_a_rule_gives_the_same_for_a_list_of_clients",
    ),
    # Moments over seeds.
    Fault(
        "blocks of seeds are merged as if their means were equal",
        "fedlora_sim/moments.py",
        "self.squares += other.squares + shift**2 * (self.count * other.count / total)",
        "self.squares += other.squares",
        ("tests/core/test_moments_over_seeds.py",),
        "test_a_merge_knows_that_blocks_have_other_means",
    ),
    Fault(
        "a histogram that has grown keeps its first bin",
        "fedlora_sim/moments.py",
        "self.level[cells], self.first[cells] = level, first",
        "self.level[cells] = level",
        ("tests/core/test_moments_over_seeds.py",),
        "test_histograms_hold_any_range_and_merge",
    ),
    # Spectral runs.
    Fault(
        "a cohort's noise has the variance of its weights as deviation",
        "fedlora_sim/engines/spectral.py",
        "norm=squares.sqrt(),",
        "norm=squares,",
        ("tests/engines/test_spectral.py", "-k", "agrees_in_law"),
        "test_fresh_noise_in_product_space_agrees_in_law",
    ),
    Fault(
        "pairs of runs share their noise",
        "fedlora_sim/engines/spectral.py",
        'normals(seeds, "aggregate noise"',
        'normals([seed // 2 for seed in seeds], "aggregate noise"',
        ("tests/engines/test_spectral.py", "-k", "independent_noise"),
        "test_rounds_directions_and_seeds_have_independent_noise",
    ),
    Fault(
        "importance ranks directions by where a client ends, not by how far it moves",
        "fedlora_sim/engines/spectral.py",
        "(reached - total).abs())",
        "reached.abs())",
        ("tests/engines/test_allocation.py", "-k", "importance"),
        "test_importance_of_the_spectral_fidelity_is_how_far_a_client_would_move",
    ),
    Fault(
        "clients send what the base holds already",
        "fedlora_sim/engines/spectral.py",
        "y = (reached - z.unsqueeze(1)) * members",
        "y = reached * members",
        ("tests/engines/test_spectral_rules.py", "-k", "reference and fedex"),
        "test_persistent_clients_are_the_reference",
    ),
    # Matrix runs.
    Fault(
        "Adam's first moment is not corrected for its start",
        "fedlora_sim/engines/matrix.py",
        "return first / (1 - BETAS[0] ** step) / spread",
        "return first / spread",
        (*DESCENT, "-k", "every_optimizer"),
        "test_every_optimizer_under_every_disturbance_is_the_reference",
    ),
    Fault(
        "Adam's epsilon stands under the root",
        "fedlora_sim/engines/matrix.py",
        ".sqrt_().add_(EPSILON)",
        ".add_(EPSILON).sqrt_()",
        (*DESCENT, "-k", "every_optimizer"),
        "test_every_optimizer_under_every_disturbance_is_the_reference",
    ),
    Fault(
        "B descends at the place that A has reached already",
        "fedlora_sim/engines/matrix.py",
        "b = b.add(move(gradient_b, on_b, step), alpha=-rate)",
        "b = b.add(move(_gradient(b, a, left, right, base), on_b, step), alpha=-rate)",
        (*DESCENT, "-k", "test_it_is_the_reference"),
        "test_it_is_the_reference",
    ),
    Fault(
        "the input basis drifts to the other side",
        "fedlora_sim/engines/matrix.py",
        "lora_a = lora_a @ inner.mT if moves_a else lora_a",
        "lora_a = lora_a @ inner if moves_a else lora_a",
        ("tests/engines/test_matrix.py", "-k", "every_disturbance"),
        "test_every_disturbance_alone_is_the_reference",
    ),
    # Training.
    Fault(
        "gradients are clipped over all clients of a stack",
        "fedlora_sim/finetune/local.py",
        "for g in gradients]).sum(0)\n",
        "for g in gradients]).sum(0).sum().expand(len(gradients[0]))\n",
        ("tests/finetune/test_client_descent.py", "-k", "clipping"),
        "test_clipping_is_pytorchs_client_by_client",
    ),
    Fault(
        "samples that fill a batch up count in its mean loss",
        "fedlora_sim/finetune/local.py",
        "return total / count\n",
        "return total / real.shape[1]\n",
        (*LOCAL, "-k", "plain_loop"),
        "test_stacked_agrees_with_a_plain_loop",
    ),
    Fault(
        "moments of the optimizer are lost when a client leaves the stack",
        "fedlora_sim/finetune/local.py",
        "state = self.optimizer.state.pop(before, {})",
        "self.optimizer.state.pop(before, {})\n            state: dict[str, Tensor] = {}",
        (*LOCAL, "-k", "plain_loop or finished"),
        "test_stacked_agrees_with_a_plain_loop",
    ),
    Fault(
        "every epoch has the order of the first",
        "fedlora_sim/finetune/batches.py",
        "shuffled = (np.split(rng.permutation(samples), cuts) for _ in range(epochs))",
        "shuffled = [np.split(rng.permutation(samples), cuts)] * epochs",
        BATCH_PLANS,
        "test_epochs_are_shuffled_again",
    ),
    Fault(
        "the penalty starts one rank too late",
        "fedlora_sim/finetune/local.py",
        "(index >= start.unsqueeze(1))",
        "(index > start.unsqueeze(1))",
        ("tests/finetune/test_self_pruning.py", "-k", "tail"),
        "test_the_size_of_a_tail_is_the_product_of_its_norms",
    ),
    Fault(
        "SLoRA's sparse stage counts every client alike",
        "fedlora_sim/finetune/slora.py",
        "p = torch.as_tensor(share / share.sum())",
        "p = torch.as_tensor(np.full(len(share), 1 / len(share)))",
        ("tests/finetune/test_rules_and_allocations.py", "-k", "start_sparse"),
        "test_runs_that_start_sparse_are_the_reference",
    ),
    Fault(
        "the gradient of A forgets the LoRA scaling",
        "fedlora_sim/finetune/stacked.py",
        "back = torch.bmm(grad, lora_B).mul_(scaling)",
        "back = torch.bmm(grad, lora_B)",
        ("tests/finetune/test_stacked_lora.py", "-k", "backward or finite"),
        "test_gradients_are_those_of_finite_differences",
    ),
    Fault(
        "a square map that stores its weight transposed gets its update as it is",
        "fedlora_sim/finetune/stacked.py",
        "change = delta if isinstance(module, nn.Linear) else delta.mT",
        "change = delta if delta.shape == weight.shape else delta.mT",
        ("tests/tasks/test_targets.py",),
        "test_an_update_is_merged_into_both_kinds_of_square_maps",
    ),
    Fault(
        "rsLoRA divides by the rank",
        "fedlora_sim/scenario.py",
        "return self.lora_alpha / (rank**0.5 if self.use_rslora else rank)",
        "return self.lora_alpha / rank",
        ("tests/core/test_scenario.py", "-k", "scaling"),
        "test_client_scaling",
    ),
    # Splits and tasks.
    Fault(
        "all classes are split by the same shares",
        "fedlora_sim/splits.py",
        "dirichlet_cuts(own, alpha, num_clients, rng)",
        "dirichlet_cuts(own, alpha, num_clients, np.random.default_rng(0))",
        ("tests/splits/test_label_splits.py",),
        "test_small_alpha_skews_and_large_alpha_does_not",
    ),
    Fault(
        "the first client has no noise on its inputs",
        "fedlora_sim/splits.py",
        "np.arange(1, clients + 1) / clients",
        "np.arange(clients) / clients",
        ("tests/splits/test_feature_shift.py",),
        "test_levels_rise_evenly_to_the_level",
    ),
    Fault(
        "a sample too few or too many is taken from the wrong classes",
        "fedlora_sim/tasks/task.py",
        "quota[np.argsort(-rest,",
        "quota[np.argsort(rest,",
        SUBSETS,
        "test_samples_keep_the_classes_shares",
    ),
    Fault(
        "the loss of a completion is divided by the prompt's tokens too",
        "fedlora_sim/tasks/task.py",
        "counted = shifted != IGNORED\n",
        "counted = shifted == shifted\n",
        ("tests/tasks/test_causal.py", "-k", "loss"),
        "test_the_loss_is_that_of_transformers",
    ),
    Fault(
        "the answer is the number after the first mark",
        "fedlora_sim/tasks/causal.py",
        '_, mark, end = text.rpartition("####")',
        '_, mark, end = text.partition("####")',
        ("tests/tasks/test_causal_generation.py", "-k", "final"),
        "test_final_answers",
    ),
    # Adapters.
    Fault(
        "the scaling of a module with a rank of its own is that of the usual rank",
        "fedlora_sim/peft/config.py",
        "return self.scaling_at(module, self.rank_of(module))",
        "return self.scaling_at(module, self.rank)",
        ("tests/peft/test_adapter_outputs.py", "-k", "pattern"),
        "test_ranks_by_pattern",
    ),
    Fault(
        "the last pattern that fits a module wins",
        "fedlora_sim/peft/patterns.py",
        "next((pattern for pattern in patterns if",
        "next((pattern for pattern in reversed([*patterns]) if",
        ("tests/peft/test_adapter_config.py", "-k", "patterns_match"),
        "test_patterns_match_as_in_peft",
    ),
    Fault(
        "heads and norms are averaged without regard to samples",
        "fedlora_sim/peft/aggregate.py",
        "present.append((client, weight / total))",
        "present.append((client, 1 / len(having)))",
        ("tests/peft/test_adapter_extras.py", "-k", "averaged_by_samples"),
        "test_trained_tensors_are_averaged_by_samples",
    ),
    Fault(
        "rows of trained tokens are reordered by the inverse permutation",
        "fedlora_sim/peft/aggregate.py",
        "[tokens.index(token) for token in order]",
        "[order.index(token) for token in tokens]",
        ("tests/peft/test_adapter_options.py", "-k", "row_by_row"),
        "test_trained_tokens_are_averaged_row_by_row",
    ),
    Fault(
        "the B of stacked experts is read expert by expert",
        "fedlora_sim/peft/read.py",
        "lora_b.unflatten(1, (-1, self.experts)).permute(2, 0, 1)",
        "lora_b.unflatten(1, (self.experts, -1)).permute(1, 0, 2)",
        ("tests/peft/test_adapter_experts.py", "-k", "one_by_one"),
        "test_experts_are_averaged_one_by_one",
    ),
    Fault(
        "components that start anew are drawn 2.4 times as wide as PEFT's",
        "fedlora_sim/peft/write.py",
        "bound = 1 / np.sqrt(layer.d_in)",
        "bound = np.sqrt(6 / layer.d_in)",
        ("tests/peft/test_adapter_fresh_components.py", "-k", "fresh"),
        "test_a_fresh_adapter_looks_like_one_of_pefts",
    ),
    Fault(
        "a truncated state dict keeps the scaling of the global adapter",
        "fedlora_sim/peft/state_dicts.py",
        "received.scaling_at(module, own)",
        "received.scaling_of(module)",
        ("tests/peft/test_state_dicts.py", "-k", "truncation"),
        "test_the_product_of_a_truncation_is_the_truncation",
    ),
    Fault(
        "a module is averaged over the first clients instead of those that have it",
        "fedlora_sim/peft/layers.py",
        "weights = tuple(cohort.weights[k] for k in owners)",
        "weights = cohort.weights[: len(owners)]",
        ("tests/peft/test_adapter_modules.py", "-k", "owners"),
        "test_owners_are_averaged_among_themselves",
    ),
    Fault(
        "clients that are read one at a time are all kept in memory",
        "fedlora_sim/peft/state_dicts.py",
        "is_kept = self._is_kept and not callable(item)",
        "is_kept = True",
        ("tests/peft/test_state_dicts.py", "-k", "in_memory"),
        "test_at_most_one_client_is_in_memory",
    ),
    Fault(
        "names of tensors may hold control characters",
        "fedlora_sim/peft/read.py",
        "if not key.isprintable() or _PATTERN_SIGNS",
        "if _PATTERN_SIGNS",
        ("tests/peft/test_hostile_folders.py", "-k", "names"),
        "test_names_that_cannot_be_a_modules",
    ),
    # Closed forms and laws of cohorts.
    Fault(
        "the floor's cross term of gain and mean drift is counted once",
        "analysis/closed_form/round_map.py",
        "return RoundMap(gain, c * mean, rate, 2 * g * c * second, noise)",
        "return RoundMap(gain, c * mean, rate, g * c * second, noise)",
        (*ENERGIES, "-k", "differ or agree"),
        "test_clients_that_differ",
    ),
    Fault(
        "moments of persistent gains have a wrong factor",
        "analysis/closed_form/persistent.py",
        "moments[j + 1] += _times(j * variance, moments[j - 1])",
        "moments[j + 1] += _times((j + 1) * variance, moments[j - 1])",
        (*PERSISTENT, "-k", "two_rounds"),
        "test_two_rounds",
    ),
    Fault(
        "two clients of a cohort are counted as if drawn with replacement",
        "analysis/closed_form/persistent.py",
        "/ max(number - 1, 1)) / number",
        "/ max(number, 1)) / number",
        (*PERSISTENT, "-k", "two_rounds"),
        "test_two_rounds",
    ),
    Fault(
        "the variance of the log energy takes the power of the share once",
        "analysis/closed_form/typical.py",
        "power**2 * moments.log_variance",
        "power * moments.log_variance",
        ("tests/closed_form/test_closed_form_typical.py", "-k", "few_rounds"),
        "test_a_few_rounds",
    ),
    Fault(
        "the threshold is that of the mean share, not of a typical run",
        "analysis/closed_form/flow.py",
        "setting.moments.log_mean + 0.0",
        "np.log(setting.moments.mean) + 0.0",
        ("tests/closed_form/test_closed_form_flow.py", "-k", "typical_run"),
        "test_a_typical_run_survives_above_its_threshold_only",
    ),
    Fault(
        "a client that is drawn twice counts as twice two clients",
        "analysis/cohorts/exact.py",
        "squares = draws + draws * (draws - 1) * repeat[:, None]",
        "squares = draws + draws**2 * repeat[:, None]",
        ("tests/closed_form/test_share_laws.py", "-k", "laws_equal_brute_force"),
        "test_laws_equal_brute_force",
    ),
    Fault(
        "the bound on the collapse takes the coverage of the highest level",
        "analysis/closed_form/energy.py",
        "gamma = float(federation.coverage()[lowest]) ** 2",
        "gamma = float(federation.coverage()[-1]) ** 2",
        ("tests/closed_form/test_closed_form.py", "-k", "collapse_bound"),
        "test_collapse_bound_holds_and_is_tight_at_the_start",
    ),
    # Intervals and verdicts.
    Fault(
        "the sum of correlations ends after one integrated time",
        "analysis/stats/series.py",
        "WINDOW = 5.0",
        "WINDOW = 1.0",
        ("tests/stats/test_stationary.py", "-k", "ar1 or cut_before"),
        "test_the_sum_is_not_cut_before_the_correlation_has_ended",
    ),
    Fault(
        "intervals are lengthened on the side away from the tail",
        "analysis/stats/intervals.py",
        "skewness = np.array([-1.0, 1.0])",
        "skewness = np.array([1.0, -1.0])",
        (*ESTIMATORS, "-k", "skewness"),
        "test_skewness_makes_intervals_longer_on_one_side_and_longer_still_for_small_errors",
    ),
    Fault(
        "intervals of means are one-sided",
        "analysis/stats/intervals.py",
        "below, above = standard_errors(x, error / (2 * q))",
        "below, above = standard_errors(x, error / q)",
        (*ESTIMATORS, "-k", "student"),
        "test_mean_interval_is_student_with_bonferroni",
    ),
    Fault(
        "an interval of a share ends one hit too low",
        "analysis/stats/intervals.py",
        "stats.beta.isf(tail, hits + 1, np.maximum(n - hits, 1))",
        "stats.beta.isf(tail, np.maximum(hits, 1), np.maximum(n - hits, 1))",
        (*ESTIMATORS, "-k", "clopper"),
        "test_proportion_interval_is_clopper_pearson_with_bonferroni",
    ),
    Fault(
        "an interval of a median is one order statistic too short",
        "analysis/stats/intervals.py",
        "return Measurement(value, x[left_out - 1], x[n - left_out], n)",
        "return Measurement(value, x[left_out - 1], x[n - left_out - 1], n)",
        (*ESTIMATORS, "-k", "median_interval"),
        "test_ends_of_a_median_interval_are_order_statistics",
    ),
    Fault(
        "several columns of survivors do not share the error",
        "analysis/stats/intervals.py",
        "estimator(column, error / q)",
        "estimator(column, error)",
        SURVIVORS,
        "test_survivors_share_the_error_over_quantities",
    ),
    Fault(
        "Fieller's interval of a negative denominator has its ends exchanged",
        "analysis/stats/intervals.py",
        "factors = np.where(x > 0, [below, above], [above, below])",
        "factors = np.array([below, above])",
        FIELLER,
        "test_a_negative_denominator_turns_the_interval_round",
    ),
    Fault(
        "looks at growing data are not paid for",
        "analysis/stats/verdicts.py",
        "measurement = estimator(samples, error / looks)",
        "measurement = estimator(samples, error)",
        ("tests/stats/test_sequential.py", "-k", "repeated_looks or runs_are_added"),
        "test_repeated_looks_keep_the_error",
    ),
    Fault(
        "Holm's steps count the claims that were run, not the family",
        "analysis/stats/verdicts.py",
        "steps = np.minimum((total - np.arange(len(p)))",
        "steps = np.minimum((len(p) - np.arange(len(p)))",
        ("tests/stats/test_family.py", "-k", "holm"),
        "test_holm_lies_between_the_p_value_and_bonferronis",
    ),
    Fault(
        "one quantity inside its margins supports a claim",
        "analysis/stats/verdicts.py",
        "if _inside(measurement, prediction).all():",
        "if _inside(measurement, prediction).any():",
        VERDICT,
        "test_judge",
    ),
    Fault(
        "one quantity outside refutes a near control",
        "analysis/stats/verdicts.py",
        "if _outside(measurement, prediction).all():",
        "if _outside(measurement, prediction).any():",
        VERDICT,
        "test_a_near_control_is_refuted_in_every_quantity_or_not_at_all",
    ),
    # Claims.
    Fault(
        "the margin of floors is a thousand times as wide",
        "analysis/claims/rates.py",
        "FLOOR_MARGIN = 0.03",
        "FLOOR_MARGIN = 30.0",
        (*CONTROLS, "-k", "margins_are_narrow"),
        "test_margins_are_narrow",
    ),
    Fault(
        "the near control of the noise gain is absurd",
        "analysis/claims/noise.py",
        "LITTLE, LONG_LITTLE = 1.035, 1.08",
        "LITTLE, LONG_LITTLE = 100.0, 1.08",
        (*CONTROLS, "-k", "control_is_near"),
        "test_the_near_control_is_near",
    ),
    Fault(
        "the claim on drifts with a mean compares with a floor without its cross term",
        "analysis/closed_form/round_map.py",
        "        height = self.cross * mean + self.noise\n",
        "        height = self.noise\n",
        (*CLAIM_RUNS, "-k", "settled and floor-drift-mean"),
        "test_claim_is_settled_and_its_control_refuted",
    ),
    # Collapse.
    Fault(
        "a partition that may be lost in most runs is kept",
        "analysis/collapse/measure.py",
        "keeps = (extinct.high < MOST)",
        "keeps = (extinct.low < MOST)",
        MEASURE,
        "test_undecided_where_intervals_reach_both_sides",
    ),
    Fault(
        "the numbers of a scenario do not share its error",
        "analysis/collapse/measure.py",
        "part, exact = error / len(KINDS), _is_exact(energy, standard)",
        "part, exact = error, _is_exact(energy, standard)",
        MEASURE,
        "test_the_numbers_of_a_scenario_share_its_error",
    ),
    # Real runs.
    Fault(
        "weights of a forecast know errors that lie ahead of their origin",
        "analysis/studies/forecast.py",
        "weights = [law_weights(errors, known) for known in range(errors.shape[1])]",
        "weights = [law_weights(errors) for known in range(errors.shape[1])]",
        ("tests/studies/test_forecast.py",),
        "test_errors_of_the_combination_use_weights_of_their_time",
    ),
    Fault(
        "intervals of a forecast are one-sided",
        "analysis/studies/forecast.py",
        "sign = rng.choice([-1.0, 1.0], size=(count, 1))",
        "sign = rng.choice([1.0, 1.0], size=(count, 1))",
        ("tests/studies/test_forecast.py",),
        "test_intervals_hold_about_as_many_measurements_as_they_say",
    ),
    Fault(
        "replicates are compared although one of their runs is missing",
        "analysis/studies/findings.py",
        "return grouped.mean()[complete].to_numpy",
        "return grouped.mean().to_numpy",
        ("tests/studies/test_paper_claims.py", "-k", "replicate_without"),
        "test_a_replicate_without_one_of_its_runs_is_left_out",
    ),
    # Conformance.
    Fault(
        "the conformance suite allows a thousand times the rounding in narrow types",
        "fedlora_sim/tolerances.py",
        "ROUNDING_UNITS = 8.0",
        "ROUNDING_UNITS = 8000.0",
        TOLERANCES,
        "test_narrow_types_are_a_few_roundings_away",
    ),
    # Sweeps, runs and commands.
    Fault(
        "the last seed of a task is lost when a manifest is read",
        "fedlora_sim/sweep/store.py",
        'range(seeds["first"], seeds["last"] + 1)',
        'range(seeds["first"], seeds["last"])',
        ("tests/sweep/test_run_sweep.py", "-k", "larger_grid or existing_pieces or covered_runs"),
        "test_existing_pieces_are_not_made_again",
    ),
    Fault(
        "only the simulator's own code decides whether a sweep may go on",
        "fedlora_sim/sweep/store.py",
        "if mix_code or not done or last == now:",
        'if mix_code or not done or last["code"] == now["code"]:',
        ("tests/sweep/test_run_sweep.py", "-k", "other_code or other_libraries"),
        "test_other_libraries_are_refused_by_name",
    ),
    Fault(
        "a file of another task is taken for this one's",
        "fedlora_sim/sweep/store.py",
        "file.attrs.get(TASK_ATTR) == task.id and ",
        "",
        SWEEP_STORE,
        "test_a_file_of_another_task_is_made_again",
    ),
    Fault(
        "a folder's lock may be held by several",
        "fedlora_sim/storage.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        ("tests/sweep/test_sweep_trouble.py", "-k", "second_driver"),
        "test_the_second_driver_is_refused",
    ),
    Fault(
        "a state file's content is not held against its checksum",
        "fedlora_sim/finetune/checkpoints.py",
        "if _checksum(tensors, metadata) != metadata.get(CHECKSUM):",
        "if CHECKSUM not in metadata:",
        ("tests/faults/test_damaged_files.py", "-k", "damaged_files_are_named"),
        "test_damaged_files_are_named",
    ),
    Fault(
        "with --force files of other programs are replaced",
        "fedlora_sim/storage.py",
        "if path.is_symlink() or not is_signed(path):",
        "if path.is_symlink() or not (force or is_signed(path)):",
        ("tests/cli/test_simulate_command.py", "-k", "another_program"),
        "test_a_file_of_another_program_is_never_replaced",
    ),
    Fault(
        "a run goes on in a folder that does not know all of its description",
        "fedlora_sim/finetune/checkpoints.py",
        "for name in {**given, **found}:",
        "for name in found:",
        ("tests/finetune/test_checkpoints.py", "-k", "refused or without_a_description"),
        "test_a_folder_without_a_description_of_its_run_is_refused",
    ),
    Fault(
        "simulate counts its seeds from zero, whatever --seed says",
        "fedlora_cli/simulate.py",
        'numbers = range(first_seed, first_seed + check_count("--seeds", seeds))',
        'numbers = range(check_count("--seeds", seeds))',
        ("tests/cli/test_simulate_command.py", "-k", "python_interface"),
        "test_values_are_those_of_the_python_interface",
    ),
    Fault(
        "a report holds if a conjecture is supported",
        "analysis/claims/verify.py",
        'if c["kind"] == "theorem"\n',
        'if c["kind"] in KINDS\n',
        ("tests/claims/test_run_claim.py", "-k", "holds"),
        "test_holds_requires_every_theorem",
    ),
)
