# %% [markdown]
# # Theory and prediction
#
# A theory is worth something if it says beforehand what will be measured. In this notebook every
# number is derived in front of you (sympy solves the equations when you run the cell), written into
# a ledger as a prediction, and only then measured. The ledger refuses a measurement that was not
# predicted.

# %%
import numpy as np
import sympy as sp

from analysis import closed_form, notebook
from analysis.derivations import cohorts, contributors, floors, flow, multipliers, rates
from analysis.derivations.symbols import K, g, m, n, nu, pi, tau
from analysis.notebook import equations
from analysis.stats import Measurement, mean_interval, proportion_interval
from fedlora_sim import Scenario, simulate
from paper_figs.notebook import estimates, paths, prepare

prepare()
ledger = notebook.Ledger()
scenario = Scenario("4x8,8x6,16x4", rounds=20)
partitions = scenario.federation.partitions
first = [part.start for part in partitions]  # of a partition, all directions fare alike

# %% [markdown]
# ## Coverage
#
# Client $k$ has $n_k$ samples and rank $r_k$. The coverage of a rank level $l$ is the weight of the
# clients that reach it. Here it is for three clients in symbols, and what is lost from one level to
# the next when client 1 stops there:

# %%
equations(rates.coverage, rates.coverage_step)

# %% [markdown]
# ## The multiplier of a round
#
# Let $W$ be the share of *this round's* weight that carries a direction of amplitude $x$. A rule
# forms some average of factors $\sqrt{x}$ (from those who carry) and $0$ (from those who do not).
# Writing the averages down and dividing by $x$ gives what a round multiplies an amplitude by. It is
# the whole difference between the rules.

# %%
equations(multipliers.fedavg, multipliers.zero_pad, multipliers.raflora)

# %% [markdown]
# ## Full participation: the staircase
#
# With full participation $W = \pi$ in every round. The recurrence $x(t+1) = \pi\, x(t)$ is solved,
# and squared:

# %%
equations(rates.staircase_energy, rates.staircase_rate, rates.collapse_bound)

# %% [markdown]
# ## Sampled cohorts: $E[W^2]$
#
# Draw $m$ of $K$ clients, $n$ of which carry the direction. $H$ of the drawn ones do, and
# $W = H/m$. What we need is $E[W^2]$, for which we count pairs: a given carrier is drawn with
# probability $m/K$, a given *pair* of carriers with $m(m-1)/K(K-1)$. So
#
# $$ E[H] = n \frac{m}{K}, \qquad E[H(H-1)] = n(n-1)\frac{m(m-1)}{K(K-1)}, \qquad
#    E[H^2] = E[H(H-1)] + E[H]. $$
#
# We do that here by hand, and compare with what the package derives for all four moments.

# %%
mean = n * m / K
pairs = n * (n - 1) * m * (m - 1) / (K * (K - 1))
by_hand = sp.factor(((pairs + mean) / m**2).subs(n, pi * K))
derived = cohorts.without_replacement().second
print("the same:", sp.simplify(by_hand - derived) == 0)
notebook.Equations([("E[W^2]", sp.latex(by_hand))])

# %% [markdown]
# Read it: $E[W^2] > \pi^2$, and the more so the smaller the cohort. Luck lifts the *mean* energy.
# Now with our numbers, 6 of 18 clients. These are exact fractions, and they go into the ledger.

# %%
K_, m_ = 18, 6
exact = [derived.subs({K: K_, m: m_, pi: sp.Rational(carry, K_)}) for carry in (10, 4)]
print("E[W^2] =", *exact)
ledger.predict("energy rate, 6 of 18 clients", [float(x) for x in exact], within=0.05)

# %% [markdown]
# Only now do we run it: 8,000 federations, three rounds, intervals that hold together at 95%. The
# bars are measured, the marks were predicted.

# %%
sampled = scenario.replace(cohort_size=m_, rounds=3)
rate = notebook.mean_rate(simulate(sampled, rule="fedavg", seed=range(8000)))
ledger.measure("energy rate, 6 of 18 clients", rate)
names = ["directions 5–8", "directions 9–16"]
figure = estimates(names, [float(x) for x in exact], rate, "factor of the mean energy per round")

# %% [markdown]
# ## Extinction
#
# Small cohorts have a second way to lose a direction. When *no client* in the round carries it, its
# amplitude is exactly zero, and zero it stays. The probability of such a round, for every way to
# draw a cohort:

# %%
equations(contributors.extinction)

# %% [markdown]
# A direction lives through $t$ rounds with probability $(1 - P_0)^t$. For directions 9–16, which
# four clients carry, and ten rounds:

# %%
empty = contributors.extinction().without_replacement.subs({K: K_, m: m_, n: 4})
alive = float((1 - empty) ** 10)
print("P0 =", empty, "   alive after ten rounds:", round(alive, 4))
ledger.predict("alive after 10 rounds", alive, within=0.1)

# %% [markdown]
# And now the count, in 8,000 runs of ten rounds:

# %%
run = simulate(sampled.replace(rounds=10), rule="fedavg", seed=range(8000))
lives = (run.energy.values[:, -1, first[-1:]] > 0).astype(float)
ledger.measure("alive after 10 rounds", proportion_interval(lives, 0.05))

# %% [markdown]
# ## Clients that differ: floors
#
# Real clients do not return what they got. Let client $k$ return $a_k x + b_k$, with gains of mean
# $g$ and deviation $\nu$, and drifts of mean 0 and deviation $\tau$, drawn again in every round.
# Squaring $x' = \sum_k w_k (a_k x + b_k)$ and taking the expectation term by term gives the rate
# $q'$ and the energy at which the drifts hold a direction; with $S_2 = E[(\sum w)^2]$ and
# $Q = E[\sum w^2]$, sums over the clients that carry it.

# %%
equations(floors.rate, floors.floor)

# %% [markdown]
# For sampled cohorts the sums are what we derived above, so the floor is a closed form in the
# coverage alone. Predicted for $g = 0.9$, $\nu = 0.1$ and $\tau = 0.05$, for all three partitions:

# %%
cohort = floors.fedavg_cohort_moments()
numbers = {g: 0.9, nu: 0.1, tau: 0.05}
floor = [
    float(floors.floor().subs(cohort).subs({K: K_, m: m_, pi: sp.Rational(carry, K_), **numbers}))
    for carry in (18, 10, 4)
]
print(*[f"{x:.3g}" for x in floor])
ledger.predict("floor of the energy", floor, within=0.1)

# %% [markdown]
# Sixty rounds of 10,000 runs. The picture has their mean energies (colors) and the whole predicted
# course, not its end alone (dashed).

# %%
noise = {"gain_mean": 0.9, "gain_std": 0.1, "drift_std": 0.05}
noisy = scenario.replace(cohort_size=m_, rounds=60, spectrum_decay=1.0, **noise)
run = simulate(noisy, rule="fedavg", seed=range(10_000))
ledger.measure("floor of the energy", mean_interval(run.energy.values[:, -1, first], 0.05))
told = closed_form.energy_trajectory(noisy, "fedavg")
seen = run.energy.mean("seed").values
figure = paths({"FedAvg, 6 of 18": (seen[:, first], told[:, first])}, partitions, "mean energy")

# %% [markdown]
# ## Training: a threshold
#
# So far clients did not learn. Let them follow the gradient of
# $\tfrac12 \lVert BA - M \rVert_F^2$ for a time $T$ before they send. One direction obeys a
# logistic equation: small amplitudes grow by the factor $G = e^{2MT}$. The server then multiplies
# by $\omega$ ($\pi$ under FedAvg). Growth against dilution, once a round:

# %%
equations(flow.amplitude_flow, flow.local_map, flow.round_map, flow.threshold)

# %% [markdown]
# If $\omega G < 1$ a direction collapses *although every client trains it*. If $\omega G > 1$
# training holds it at a floor. That is a phase transition, at the local time $T^*$:

# %%
equations(flow.critical_time, flow.floor, flow.long_run)

# %% [markdown]
# For directions 9–16, $\pi = 2/9$ and a target $M = 1$. We take a time below the threshold and one
# above it, and say what will be left of the amplitude after 60 rounds.

# %%
omega = {flow.omega: sp.Rational(2, 9), flow.M: 1}
critical = float(flow.critical_time().subs(omega))
times = {"below": 0.8 * critical, "above": 1.5 * critical}
held = float(flow.floor().subs(omega).subs(flow.G, sp.exp(2 * times["above"])))
print(f"T* = {critical:.3f}; below it nothing is left, above it {held:.3f}")
ledger.predict("amplitude held by training", held, within=0.001)

# %% [markdown]
# The runs draw nothing, so there is no interval: they either agree or they do not. In the picture
# the same federation trains a little too little and long enough.

# %%
training = scenario.replace(local_loss="quadratic", rounds=60, spectrum_decay=1.0)
panels = {}
for name, time in times.items():
    trained = training.replace(local_time=time)
    run = simulate(trained, rule="fedavg")
    path = closed_form.flow_trajectory(trained, "fedavg")
    panels[f"$T = {time:.2f}$, {name} $T^*$"] = (
        run.energy.values[0][:, first],
        path[:, first] ** 2,
    )
amplitude = np.sqrt(run.energy.values[0, -1, first[-1:]])
ledger.measure("amplitude held by training", Measurement(amplitude, amplitude, amplitude, 1))
figure = paths(panels, partitions, "energy")

# %% [markdown]
# ## The ledger
#
# `supported`: all intervals lie within the margin that was fixed beforehand.

# %%
ledger

# %% [markdown]
# ## Change one thing
#
# 1. Set `m_ = 3` and run everything again. Which of the predictions move, and in which direction?
# 2. `equations(multipliers.hetlora_weight, multipliers.hetlora_limit)`: why does a rule that weighs
#    by the norm of the update not help a direction that is small already?
# 3. `rates.collapse_bound` has a third line, how tight the bound is in the end. When is it exact?
# 4. Predict something with the wrong formula, $\pi^2$ in place of $E[W^2]$, with the same margin.
#    Does the ledger notice? A check that cannot fail shows nothing.
