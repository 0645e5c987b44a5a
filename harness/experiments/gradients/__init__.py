"""Gradients of prompts and advantages at fixed checkpoints, without training: docs/mechanism.md.

What is measured has two parts. A *reference*: the policy gradient of the expected reward over the training list,
without bias, from prompts drawn uniformly. And *units*: for each round of B candidates the gradient of one update on
each prompt that any selection strategy chooses, for every kind of advantage. Both are cut into chunks, which are
computed by as many processes as there are, in any order, and kept on disk, so that a measurement can be killed and
continued. In the end small tables are left, from which ``analysis.gradients`` makes its own.
"""
