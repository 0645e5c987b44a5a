"""``python -m analysis.mechanism FOLDER``."""

from analysis.mechanism.report import main

raise SystemExit(main())
