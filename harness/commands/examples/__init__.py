"""What ``adagrpo new`` writes: a plug-in of each kind, and its test; docs/extend.md shows them."""
