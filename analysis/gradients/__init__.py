"""What gradients at fixed checkpoints say of prompts and advantages, from the tables of ``adagrpo mechanism``."""

from analysis.gradients.report import MechanismPart, read_mechanism_report, write_mechanism_report
from analysis.gradients.tables import MechanismTableError

__all__ = ["MechanismPart", "MechanismTableError", "read_mechanism_report", "write_mechanism_report"]
