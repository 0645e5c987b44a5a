import harness.cli  # noqa: F401  # libraries are as quiet as in the command
