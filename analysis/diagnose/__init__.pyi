from .diagnosis import diagnose as diagnose
from .monitor import CollapseWarning as CollapseWarning
from .monitor import Monitor as Monitor
from .report import Diagnosis as Diagnosis
