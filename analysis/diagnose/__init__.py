"""Diagnose a federated run from what it leaves behind, or monitor one while it trains."""

from __future__ import annotations

from analysis.diagnose.diagnosis import diagnose as diagnose
from analysis.diagnose.monitor import CollapseWarning as CollapseWarning
from analysis.diagnose.monitor import Monitor as Monitor
from analysis.diagnose.report import Diagnosis as Diagnosis
