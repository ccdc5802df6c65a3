# %% [markdown]
# # Rank collapse in five minutes
#
# The clients of a federation fine-tune one model together. Each client trains a LoRA adapter, an
# update $\Delta W_k = B_k A_k$ of rank $r_k$: high for a strong client, low for a weak one. The
# server averages the updates and sends each client as many directions of the average as its rank
# allows. Then the next round begins.
#
# Under plain averaging, the directions that only the strong clients carry lose their energy within
# a few rounds. This notebook shows this loss, predicts it exactly, and shows a rule that avoids it.

# %%
from analysis import closed_form, notebook, predict
from analysis.collapse import collapse_report
from analysis.stats import Measurement
from fedlora_sim import Scenario, simulate
from paper_figs import spectra, theory
from paper_figs.notebook import carriers, estimates, prepare

prepare()

# %% [markdown]
# ## Who carries what
#
# Our federation has 18 clients: eight of rank 4, six of rank 8, four of rank 16. An update is a sum
# of *directions*, sorted by strength, and a client of rank 8 holds the first 8. So directions 1–4
# are **shared** by all, directions 5–8 are carried by ten clients of 18, and directions 9–16
# by only four. The share of the clients' weight that carries a direction is its **coverage** $\pi$.
#
# The picture has a row for every client and a column for every direction.

# %%
scenario = Scenario("4x8,8x6,16x4", fidelity="matrix", rounds=20, spectrum_decay=0.95)
figure = carriers(scenario.federation)

# %% [markdown]
# ## What an average does to a direction
#
# Suppose that every client returns exactly what it received. A client that does not carry a
# direction returns nothing for it, which counts as zero. The average of direction $i$ is then
#
# $$ x_i' = \sum_{k \text{ carries } i} p_k\, x_i \;+ \sum_{k \text{ does not}} p_k \cdot 0
#    \;=\; \pi_i\, x_i , $$
# and a round multiplies its energy $x_i^2$ by $\pi_i^2$. Although all clients agree, directions
# 9–16 lose 95% of their energy in *every round*.
#
# **raFLoRA** averages each direction over the clients that carry it. Then $x_i' = x_i$.
#
# First, predict the effect of both rules on all 16 directions.

# %%
RULES = ("fedavg", "raflora")
predicted = {rule: predict(scenario, rule).energy.values for rule in RULES}
for direction in (1, 5, 9):
    rates = [
        predicted[rule][1, direction - 1] / predicted[rule][0, direction - 1] for rule in RULES
    ]
    print(f"direction {direction}: energy times {rates[0]:.4f} a round, {rates[1]:.4f} in raFLoRA")

# %% [markdown]
# ## Twenty rounds
# Now simulate real factors $A_k$ and $B_k$: they are averaged, truncated by a singular value
# decomposition and sent back. There are three runs with different bases. The figure shows rounds
# from left to right, directions from top to bottom, and measured energies as colors. The dashed
# white lines are *not* fitted: they mark where the prediction falls below $10^{-2}$, $10^{-4}$ and
# $10^{-6}$.

# %%
runs = {rule: simulate(scenario, rule=rule, seed=range(3)) for rule in RULES}
data = notebook.side_by_side(runs, predicted)
figure, axes = spectra.draw_spectrum(data)

# %% [markdown]
# Under FedAvg the energies form a **staircase**: the lower the coverage, the faster a partition
# loses its energy. In the end the global update has the rank of the weakest client. This is **rank
# collapse**.
#
# ## One number for it
#
# $\rho_4$ is the share of the energy in the four shared directions; at $\rho_4 = 1$ the other
# directions have none. The theory bounds the rest: $1 - \rho_4(t) \le C \gamma^t$, where $\gamma$
# is the squared coverage of the second level. Lines are predictions, markers are measurements, and
# dots are the bound.

# %%
bound = closed_form.collapse_bound(scenario)
figure, axes = spectra.draw_energy_ratio(notebook.above_shared(data, bound))

# %% [markdown]
# ## When clients are sampled
#
# Usually only some clients take part in a round. With a cohort of 6 of 18, the number of clients
# that carry direction 9 varies: it can be three, or zero. The rate is now a mean over cohorts, and
# its measurement has an error. So predict the rate, simulate 2,000 federations for three rounds,
# and compute simultaneous 95% intervals.
#
# A rate is easier to read as a **half-life**, the number of rounds in which half of the energy is
# lost.

# %%
sampled = scenario.replace(fidelity="spectral", cohort_size=6, rounds=3)
first = [part.start for part in scenario.federation.partitions[1:]]
expected = closed_form.energy_rate(sampled, "fedavg")[first]

rate = notebook.mean_rate(simulate(sampled, rule="fedavg", seed=range(2000)))

# %% [markdown]
# The figure shows half-lives in rounds: blue dots and bars are measured, red marks are predicted.

# %%
half_lives = [closed_form.half_life(x) for x in (rate.value, rate.low, rate.high)]
figure = estimates(
    ["directions 5–8", "directions 9–16"],
    closed_form.half_life(expected),
    Measurement(*half_lives, samples=rate.samples),
    "half-life of the mean energy under FedAvg, rounds",
)

# %% [markdown]
# ## A verdict
#
# Does a rule collapse? `collapse_report` runs the rule, FedAvg and raFLoRA in six standard
# scenarios: full participation, small cohorts, clients that differ, drift, and local training below
# and above the threshold. It decides by intervals. The result is a sentence and a figure, with the
# rule's partitions from dark to light and predictions dashed.

# %%
report = collapse_report("fedavg", seeds=400)
print(report.sentence)
figure = theory.draw_collapse(report)

# %% [markdown]
# The same report for raFLoRA:

# %%
print(collapse_report("raflora", seeds=400).sentence)

# %% [markdown]
# ## Change one thing
#
# 1. Give the federation one more client of rank 16: `"4x8,8x6,16x5"`. How much longer does the
#    highest partition live? (Its coverage goes from 4/18 to 5/19. Predict first, then run.)
# 2. Replace `"fedavg"` by `"zero_pad"`, which averages $A$ and $B$ apart. Which power of the
#    coverage do you see in the staircase, and why?
# 3. Set `cohort_size=3`. How often does a round have no carrier of direction 9, and what does
#    that do to `raflora` with `empty_partition="zero"` instead of `"carry"`?
# 4. Make all clients rank 8. What is left of the collapse?
#
# Where the numbers come from is the subject of `02_theory_and_prediction`.
