"""Words of others on a terminal: names and texts out of files must neither steer it nor forge lines of ours."""

import re
from typing import Final

# Control characters (C0, DEL, C1), line and paragraph separators, what turns the writing direction, and surrogates
# that no encoding can print.
UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    r"""Return *text* on one line, with everything that a terminal would obey as a visible escape: ``\x1b``, ``\n``."""
    return UNPRINTABLE.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)
