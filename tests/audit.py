"""``make audit``: pinned packages against known weaknesses, by pip-audit, and their licences, in THIRD_PARTY.md.

``python -m tests.audit PIP_AUDIT``, the program. It says what could not be looked up: pip-audit calls that no weakness.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from harness.config import ROOT

PAGE = ROOT / "THIRD_PARTY.md"
HEAD = "| licence | packages |\n|---|---|\n"
SHORT = {"Apache Software License": "Apache-2.0", "MIT License": "MIT", "BSD License": "BSD",
         "Python Software Foundation License": "PSF-2.0", "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
         "ISC License (ISCL)": "ISC", "Apache 2.0": "Apache-2.0", "Apache 2.0 License": "Apache-2.0",
         "3-Clause BSD License": "BSD-3-Clause"}  # fmt: skip


def pinned() -> list[str]:
    """Names of the packages in requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [line.partition("==")[0] for line in lines if "==" in line]


def licence(package: str) -> str:
    """As an installed package's metadata has it: an SPDX expression, else classifiers, else the first words."""
    about = importlib.metadata.metadata(package)
    classes = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if c.startswith("License :: ")]
    said = about.get("License-Expression") or "; ".join(classes) or (about.get("License") or "not said").splitlines()[0]
    return "; ".join(dict.fromkeys(SHORT.get(part, part) for part in said.split("; ")))


def write_licences() -> None:
    """Replace the table of the page."""
    found = defaultdict(list)
    for package in pinned():
        found[licence(package)].append(package)
    rows = "".join(f"| {name} | {', '.join(found[name])} |\n" for name in sorted(found))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(re.escape(HEAD) + r"(\|.*\n)*", lambda match: HEAD + rows, text), encoding="utf-8")


def main() -> int:
    """Entry point: 1 if a package has a known weakness."""
    write_licences()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.argv[1], "-r", str(ROOT / "requirements.lock"), "--no-deps", "--disable-pip", "-f", "json"]
        said = subprocess.run([*command, "-o", str(answer)], capture_output=True, text=True, check=False).stderr
        asked = json.loads(answer.read_text(encoding="utf-8"))["dependencies"] if answer.exists() else []
    known = [package for package in asked if "vulns" in package]
    for package in known:
        for weakness in package["vulns"]:
            fixed = ", ".join(weakness["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {weakness['id']}, mended in {fixed}")
    print(f"{len(known)} of {len(pinned())} packages compared with known weaknesses")
    if not known:
        reasons = [package["skip_reason"] for package in asked[:1]] or said.strip().splitlines()[-1:]
        print(f"not audited, since the list of weaknesses cannot be reached: {' '.join(reasons)}")
    return 1 if any(package["vulns"] for package in known) else 0


if __name__ == "__main__":
    sys.exit(main())
