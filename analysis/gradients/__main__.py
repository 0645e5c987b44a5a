"""``python -m analysis.gradients FOLDER``."""

from analysis.gradients.report import main

raise SystemExit(main())
