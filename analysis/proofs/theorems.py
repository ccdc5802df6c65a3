r"""The theorems that are proved: their formulas, assumptions and claims.

The sentence of each theorem stands in its file. Formulas are LaTeX, in the symbols of the claims:
$\pi_j$ and $W$ coverage, $\rho$ the energy ratio, $g$, $\nu$, $c$, $\tau$ means and deviations of
gains and drifts, $q'$ the rate and $\delta^2$ the noise of the second-moment recursion.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis.proofs.coq import sentence

_WEIGHTS = "weights that are not negative; every client carries its leading directions"
_IDLE = f"full participation; clients return what they were sent; {_WEIGHTS}"
_FRESH = (
    "gains and drifts are independent of each other, of the weights and of the amplitude; the "
    "expectation is linear; any weights"
)
_COHORT = "uniform cohorts without replacement; equal sample counts"
_FLOW = "equal targets $M > 0$ and balanced factors; $G > 1$, $\\omega > 0$ and a positive start"
_FIELD = "matrices over any field, of any size; no common basis"
_COMMON = "a common gain and drift; full participation"


@dataclass(frozen=True)
class Theorem:
    """A theorem of the proofs.

    Args:
        name: `File.theorem`.
        formula: its statement in LaTeX.
        assumptions: what it assumes, with formulas between dollar signs.
        claims: ids of the claims that it proves.
    """

    name: str
    formula: str
    assumptions: str
    claims: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.name.partition('.')[0]}.v"

    @property
    def sentence(self) -> str:
        """Its statement in words."""
        return sentence(self.name)


SECTIONS: dict[str, tuple[Theorem, ...]] = {
    "Suppression and the staircase of rates": (
        Theorem("Suppression.suppression", r"x_j(t) = \pi_j^t\, x_j(0)", _IDLE),
        Theorem(
            "Suppression.staircase",
            r"\frac{x_j(t)^2}{x_j(0)^2} = \pi_j^{2 t}",
            f"{_IDLE}; $x_j(0) \\ne 0$",
            ("staircase",),
        ),
        Theorem(
            "Suppression.staircase_rate",
            r"x_j(t + 1)^2 = \pi_j^2\, x_j(t)^2",
            _IDLE,
            ("staircase",),
        ),
        Theorem("Suppression.staircase_descends", r"i \le j \implies \pi_j^2 \le \pi_i^2", _IDLE),
        Theorem(
            "Suppression.shared_directions_stay",
            r"\pi_j = 1 \implies x_j(t) = x_j(0)",
            _IDLE,
        ),
        Theorem(
            "Suppression.raflora_keeps",
            r"x_j(t) = x_j(0)",
            f"{_IDLE}; raFLoRA; $\\pi_j \\ne 0$",
            ("raflora-flat",),
        ),
        Theorem(
            "Suppression.raflora_fedavg",
            r"\pi_j\, x'_{j, \mathrm{raFLoRA}} = x'_{j, \mathrm{FedAvg}}",
            f"{_IDLE}; $\\pi_j \\ne 0$",
        ),
        Theorem("Suppression.zero_pad_multiplier", r"(b a)' = W^2\, b a", f"{_IDLE}; zero padding"),
        Theorem(
            "Suppression.zero_pad_fourth_power",
            r"(b_t a_t)^2 = W^{4 t} (b_0 a_0)^2",
            f"{_IDLE}; zero padding",
            ("zero-pad-fourth-power",),
        ),
        Theorem(
            "Suppression.rbla_is_raflora",
            r"x'_{\mathrm{RBLA}} = x'_{\mathrm{raFLoRA}}",
            "contributors of a cohort return equal directions; weights that are not negative; "
            "$\\pi_j \\ne 0$",
            ("rbla-is-raflora",),
        ),
    ),
    "The collapse bound": (
        Theorem(
            "Bound.collapse_bound",
            r"1 - \rho(t) \le C \gamma^t, \quad C = \frac{E_{\mathrm{high}}}{E_{\mathrm{shared}}},"
            r"\quad \gamma = \pi_2^2",
            f"{_IDLE}; $E_{{\\mathrm{{shared}}}} > 0$; no coverage above that of the second level",
            ("collapse-bound",),
        ),
        Theorem("Bound.collapse_constant", r"C = \frac{E_2 + E_3}{E_1}", "three rank levels"),
        Theorem(
            "Bound.collapse_limit",
            r"\pi_2 < 1 \implies \lim_{t \to \infty} 1 - \rho(t) = 0",
            f"{_IDLE}; $E_{{\\mathrm{{shared}}}} > 0$; no coverage above that of the second level",
        ),
    ),
    "Strictness": (
        Theorem(
            "Strictness.strict",
            r"(\exists k:\ p_k > 0,\ r_k \le j) \implies \pi_j < \sum_k p_k",
            _WEIGHTS,
        ),
        Theorem(
            "Strictness.no_dilution",
            r"(\forall k:\ p_k > 0 \implies r_k > j) \implies \pi_j = \sum_k p_k",
            _WEIGHTS,
        ),
        Theorem(
            "Strictness.collapse",
            r"(\exists k:\ p_k > 0,\ r_k \le j) \implies \lim_{t \to \infty} x_j(t) = 0",
            f"{_IDLE}; $\\sum_k p_k = 1$",
        ),
        Theorem(
            "Strictness.raflora_persists",
            r"\pi_j > 0 \implies x_j(t) = x_j(0)",
            f"{_IDLE}; raFLoRA",
        ),
    ),
    "Second moments, floors and trajectories": (
        Theorem(
            "Moments.mean_recursion",
            r"E[x'] = S_1 (g\, E[x] + c)",
            _FRESH,
            ("drift-trajectory",),
        ),
        Theorem(
            "Moments.second_moment_recursion",
            r"E[x'^2] = (g^2 S_2 + \nu^2 Q) E[x^2] + 2 g c S_2 E[x] + \tau^2 Q + c^2 S_2",
            _FRESH,
            ("trajectory-fedavg", "trajectory-raflora", "heterogeneity-slows"),
        ),
        Theorem(
            "Moments.carry_recursion",
            r"E[x'^2]_{\mathrm{carry}} = E[x'^2] + P_0 E[x^2]",
            f"{_FRESH}; all weights are 0 in a round without a contributor, of probability $P_0$",
        ),
        Theorem(
            "Moments.raflora_second",
            r"E[(\textstyle\sum w)^2] = 1 - P_0",
            "weights that sum to 1 in every round with a contributor",
        ),
        Theorem(
            "Moments.raflora_zero_rate",
            r"E[x'^2] = (1 - P_0) E[x^2]",
            f"{_FRESH}; raFLoRA that drops empty partitions; $g = 1$, $c = \\nu = \\tau = 0$",
            ("raflora-zero-cohort",),
        ),
        Theorem(
            "Moments.raflora_carry_flat",
            r"E[x'^2] = E[x^2]",
            f"{_FRESH}; raFLoRA that carries empty partitions over; $g = 1$, "
            "$c = \\nu = \\tau = 0$",
            ("raflora-carry-flat",),
        ),
        Theorem(
            "Moments.energy_trajectory",
            r"E[x_t^2] = \frac{\delta^2}{1 - q'} + q'^t \left(E[x_0^2] - "
            r"\frac{\delta^2}{1 - q'}\right)",
            "the recursion with $c = 0$; $q' \\ne 1$",
            ("trajectory-fedavg", "trajectory-raflora"),
        ),
        Theorem(
            "Moments.energy_at_boundary",
            r"q' = 1 \implies E[x_t^2] = E[x_0^2] + \delta^2 t",
            "the recursion with $c = 0$",
        ),
        Theorem(
            "Moments.floor_reached",
            r"\lim_{t \to \infty} E[x_t^2] = \frac{\delta^2}{1 - q'}",
            "the recursion with $c = 0$; $|q'| < 1$",
            ("floor-fedavg", "floor-raflora"),
        ),
        Theorem(
            "Moments.heterogeneity_slows",
            r"q'(\nu) = q'(0) + \nu^2 Q",
            "the recursion",
            ("heterogeneity-slows",),
        ),
        Theorem(
            "Moments.heterogeneity_critical",
            r"\nu^2 = \frac{1 - g^2 S_2}{Q} \implies q' = 1",
            "$Q > 0$; $g^2 S_2 \\le 1$",
            ("heterogeneity-critical",),
        ),
        Theorem(
            "Moments.mean_floor_reached",
            r"\lim_{t \to \infty} E[x_t] = \frac{S_1 c}{1 - g S_1}",
            "the recursion of the mean; $|g S_1| < 1$; $S_1 = E[W]$, or $E[W^2]$ for zero padding",
            ("drift-floor-fedavg", "drift-floor-zero-pad"),
        ),
        Theorem(
            "Moments.moments_after",
            r"E[x_t],\ E[x_t^2]\ \mathrm{equal\ the\ definitions\ of\ Derived.v,\ for\ every\ } t",
            "both recursions; $q'$, $\\alpha$ and 1 all different",
        ),
        Theorem(
            "Moments.floor_with_drift_reached",
            r"\lim_{t \to \infty} E[x_t^2] = "
            r"\frac{(1 - g S_1) \tau^2 Q + (1 + g S_1) c^2 S_2}{(1 - g S_1)(1 - q')}",
            "both recursions; $|g S_1| < 1$, $|q'| < 1$, $g S_1 \\ne q'$",
            ("floor-drift-mean",),
        ),
        Theorem(
            "Moments.equal_signal_to_noise",
            r"\mathrm{SNR}_{\mathrm{FedAvg}} = \mathrm{SNR}_{\mathrm{raFLoRA}}",
            "given the number $H$ of contributors; noise that is not 0",
            ("equal-signal-to-noise",),
        ),
    ),
    "Sampled cohorts without replacement": (
        Theorem("Cohorts.cohorts_count", r"|\{S\}| = \binom{K}{m}", "none"),
        Theorem(
            "Cohorts.sum_of_sums",
            r"\sum_S \sum_{k \in S} v_k = \binom{K - 1}{m - 1} \sum_k v_k",
            "none",
        ),
        Theorem(
            "Cohorts.sum_of_squares",
            r"\sum_S \left(\sum_{k \in S} v_k\right)^2 = \binom{K - 1}{m - 1} \sum_k v_k^2 + "
            r"\binom{K - 2}{m - 2} \left(\left(\sum_k v_k\right)^2 - \sum_k v_k^2\right)",
            "none",
        ),
        Theorem("Cohorts.mean_share", r"E[W] = \pi", _COHORT),
        Theorem(
            "Cohorts.mean_square_share",
            r"E[W^2] = \pi^2 + \pi (1 - \pi) \frac{K - m}{m (K - 1)}",
            f"{_COHORT}; $K > 1$, $0 < m \\le K$",
            ("cohort-rate",),
        ),
        Theorem(
            "Cohorts.mean_sum_of_squares", r"E[\textstyle\sum_k w_k^2] = \frac{\pi}{m}", _COHORT
        ),
        Theorem(
            "Cohorts.empty_count",
            r"|\{S: \mathrm{no\ contributor}\}| = \binom{K - n}{m}",
            f"{_COHORT}; $n$ contributors",
        ),
        Theorem(
            "Cohorts.sequences_count",
            r"|\{(S_1, \ldots, S_t): S_i \in A\}| = |A|^t",
            "none",
        ),
        Theorem(
            "Cohorts.survival",
            r"P(\mathrm{a\ contributor\ in\ each\ of\ } t \mathrm{\ rounds}) = (1 - P_0)^t",
            f"{_COHORT}; independent rounds",
            ("extinction-law",),
        ),
    ),
    "FLoRA, FedEx, the increment form and constant drift": (
        Theorem("Rules.increment_multiplier", r"x' = x + W (g x + c - x)", _COMMON),
        Theorem(
            "Rules.increment_keeps",
            r"x_t = x_0",
            f"{_COMMON}; $g = 1$, $c = 0$",
            ("flora-no-compounding",),
        ),
        Theorem(
            "Rules.increment_growth",
            r"x_t = x_0 + t\, W c",
            f"{_COMMON}; $g = 1$",
            ("flora-linear-growth",),
        ),
        Theorem(
            "Rules.increment_loss",
            r"x_t = (1 - W (1 - g))^t x_0",
            f"{_COMMON}; $c = 0$",
            ("flora-dilutes-loss",),
        ),
        Theorem(
            "Rules.increment_never_collapses",
            r"x_t \ge x_0",
            f"{_COMMON}; $g \\ge 1$, $c \\ge 0$, $x_0 \\ge 0$",
        ),
        Theorem(
            "Rules.fedex_total",
            r"x_t + z_t = \frac{W + W^{2 t}}{1 + W} x_0",
            "perfect gains; full participation; an empty base at the start",
        ),
        Theorem(
            "Rules.fedex_settles",
            r"\lim_{t \to \infty} x_t + z_t = \frac{W}{1 + W} x_0",
            "perfect gains; full participation; an empty base at the start; $0 \\le W < 1$",
            ("fedex-settles",),
        ),
        Theorem(
            "Rules.fedex_approach",
            r"d_{t + 1} = W^2 d_t, \quad d_t = x_t + z_t - \frac{W}{1 + W} x_0",
            "perfect gains; full participation; an empty base at the start",
            ("fedex-approach",),
        ),
        Theorem(
            "Rules.fedex_rest",
            r"(x, z) = \left(0, \frac{b}{1 - a}\right) \mathrm{\ is\ a\ fixed\ point}",
            "a common gain $a \\ne 1$ and drift $b$",
        ),
        Theorem(
            "Rules.drift_floor_fedavg",
            r"\lim_{t \to \infty} x_t = \frac{W c}{1 - g W}",
            "the recursion $x_{t + 1} = W (g x_t + c)$ of full participation; $|g W| < 1$",
        ),
        Theorem(
            "Rules.drift_floor_zero_pad",
            r"\lim_{t \to \infty} x_t = \frac{W^2 c}{1 - g W^2}",
            "the recursion $x_{t + 1} = W^2 (g x_t + c)$ of full participation; $|g W^2| < 1$",
        ),
        Theorem(
            "Rules.drift_saturation",
            r"\lim_{t \to \infty} x_t = \frac{c}{1 - g}",
            "the recursion $x_{t + 1} = g x_t + c$: raFLoRA where no partition is ever empty; "
            "$|g| < 1$",
        ),
        Theorem(
            "Rules.drift_linear",
            r"E[x_t] = E[x_0] + t (1 - P_0) c",
            "the recursion $E[x_{t + 1}] = E[x_t] + (1 - P_0) c$ of raFLoRA that carries empty "
            "partitions over; $g = 1$",
            ("drift-raflora-linear",),
        ),
    ),
    "LoRA's own training: the flow": (
        Theorem(
            "Flow.local_map",
            r"\dot x = 2 x (M - x) \implies x(T) = \frac{M G x(0)}{M + x(0) (G - 1)}, "
            r"\quad G = e^{2 M T}",
            "$M > 0$, $T > 0$; a positive solution of the flow",
        ),
        Theorem("Flow.local_gain", r"f'(0) = G", "$M > 0$"),
        Theorem(
            "Flow.inverse_round",
            r"y' = \frac{y}{\omega G} + \frac{G - 1}{\omega G M}, \quad y = \frac{1}{x}",
            _FLOW,
        ),
        Theorem(
            "Flow.floor_rests",
            r"x^* = \frac{M (\omega G - 1)}{G - 1} \mathrm{\ is\ a\ fixed\ point}",
            f"{_FLOW}; $\\omega G \\ne 1$",
        ),
        Theorem(
            "Flow.collapse_below",
            r"\omega G < 1 \implies \lim_{t \to \infty} x_t = 0",
            _FLOW,
            ("flow-threshold-fedavg", "flow-threshold-zero-pad"),
        ),
        Theorem(
            "Flow.floor_above",
            r"\omega G > 1 \implies \lim_{t \to \infty} x_t = \frac{M (\omega G - 1)}{G - 1}",
            _FLOW,
            (
                *("flow-floor-fedavg", "flow-floor-zero-pad", "flow-floor-raflora"),
                *("flow-threshold-fedavg", "flow-threshold-zero-pad", "flow-raflora-no-threshold"),
            ),
        ),
        Theorem(
            "Flow.rate_above",
            r"\frac{1}{x_{t + 1}} - \frac{1}{x^*} = \frac{1}{\omega G} "
            r"\left(\frac{1}{x_t} - \frac{1}{x^*}\right)",
            f"{_FLOW}; $\\omega G \\ne 1$",
            ("flow-rate-above-fedavg", "flow-rate-above-zero-pad", "flow-rate-above-raflora"),
        ),
        Theorem(
            "Flow.rate_below",
            r"\left.\frac{d x'}{d x}\right|_{x = 0} = \omega G",
            "$M > 0$",
            ("flow-rate-below-fedavg", "flow-rate-below-zero-pad"),
        ),
        Theorem(
            "Flow.critical",
            r"\omega G = 1 \implies x_t = \frac{M x_0}{M + t (G - 1) x_0}",
            _FLOW,
            ("flow-critical-fedavg", "flow-critical-zero-pad"),
        ),
        Theorem(
            "Flow.critical_growth",
            r"\omega G = 1 \implies \frac{1}{x_{t + 1}} - \frac{1}{x_t} = \frac{G - 1}{M}",
            _FLOW,
            ("flow-critical-fedavg", "flow-critical-zero-pad"),
        ),
        Theorem(
            "Flow.critical_time",
            r"\omega e^{2 M T} = 1 \iff T = \frac{\ln(1 / \omega)}{2 M}",
            "$\\omega > 0$, $M > 0$",
            ("flow-threshold-fedavg", "flow-threshold-zero-pad"),
        ),
    ),
    "Matrix identities": (
        Theorem(
            "Matrices.gauge_invariance",
            r"(B G)(G^{-1} A) = B A",
            f"{_FIELD}; $G$ invertible",
        ),
        Theorem("Matrices.scaling_either", r"(s B) A = s (B A) = B (s A)", _FIELD),
        Theorem(
            "Matrices.partition_identity",
            r"\Delta_h^{\mathrm{FedAvg}} = W_h\, \Delta_h^{\mathrm{raFLoRA}}",
            f"{_FIELD}; contributors of positive weight; before truncation to the highest rank",
            ("partition-identity",),
        ),
        Theorem(
            "Matrices.equal_ranks",
            r"\Delta^{\mathrm{raFLoRA}} = \Delta^{\mathrm{FedAvg}}",
            f"{_FIELD}; all clients carry the partition",
            ("equal-ranks-identity",),
        ),
        Theorem(
            "Matrices.ffa_is_fedavg",
            r"\left(\sum_k p_k B_k\right) A = \sum_k p_k (B_k A)",
            f"{_FIELD}; a common $A$",
            ("ffa-is-fedavg",),
        ),
        Theorem(
            "Matrices.fedex_exact",
            r"\bar B \bar A + \left(\sum_k p_k B_k A_k - \bar B \bar A\right) = "
            r"\sum_k p_k B_k A_k",
            _FIELD,
        ),
        Theorem(
            "Matrices.flora_stacking",
            r"[B, B'] [A; A'] = B A + B' A'",
            _FIELD,
        ),
        Theorem(
            "Matrices.replication_is_rbla",
            r"\sum_{k \in C} p_k X_k + \sum_{k \notin C} p_k \bar X_C = \bar X_C",
            f"{_FIELD}; $\\sum_k p_k = 1$; owners $C$ of positive weight with mean $\\bar X_C$",
        ),
        Theorem(
            "Matrices.same_update",
            r"(I\, P)(P\, I) = I\, I",
            "$P$ exchanges two columns",
        ),
        Theorem(
            "Matrices.raflora_depends_on_gauge",
            r"\mathrm{raFLoRA}(I P, P I) \ne \mathrm{raFLoRA}(I, I)",
            "two clients of ranks 2 and 1, the second with an update of zero; a field with "
            "$2 \\ne 0$",
        ),
    ),
}
"""Theorems by section of the theory."""

THEOREMS: dict[str, Theorem] = {
    theorem.name: theorem for theorems in SECTIONS.values() for theorem in theorems
}
"""All theorems by name."""


CERTIFICATES = "Certificates"
"""File of the certificates of predicted numbers, which are named by their claims."""


def theorems_of(claim: str) -> tuple[Theorem, ...]:
    """Return the theorems that prove a claim; empty if it is not proved."""
    return tuple(theorem for theorem in THEOREMS.values() if claim in theorem.claims)


def claims_of(name: str) -> tuple[str, ...]:
    """Return the claims of a theorem, or the claim of a certificate, such as `staircase_0`."""
    file, _, short = name.partition(".")
    if file == CERTIFICATES:
        return (short.rpartition("_")[0].replace("_", "-"),)
    return THEOREMS[name].claims if name in THEOREMS else ()
