"""The table of operators' own modules: benchmarks/ lies in the repository and is not installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.operator_rows import ROWS, network
from benchmarks.operator_table import DOZEN, Job, measure, page, traits

__all__ = ["DOZEN", "ROWS", "Job", "measure", "network", "page", "traits"]
