from .case import Case as Case
from .case import CheckResult as CheckResult
from .check import CHECKS as CHECKS
from .check import check_aggregator as check_aggregator
from .pytest_support import parametrize_with_checks as parametrize_with_checks
