"""Worker processes that score with a published package in a separate environment.

They run under that environment's Python with old versions of packages, so their modules import only the standard
library, torch, numpy and PIL, the package they serve, and those of this project that ``server`` needs.
"""
