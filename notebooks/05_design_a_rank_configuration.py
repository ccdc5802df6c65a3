# %% [markdown]
# # Design a rank configuration
#
# Which clients should get which rank, and which rule should average them? All of it can be asked
# of closed forms, which answer in milliseconds. This notebook has knobs: turn one, and the picture
# below follows.

# %%
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from analysis.design import design
from analysis.notebook import explore
from fedlora_sim import Scenario, open_sweep, run_sweep
from paper_figs.notebook import Explorer, prepare
from paper_figs.style import RULE_COLORS

prepare()

# %% [markdown]
# ## The knobs
#
# | knob | what it is |
# |---|---|
# | rule | the server rule |
# | ranks | clients as text: `4x8,8x6,16x4` is rank 4 (8 clients), rank 8 (6), rank 16 (4) |
# | cohort | clients per round, or `all` |
# | gain, mean and std | clients return $a x + b$: mean and deviation of $a$ |
# | drift, std | deviation of $b$ |
# | local time | how long clients train before they send; 0: they do not |
# | if empty | what raFLoRA and RBLA do with a partition that no client of the round carries |
#
# ## How to read the picture
#
# (a) is the mean energy of every direction over rounds, colored by partition; dashed, what a
# typical run has left of its start. (b) is what that leaves of the spectrum. (c) is the same
# federation when clients train for the local time instead, dotted where training holds them. The
# table has a row for every partition, and the verdict stands on top: a partition is *lost* if most
# runs lose it altogether, or if a typical run keeps losing its start.

# %%
Explorer(rule="fedavg", cohort_size=6, gain_mean=0.98, drift_std=0.02, local_time=0.5)

# %% [markdown]
# Without a live kernel the picture above stands still. Things to try, each from the setting above:
#
# 1. Turn the local time up slowly. At which value does the last partition change from *lost* to
#    *kept*, and does it? Then set the cohort to `all` and try again: what was in the way?
# 2. Change the rule to `raflora`, and *if empty* from `carry` to `zero`.
# 3. Turn up the drift. The energy stays, on a floor, and the verdict does not change: none of what
#    is on the floor is left of the start.
# 4. Give all clients the same rank, `8x18`. What is there to collapse?
#
# ## The same in code
#
# What the knobs ask is one function, so that a setting can go into a script. Each row is a
# partition; `typical` is the factor of its energy per round in a typical run.

# %%
scenario = Scenario("4x8,8x6,16x4", cohort_size=6, rounds=30)
found = explore(scenario, "fedavg", local_time=0.5)
print(found.sentence)
pd.DataFrame(found.rows)[
    ["directions", "coverage", "empty", "rate", "typical", "threshold", "held"]
]

# %% [markdown]
# How much does the cohort matter? The same question for four sizes:

# %%
sizes = {m: explore(scenario.replace(cohort_size=m)).rows[-1] for m in (2, 4, 8, 18)}
pd.DataFrame(
    {
        "clients per round": list(sizes),
        "nobody carries 9–16": [row.empty for row in sizes.values()],
        "mean rate": [row.rate for row in sizes.values()],
        "typical rate": [row.typical for row in sizes.values()],
        "alive after 30 rounds": [row.survival for row in sizes.values()],
    }
)

# %% [markdown]
# The smaller the cohort, the *milder* the mean, and the worse the chance to be alive at all: a few
# lucky runs hold up the mean. Designing by the mean alone would be a mistake.
#
# ## Measure it: a sweep
#
# A sweep simulates every combination of a grid, each task in a separate file, so that it may be
# killed, continued and enlarged. (`fedlora-sim sweep grid.toml` does it from the command line,
# on many machines if need be.) Here what is left after 30 rounds of the energy in directions
# 9–16, which four clients carry: points are medians of 60 seeds, bars 95% bootstrap intervals.

# %%
grid = {
    "scenario": {"ranks": "4x8,8x6,16x4", "rounds": 30, "drift_std": 0.02, "seed": {"count": 60}},
    "grid": {
        "rule": ["fedavg", "raflora"],
        "cohort_size": [2, 4, 8, 18],
        "gain_std": [0.0, 0.1, 0.2],
    },
}
with TemporaryDirectory() as folder:
    run_sweep(grid, folder, progress=False)
    energy = open_sweep(folder).energy.sel(direction=slice(9, 16)).sum("direction").load()
left = (energy.isel(round=-1) / energy.isel(round=0)).to_dataframe("energy left").reset_index()
with plt.rc_context({"figure.constrained_layout.use": False}):  # seaborn lays out by itself
    picture = sns.catplot(
        left,
        x="cohort_size",
        y="energy left",
        hue="rule",
        col="gain_std",
        kind="point",
        estimator="median",
        seed=0,
        dodge=0.2,
        linewidth=1,
        markersize=4,
        err_kws={"linewidth": 1},
        palette={rule: RULE_COLORS[rule] for rule in ("fedavg", "raflora")},
        height=2.2,
        aspect=1,
    )
picture.set(yscale="log")
picture.set_axis_labels("clients a round", "energy left, median run")
picture.set_titles("gain, std {col_name}")

# %% [markdown]
# Under FedAvg nothing is left of the start: what is there is the floor on which the drift holds the
# energy, lower the more clients average it away, and the same however much their gains differ.
# Under raFLoRA the start is still there.
#
# ## Let the machine choose
#
# `design` compares all ways to give 18 clients ranks out of a menu within a budget, and scores
# them: signal that is left of the start, less noise, over the energy at the start. Here the best
# configuration of four rules, for a total rank of 160, cohorts of 6, a little drift and 30 rounds.

# %%
RULES = ("fedavg", "ffa", "flora", "raflora")
noisy = scenario.replace(drift_std=0.02)  # its ranks are what is designed
asked = {"total_rank": 160, "min_coverage": 0.2, "top": 1}
best = {rule: design(noisy, [rule], **asked)[0] for rule in RULES}
pd.DataFrame(best.values())[["rule", "ranks", "score", "signal", "noise", "lost", "worst_rate"]]

# %% [markdown]
# A rule that dilutes can do no better than to have nothing to dilute: all ranks equal. Rules that
# do not dilute spend the budget on a few clients of high rank. Here is raFLoRA's proposal in the
# knobs, ready to be changed.

# %%
Explorer(rule="raflora", ranks=best["raflora"].ranks, cohort_size=6, drift_std=0.02, local_time=0.5)

# %% [markdown]
# ## Change one thing
#
# 1. Ask `design` for `communication=` in place of `total_rank=`: numbers sent per round and layer.
# 2. Lower `min_coverage` to 0. Why does the best configuration become risky, and why can the score
#    not see it? (Read the first lines of `analysis/design.py`.)
# 3. With `cohort_size=None` nothing is left to chance. Which rules catch up?
