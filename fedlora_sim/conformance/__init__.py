"""Is a rule a correct aggregator? Laws, searched for counterexamples on cohorts of all kinds."""

from fedlora_sim.conformance.case import Case as Case
from fedlora_sim.conformance.catalogue import CHECKS as CHECKS
from fedlora_sim.conformance.result import CheckResult as CheckResult
from fedlora_sim.conformance.suite import check_aggregator as check_aggregator
