"""What gradients at fixed checkpoints say of prompts and advantages, from the tables of ``adagrpo mechanism``."""

from analysis.mechanism.report import write_mechanism_report
from analysis.mechanism.tables import MechanismTableError

__all__ = ["MechanismTableError", "write_mechanism_report"]
