"""Tables, figures, verdicts and a page from a sweep's Optuna study; nothing is trained."""
