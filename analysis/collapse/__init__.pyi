from .measure import Collapse as Collapse
from .report import CollapseReport as CollapseReport
from .report import collapse_report as collapse_report
from .scenarios import SCENARIOS as SCENARIOS
