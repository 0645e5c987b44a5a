"""Foundation of all other packages: errors, files, names, plug-ins, a run's record. Nothing heavy is imported."""
