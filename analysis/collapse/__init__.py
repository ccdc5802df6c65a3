"""The collapse report: does a rule keep the directions that only high-rank clients carry?"""

from analysis.collapse.measure import Collapse as Collapse
from analysis.collapse.report import CollapseReport as CollapseReport
from analysis.collapse.report import collapse_report as collapse_report
from analysis.collapse.scenarios import SCENARIOS as SCENARIOS
