"""Sweeps: Optuna searches over any keys of a run's configuration; a trial is the mean over paired seeds."""

STORAGE_VARIABLE = "ADAGRPO_STORAGE"
"""Environment variable with the URL of the studies' database."""
