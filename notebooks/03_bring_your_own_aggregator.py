# %% [markdown]
# # Bring your own aggregator
#
# You have an idea for a better server rule. Here is how to write it in ten lines, find out whether
# it is a correct aggregator at all, mend it, say what it promises, learn whether it collapses, and
# hand it to others.
#
# **Idea.** FedAvg divides a direction by all clients' weight, raFLoRA by the weight of those who
# carry it. The one forgets what few clients know, the other trusts few clients fully. Let us stand
# in between: FedAvg's average, partition by partition divided by $W^\beta$, where $W$ is the share
# of the weight that carries it. $\beta = 0$ is FedAvg and $\beta = 1$ is raFLoRA.

# %%
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from analysis.collapse import collapse_report
from fedlora_sim import LoRAFactors
from fedlora_sim.conformance import check_aggregator
from fedlora_sim.conformance.report import ConformanceReport, failure, summary
from fedlora_sim.rules import Aggregated, AggregationRule, Properties, get_rule
from fedlora_sim.rules.base import data_shares
from paper_figs import theory
from paper_figs.notebook import prepare

prepare()

# %% [markdown]
# ## Ten lines
#
# A rule is anything with a `name`, a `source`, `properties`, and a `step` that takes the round's
# updates and weights and returns the new global adapter. No base class, nothing to register. This
# first version walks over the directions, averages those who carry each, and divides.

# %%
BETA = 0.5


class FirstTry:
    """FedAvg's average, each direction divided by the root of its coverage."""

    name, source, properties = "first_try", "this notebook", Properties()

    def step(self, updates, weights, context, state):
        """One round of one layer."""
        total, whole = sum(weights), 0.0
        for i in range(context.r_max):
            held = [(u, w) for u, w in zip(updates, weights, strict=True) if u.rank > i]
            coverage = sum(w for _, w in held) / total
            for u, w in held:
                share = w / total / coverage**BETA
                whole = whole + share * torch.outer(u.lora_B[:, i], u.lora_A[i])
        return Aggregated(LoRAFactors.from_delta(whole, context.r_max)), state


# %% [markdown]
# ## Is it an aggregator?
#
# `check_aggregator` searches for counterexamples to laws that every sound rule keeps: one client
# alone comes back as it is, the order of the clients does not matter, all weights times ten change
# nothing, and so on. It tries unusual federations (ranks without a client, weights of zero, every
# LoRA scaling), and a counterexample is made as small as it gets.


# %%
def check(rule, examples=3):
    """Hold all laws against a rule; print the count, and give the failures."""
    results = check_aggregator(rule, examples=examples)
    report = ConformanceReport(get_rule(rule), results, seed=0, examples=examples)
    print(summary(report))
    return report.failures


failures = check(FirstTry())
for result in failures:
    print(f"✗ {result.check}: {result.statement}")

# %% [markdown]
# Three laws are broken. Here is the smallest case of the first one, as Python to paste into a
# test: a single client of rank 1 (`LoRAFactors(A, B, scaling)`) that does not come back as it is.

# %%
print(failure(failures[0], get_rule(FirstTry())))

# %% [markdown]
# Look at its scaling: it is 2. A LoRA update is $s\,BA$ with $s = \alpha / r$, and we left out the
# $s$: the classic mistake, which goes unnoticed as long as every client has $\alpha = r$. All three
# failures are that one line.
#
# ## The mended rule, and a shorter way
#
# A rule that is nothing but a weight for every client and direction need not walk over anything.
# It says the weights, and the package does the rest: scalings, cutting, batches of layers, GPUs,
# the fast engine. `weights` are the clients' and `members` says who carries what.


# %%
@dataclass(frozen=True)
class Softened(AggregationRule):
    """FedAvg's average, each partition divided by a power of its coverage.

    Args:
        beta: 0 is FedAvg, 1 is raFLoRA.
    """

    beta: float = 0.5

    name: ClassVar[str] = "softened"
    source: ClassVar[str] = "this notebook"

    def direction_weights(self, weights, members, norms=None):
        """Return the share of each client in each direction, zero where it is not carried."""
        shares = data_shares(weights, members)
        coverage = shares.sum(-2, keepdim=True)
        return shares / torch.where(coverage > 0, coverage, 1.0) ** self.beta

    def multiplier(self, coverage):
        """What a round makes of a direction that all who carry it return alike."""
        return coverage ** (1 - self.beta)


assert not check(Softened())

# %% [markdown]
# Many laws were skipped: those that some good rules keep and others do not. What a rule *promises*
# it says in its properties, and then it is held to it. A law declared `True` may have no
# counterexample, and to one declared `False` a counterexample must be *found*.
#
# We believe that ours is linear, that it does not depend on how the factors of a partition are
# mixed, that it is FedAvg where all ranks are equal, and, since it divides by the coverage, that
# one more low-rank client does not disturb the directions above it.


# %%
class Promising(Softened):
    """The same rule, with what we believe of it."""

    @property
    def properties(self):
        """What we believe."""
        return replace(
            super().properties,
            linear=True,
            exact=False,
            transpose=True,
            gauge="partition",
            equal_ranks_fedavg=True,
            low_rank_client="keeps",
        )


failures = check(Promising())
for result in failures:
    print(f"✗ {result.check}: {result.statement}\n  {result.reason}")

# %% [markdown]
# The last belief was wrong. A root of the coverage still falls when a low-rank client joins, so our
# rule *dilutes*, only less than FedAvg. (The second failure is the other side of the same coin: who
# declares `keeps` says that it never dilutes, and it always does.) We say what is true.


# %%
class Honest(Softened):
    """The same rule, with what is true of it."""

    @property
    def properties(self):
        """What is true."""
        return replace(Promising().properties, low_rank_client="dilutes")


assert not check(Honest())

# %% [markdown]
# ## Does it collapse?
#
# A correct aggregator may still lose its rank. Ours multiplies a direction by $\pi^{1-\beta}$ a
# round, which is less than one: the prediction is that it collapses, at the square root of FedAvg's
# rate. The report predicts by the multiplier that we declared, runs it with FedAvg and raFLoRA,
# and decides. Our partitions go from dark to light, predictions are dashed.

# %%
report = collapse_report(Honest(), seeds=400, scenarios=("full", "cohorts", "flow_above"))
print(report.sentence)
figure = theory.draw_collapse(report)

# %% [markdown]
# So the compromise buys time: the rate is $\pi$ instead of $\pi^2$. It does not buy the rank. Any
# $\beta < 1$ collapses; only how fast is ours to choose.
#
# ## A rule with a memory
#
# Some servers keep something from round to round. What `step` returns with the result is passed
# to it in the next round. Here is server momentum: a velocity that the global update moves on with.
# A rule whose earlier rounds matter declares `stateless=False`.


# %%
class Momentum:
    """FedAvg with server momentum."""

    name, source = "momentum_lesson", "FedAvgM, arXiv 1909.06335, Sec. 4.3"
    properties = Properties(
        stateless=False, linear=True, transpose=True, gauge="full", low_rank_client="dilutes"
    )

    def step(self, updates, weights, context, state):
        """One round: the velocity gains the step that FedAvg would make."""
        pairs = zip(updates, weights, strict=True)
        mean = sum(w / sum(weights) * u.delta().double() for u, w in pairs)
        last = 0 * mean if context.previous is None else context.previous.delta().double()
        velocity = mean - last + 0.5 * state.get("velocity", 0 * mean)
        adapter = LoRAFactors.from_delta(last + velocity, context.r_max)
        return Aggregated(adapter.to(updates[0].dtype)), {"velocity": velocity}


assert not check(Momentum())
print(collapse_report(Momentum(), seeds=8, scenarios=("full",)).sentence)

# %% [markdown]
# ## Hand it to others
#
# Put the rule into a module, and a test next to it. `parametrize_with_checks` makes one pytest case
# of every law, for every rule and setting of its options that you list.

# %%
MODULE = '''
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fedlora_sim.rules import AggregationRule
from fedlora_sim.rules.base import data_shares


@dataclass(frozen=True)
class Softened(AggregationRule):
    """FedAvg's average, each partition divided by a power of its coverage."""

    beta: float = 0.5
    name: ClassVar[str] = "softened"
    source: ClassVar[str] = "a notebook"

    @property
    def properties(self):
        return replace(super().properties, linear=True, low_rank_client="dilutes")

    def direction_weights(self, weights, members, norms=None):
        shares = data_shares(weights, members)
        coverage = shares.sum(-2, keepdim=True)
        return shares / torch.where(coverage > 0, coverage, 1.0) ** self.beta

    def multiplier(self, coverage):
        return coverage ** (1 - self.beta)
'''
TEST = """
from softened import Softened

from fedlora_sim.conformance import parametrize_with_checks


@parametrize_with_checks([Softened()], examples=3)
def test_laws(rule, check):
    check(rule)
"""

# %% [markdown]
# Other people can run it (here in a separate folder). `s`: the rule makes no claim about this law.

# %%
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "softened.py").write_text(MODULE, encoding="utf-8")
    Path(folder, "test_softened.py").write_text(TEST, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider"]
    outcome = subprocess.run([*command, folder], capture_output=True, text=True, check=True)
    print(outcome.stdout)

# %% [markdown]
# One entry in the package's `pyproject.toml`, and after `pip install` the rule goes by its name,
# with options, in `get_rule("softened:beta=0.25")`, in `simulate`, and on the command line:
#
# ```toml
# [project.entry-points."fedlora_sim.rules"]
# softened = "softened:Softened"
# ```
#
# ```sh
# fedlora-sim check softened
# fedlora-sim simulate --ranks 4x8,8x6,16x4 --rule softened:beta=0.25 --out run.nc
# ```
#
# ## Change one thing
#
# 1. In `FirstTry` multiply by `u.scaling`. Are all three failures gone?
# 2. Declare `exact=True` in `Promising`. What is the smallest federation in which it is false?
# 3. Set `beta=1.2`, which gives more than raFLoRA does. Which law breaks first, and what does the
#    collapse report say of a rule that *grows* a direction?
# 4. Give `Momentum` a factor of 0.9 in place of 0.5. Does it collapse more slowly, or not at all?
