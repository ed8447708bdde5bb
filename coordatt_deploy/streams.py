"""What is printed where a stream cannot print all of it: a terminal or a pipe that takes ASCII, say."""

import codecs
import sys
from io import TextIOWrapper
from typing import Final

HANDLER: Final = "coordatt_deploy_ascii"
ALIKE: Final = {
    "\u2013": "-", "\u2014": "-", "\u2026": "...", "\u00d7": "x", "\u2192": "->", "\u221e": "inf", "\u00b1": "+-",
    "\u00b0": " deg", "\u2265": ">=", "\u2264": "<=", "\u2713": "ok", "\u2717": "x", "\u201c": '"', "\u201d": '"',
    "\u2018": "'", "\u2019": "'", "\u00b7": "-", "\u2022": "-", "\u00b2": "^2", "\u00a0": " ", "\u00bd": "1/2",
    **{chr(0x2580 + height): str(height) for height in range(1, 9)},  # the bars of a curve
}  # fmt: skip


def readable(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks by what looks alike, or by its escape; see ``codecs.register_error``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(ALIKE.get(letter, letter.encode("unicode_escape").decode("ascii")) for letter in lacking), error.end


codecs.register_error(HANDLER, readable)


def print_anywhere(*streams: object) -> None:
    """Let *streams*, by default stdout and stderr, print any text, whatever their encoding has."""
    for stream in streams or (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not (stream.encoding or "").lower().startswith("utf"):
            stream.reconfigure(errors=HANDLER)
