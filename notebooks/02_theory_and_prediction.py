# %% [markdown]
# # Theory and prediction
#
# A theory should predict a measurement before it is made. In this notebook sympy derives every
# number when you run the cell. The number is stored in a ledger as a prediction, and only then
# measured. The ledger refuses a measurement without a prediction.

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
# Client $k$ has $n_k$ samples and rank $r_k$. The coverage of a rank level $l$ is the weight share
# of the clients of at least that rank. The cell shows the coverage for three clients in symbols,
# and its decrease from one level to the next if client 1 does not reach it.

# %%
equations(rates.coverage, rates.coverage_step)

# %% [markdown]
# ## The multiplier of a round
#
# Let $W$ be the weight share of the clients *of this round* that carry a direction of amplitude
# $x$. A rule averages factors: $\sqrt{x}$ from carriers and $0$ from all others. The average
# divided by $x$ is the multiplier, the factor of a round on an amplitude. The rules differ in this
# factor alone.

# %%
equations(multipliers.fedavg, multipliers.zero_pad, multipliers.raflora)

# %% [markdown]
# ## Full participation: the staircase
#
# With full participation $W = \pi$ in every round. Solve the recurrence $x(t+1) = \pi\, x(t)$ and
# square the solution:

# %%
equations(rates.staircase_energy, rates.staircase_rate, rates.collapse_bound)

# %% [markdown]
# ## Sampled cohorts: $E[W^2]$
# Draw $m$ of $K$ clients, of which $n$ carry the direction. The cohort has $H$ carriers, and $W =
# H/m$. To find $E[W^2]$, count pairs: a given carrier is drawn with probability $m/K$, and a given
# *pair* of carriers with probability $m(m-1)/K(K-1)$. So
#
# $$ E[H] = n \frac{m}{K}, \qquad E[H(H-1)] = n(n-1)\frac{m(m-1)}{K(K-1)}, \qquad
#    E[H^2] = E[H(H-1)] + E[H]. $$
#
# The cell computes this by hand and compares it with the derivation in the package.

# %%
mean = n * m / K
pairs = n * (n - 1) * m * (m - 1) / (K * (K - 1))
by_hand = sp.factor(((pairs + mean) / m**2).subs(n, pi * K))
derived = cohorts.without_replacement().second
print("the same:", sp.simplify(by_hand - derived) == 0)
notebook.Equations([("E[W^2]", sp.latex(by_hand))])

# %% [markdown]
# The result: $E[W^2] > \pi^2$, and the difference grows as the cohort shrinks. Random cohorts raise
# the *mean* energy. For 6 of 18 clients the values are exact fractions. They are the predictions.

# %%
K_, m_ = 18, 6
exact = [derived.subs({K: K_, m: m_, pi: sp.Rational(carry, K_)}) for carry in (10, 4)]
print("E[W^2] =", *exact)
ledger.predict("energy rate, 6 of 18 clients", [float(x) for x in exact], within=0.05)

# %% [markdown]
# Now measure: 8,000 federations, three rounds, simultaneous 95% intervals. Bars are measured, marks
# are predicted.

# %%
sampled = scenario.replace(cohort_size=m_, rounds=3)
rate = notebook.mean_rate(simulate(sampled, rule="fedavg", seed=range(8000)))
ledger.measure("energy rate, 6 of 18 clients", rate)
names = ["directions 5–8", "directions 9–16"]
figure = estimates(names, [float(x) for x in exact], rate, "factor of the mean energy per round")

# %% [markdown]
# ## Extinction
#
# Small cohorts can also lose a direction at once. If *no client* of a round carries it, its
# amplitude becomes zero and stays zero. The probability of such a round, for every cohort law:

# %%
equations(contributors.extinction)

# %% [markdown]
# A direction survives $t$ rounds with probability $(1 - P_0)^t$. For directions 9–16, which four
# clients carry, and ten rounds:

# %%
empty = contributors.extinction().without_replacement.subs({K: K_, m: m_, n: 4})
alive = float((1 - empty) ** 10)
print("P0 =", empty, "   alive after ten rounds:", round(alive, 4))
ledger.predict("alive after 10 rounds", alive, within=0.1)

# %% [markdown]
# Count the survivors in 8,000 runs of ten rounds:

# %%
run = simulate(sampled.replace(rounds=10), rule="fedavg", seed=range(8000))
lives = (run.energy.values[:, -1, first[-1:]] > 0).astype(float)
ledger.measure("alive after 10 rounds", proportion_interval(lives, 0.05))

# %% [markdown]
# ## Clients that differ: floors
# Real clients change what they receive. Let client $k$ return $a_k x + b_k$, with gains of mean $g$
# and standard deviation $\nu$, and drifts of mean 0 and standard deviation $\tau$, drawn again in
# every round. Square $x' = \sum_k w_k (a_k x + b_k)$ and take the expectation term by term. The
# result is the rate $q'$ and the floor, the energy at which drifts hold a direction. Here $S_2 =
# E[(\sum w)^2]$ and $Q = E[\sum w^2]$ are sums over the carriers.

# %%
equations(floors.rate, floors.floor)

# %% [markdown]
# For sampled cohorts these sums are known from above, so the floor is a closed form in the coverage
# alone. The prediction for $g = 0.9$, $\nu = 0.1$ and $\tau = 0.05$, for all three partitions:

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
# Simulate 10,000 runs of 60 rounds. The figure shows their mean energies (colors) and the predicted
# trajectories (dashed).

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
# So far the clients did not train on data. Let them follow the gradient flow of $\tfrac12 \lVert BA
# - M \rVert_F^2$ for a time $T$ in each round. A direction then obeys a logistic equation: small
# amplitudes grow by the factor $G = e^{2MT}$. The server multiplies by $\omega$ ($\pi$ under
# FedAvg). Each round combines growth and dilution:

# %%
equations(flow.amplitude_flow, flow.local_map, flow.round_map, flow.threshold)

# %% [markdown]
# If $\omega G < 1$, a direction collapses *although every carrier trains it*. If $\omega G > 1$,
# training holds it at a floor. The transition is at the local time $T^*$:

# %%
equations(flow.critical_time, flow.floor, flow.long_run)

# %% [markdown]
# For directions 9–16, $\pi = 2/9$, and the target is $M = 1$. Choose a local time below the
# threshold and one above it, and predict the amplitude after 60 rounds.

# %%
omega = {flow.omega: sp.Rational(2, 9), flow.M: 1}
critical = float(flow.critical_time().subs(omega))
times = {"below": 0.8 * critical, "above": 1.5 * critical}
held = float(flow.floor().subs(omega).subs(flow.G, sp.exp(2 * times["above"])))
print(f"T* = {critical:.3f}; below it nothing is left, above it {held:.3f}")
ledger.predict("amplitude held by training", held, within=0.001)

# %% [markdown]
# These runs draw nothing at random, so there is no interval. The figure shows the same federation
# below and above the threshold.

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
