"""The commands of ``adagrpo``, one a module.

Each has ``add_parser(commands)``, which declares it, and a function that executes it and returns the exit code. Only
that function imports what is heavy, so that every ``--help`` is quick.
"""

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
