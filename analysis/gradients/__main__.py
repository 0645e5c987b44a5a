"""``python -m analysis.gradients FOLDER``: write the report again from a measurement's tables."""

import argparse
from pathlib import Path

from analysis.gradients.report import write_mechanism_report
from harness.foundation.errors import ConfigError

parser = argparse.ArgumentParser(prog="python -m analysis.gradients", description="Write a measurement's report.")
parser.add_argument("folder", type=Path, help="holds about.json, units.parquet and blocks.parquet")
try:
    print(write_mechanism_report(parser.parse_args().folder))
except ConfigError as error:
    parser.exit(2, f"{error}\n")
