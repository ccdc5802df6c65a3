# %% [markdown]
# # Bring your own aggregator
#
# You have an idea for a better server rule. This notebook shows how to write it in ten lines, test
# whether it is a correct aggregator, fix it, declare its properties, find out whether it collapses,
# and share it.
#
# **Idea.** FedAvg averages a direction over all clients, raFLoRA over the clients that carry it.
# FedAvg loses what few clients carry, and raFLoRA relies on few clients. A compromise: divide
# FedAvg's average of each partition by $W^\beta$, where $W$ is the weight share of its carriers.
# $\beta = 0$ is FedAvg and $\beta = 1$ is raFLoRA.

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
# A rule is any object with a `name`, a `source`, `properties`, and a `step` that takes the updates
# and weights of a round and returns the new global adapter. It needs no base class and no
# registration. This first version loops over the directions, averages each over its carriers, and
# divides.

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
# `check_aggregator` searches for counterexamples to laws that every correct rule satisfies: a
# single client is returned unchanged, the order of the clients does not matter, a common factor on
# all weights changes nothing, and so on. It tries unusual federations (ranks without a client, zero
# weights, any LoRA scaling) and shrinks each counterexample.


# %%
def check(rule, examples=3):
    """Test a rule against all laws, print the counts, and return the failures."""
    results = check_aggregator(rule, examples=examples)
    report = ConformanceReport(get_rule(rule), results, seed=0, examples=examples)
    print(summary(report))
    return report.failures


failures = check(FirstTry())
for result in failures:
    print(f"✗ {result.check}: {result.statement}")

# %% [markdown]
# Three laws are violated. This is the smallest counterexample to the first law, as Python code to
# paste into a test: a single client of rank 1 (`LoRAFactors(A, B, scaling)`) that is not returned
# unchanged.

# %%
print(failure(failures[0], get_rule(FirstTry())))

# %% [markdown]
# Its scaling is 2. A LoRA update is $s\,BA$ with $s = \alpha / r$, and the rule ignores $s$. This
# common mistake has no effect as long as every client has $\alpha = r$. It causes all three
# failures.
#
# ## The mended rule, and a shorter way
# A rule that consists of a weight for every client and direction needs no loop. It defines the
# weights, and the package does the rest: scalings, truncation, batches of layers, GPUs, and the
# spectral engine. `weights` are the client weights, and `members` marks the directions that each
# client carries.


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
        """Return the factor of a round on a direction that all its carriers return alike."""
        return coverage ** (1 - self.beta)


assert not check(Softened())

# %% [markdown]
# Many laws were skipped, because some correct rules satisfy them and others do not. A rule declares
# them in its properties, and the declarations are tested. A law declared `True` must have no
# counterexample. For a law declared `False` a counterexample must be *found*.
#
# Suppose we believe that our rule is linear, does not depend on how the factors within a partition
# are mixed, equals FedAvg if all ranks are equal, and, because it divides by a power of the
# coverage, keeps the higher directions when a client of low rank joins.


# %%
class Promising(Softened):
    """The same rule, with the laws that we believe to hold."""

    @property
    def properties(self):
        """Return the laws that we believe to hold."""
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
# The last belief was wrong. The root of the coverage still decreases when a client of low rank
# joins, so the rule *dilutes*, but less than FedAvg. (The second failure has the same cause:
# `keeps` also declares that the rule never dilutes.) The correct declaration:


# %%
class Honest(Softened):
    """The same rule, with the laws that hold."""

    @property
    def properties(self):
        """Return the laws that hold."""
        return replace(Promising().properties, low_rank_client="dilutes")


assert not check(Honest())

# %% [markdown]
# ## Does it collapse?
# A correct aggregator can still collapse. Ours multiplies a direction by $\pi^{1-\beta}$ per round,
# which is less than one. The prediction: it collapses at the square root of FedAvg's rate. The
# report predicts from the declared multiplier, runs the rule with FedAvg and raFLoRA, and decides.
# Partitions go from dark to light, and predictions are dashed.

# %%
report = collapse_report(Honest(), seeds=400, scenarios=("full", "cohorts", "flow_above"))
print(report.sentence)
figure = theory.draw_collapse(report)

# %% [markdown]
# The compromise slows the collapse: the energy rate is $\pi$ instead of $\pi^2$. It does not
# prevent it. Every $\beta < 1$ collapses; $\beta$ sets the rate.
#
# ## A rule with a memory
# Some rules keep a state from round to round. The state that `step` returns is passed to it in the
# next round. The example is server momentum, which keeps a velocity. A rule with a state declares
# `stateless=False`.


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
# Put the rule into a module, with a test next to it. `parametrize_with_checks` creates one pytest
# case per law for each rule in the list.

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
# Run the test (here in a temporary folder). `s` marks laws about which the rule makes no claim.

# %%
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "softened.py").write_text(MODULE, encoding="utf-8")
    Path(folder, "test_softened.py").write_text(TEST, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider"]
    outcome = subprocess.run([*command, folder], capture_output=True, text=True, check=True)
    print(outcome.stdout)

# %% [markdown]
# With one entry in the package's `pyproject.toml`, the installed rule is available by its name and
# options in `get_rule("softened:beta=0.25")`, in `simulate`, and on the command line:
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
