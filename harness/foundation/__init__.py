"""What everything else stands on: errors, files, words and names, a run's record. Nothing heavy is imported."""
