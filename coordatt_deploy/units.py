"""Sizes and times as users write them: ``2 MB``, ``12 ms``, ``10m``, ``0.9 x`` of something. Imports none of ours."""

import re
from typing import Final

BYTES: Final = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
DURATIONS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600}  # in seconds
TIMES: Final = {"us": 1e-3, "ms": 1.0, "s": 1e3}  # in milliseconds

NUMBER: Final = r"(\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"
ABSOLUTE: Final = re.compile(rf"{NUMBER}\s*([A-Za-z%]*)")
RELATIVE: Final = re.compile(rf"{NUMBER}\s*[x×]\s*(\S+)")
FACTOR: Final = re.compile(rf"{NUMBER}\s*[x×]")
