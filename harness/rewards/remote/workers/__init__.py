"""Processes that score with a published package in an environment of its own.

They run under that environment's Python, beside old versions of everything: their modules import the standard library,
torch, numpy and PIL, the package they serve, and of this project what ``harness.rewards.remote.server`` needs.
"""
