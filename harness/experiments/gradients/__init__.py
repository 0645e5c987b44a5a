"""Gradients of prompts and advantages at fixed checkpoints, without training, as measured by oracle and probe."""
