"""One light module for each command: its options, and a function that hands them to the harness."""
