"""Can this machine run a profile? Looked at before anything is downloaded, loaded or trained."""

from harness.experiments.doctor.checks import check
from harness.experiments.doctor.report import Finding, Report

__all__ = ["Finding", "Report", "check"]
