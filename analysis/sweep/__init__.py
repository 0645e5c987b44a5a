"""A sweep's tables (study.json, trials.csv, ...) turned into figures, judgements and a page; nothing is trained."""

from analysis.sweep.page import write_sweep_report

__all__ = ["write_sweep_report"]
