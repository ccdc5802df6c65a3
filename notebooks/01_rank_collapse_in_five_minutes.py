# %% [markdown]
# # Rank collapse in five minutes
#
# Clients of a federation fine-tune one model together. Each trains a LoRA adapter, an update
# $\Delta W_k = B_k A_k$ of some rank $r_k$: a strong client affords a high rank, a weak one a low
# rank. The server averages the updates and sends back to every client as many directions of the
# average as it can hold. Then the next round begins.
#
# That sounds harmless. This notebook shows that it is not: under plain averaging everything that
# only the strong clients carry is gone after a few rounds. You will see it happen, see that it was
# predictable to the last digit, and see a rule under which it does not happen.

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
# Suppose that all clients agree, and every one sends back exactly what it got. A client that does
# not carry a direction has nothing to send there, which counts as zero. So the average of direction
# $i$ is
#
# $$ x_i' = \sum_{k \text{ carries } i} p_k\, x_i \;+ \sum_{k \text{ does not}} p_k \cdot 0
#    \;=\; \pi_i\, x_i , $$
#
# and a round multiplies its energy $x_i^2$ by $\pi_i^2$. No client made a mistake or disagreed,
# and yet directions 9–16 lose 95% of their energy, in *every round*.
#
# **raFLoRA** divides by the weight of those who carry the direction instead of all clients'. Then
# $x_i' = x_i$.
#
# Before anything runs, we write down what both rules will do to all 16 directions.

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
#
# Now the real thing: factors $A_k$ and $B_k$, averaged, cut by a singular value decomposition, sent
# back, three runs with different bases. In the picture time runs to the right and directions
# downwards, colors are measured energies. The dashed white lines are *not* fitted: they stand
# where the cell above said that the energy would fall below $10^{-2}$, $10^{-4}$ and $10^{-6}$.

# %%
runs = {rule: simulate(scenario, rule=rule, seed=range(3)) for rule in RULES}
data = notebook.side_by_side(runs, predicted)
figure, axes = spectra.draw_spectrum(data)

# %% [markdown]
# Under FedAvg there is a **staircase**: the lower the coverage, the faster a partition drains. In
# the end the global update has no more rank than the weakest client. That is **rank collapse**.
#
# ## One number for it
#
# $\rho_4$ is the share of the energy that lies in the four shared directions; at $\rho_4 = 1$
# nothing else is left. The theory bounds what is missing from it: $1 - \rho_4(t) \le C \gamma^t$,
# with $\gamma$ the squared coverage of the second level. Lines are predictions, markers are
# measured, dots are the bound.

# %%
bound = closed_form.collapse_bound(scenario)
figure, axes = spectra.draw_energy_ratio(notebook.above_shared(data, bound))

# %% [markdown]
# ## When clients are sampled
#
# Usually only some clients take part in a round. With 6 of 18, who carries direction 9 changes from
# round to round: sometimes three clients of six, sometimes none at all. A rate is now a mean over
# cohorts, and a measurement of it has an error. So we say what we expect, run two thousand
# federations for three rounds, and give intervals that hold together at 95%.
#
# A rate is easier to feel as a **half-life**: the rounds in which half of the energy is gone.

# %%
sampled = scenario.replace(fidelity="spectral", cohort_size=6, rounds=3)
first = [part.start for part in scenario.federation.partitions[1:]]
expected = closed_form.energy_rate(sampled, "fedavg")[first]

rate = notebook.mean_rate(simulate(sampled, rule="fedavg", seed=range(2000)))

# %% [markdown]
# The picture shows half-lives in rounds: blue dots and bars are measured, red marks were predicted.

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
# Does a rule collapse? `collapse_report` runs it in six standard scenarios (full participation,
# small cohorts, clients that differ, drift, and local training that is too short or long enough),
# with FedAvg and raFLoRA, and decides by intervals. First in one sentence, then in pictures: the
# rule's partitions from dark to light, what was predicted dashed.

# %%
report = collapse_report("fedavg", seeds=400)
print(report.sentence)
figure = theory.draw_collapse(report)

# %% [markdown]
# And the rule that divides by the weight of those who carry:

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
