"""Gradients of prompts and advantages at fixed checkpoints, without training: what the oracle and the probe measure."""
