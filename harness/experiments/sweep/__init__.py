"""Sweeps: Optuna searches over any keys of a run's configuration; a trial's value is the mean over paired seeds."""

STORAGE_VARIABLE = "ADAGRPO_STORAGE"
"""Environment variable with the URL of the studies' database."""
