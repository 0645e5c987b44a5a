"""What gradients at fixed checkpoints say of prompts and advantages, from the tables of ``adagrpo mechanism``."""

from analysis.mechanism.report import MechanismPart, read_mechanism_report, write_mechanism_report
from analysis.mechanism.tables import MechanismTableError

__all__ = ["MechanismPart", "MechanismTableError", "read_mechanism_report", "write_mechanism_report"]
