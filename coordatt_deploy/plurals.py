"""Counts in words: ``1 file``, ``2 files``, ``3 of 7 files do``. Every text that counts takes them from here."""

from typing import Final

IRREGULAR: Final = {
    "is": "are", "was": "were", "does": "do", "has": "have", "it": "they", "its": "their", "this": "these",
    "index": "indices", "axis": "axes", "child": "children",
}  # fmt: skip
HISSING: Final = ("s", "x", "z", "ch", "sh")


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return a noun in the form that fits a count; *many* where neither a rule nor ``IRREGULAR`` gives its plural.

    Of several words the last one is the noun: ``golden input`` becomes ``golden inputs``.
    """
    if count == 1:
        return one
    if many is not None:
        return many
    before, _, last = one.rpartition(" ")
    return f"{before} {_many(last)}".lstrip()


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return ``1 file``, ``2 files``, ``1,024 images``."""
    return f"{count:,} {plural(count, one, many)}"


def of_total(count: int, total: int, one: str, many: str | None = None) -> str:
    """Return ``1 of 7 files``; the noun follows the total, the verb behind it the count."""
    return f"{count:,} of {counted(total, one, many)}"


def verb(count: int, one: str) -> str:
    """Return a verb in the form that fits a count: ``computes`` or ``compute``, ``is`` or ``are``."""
    if count == 1:
        return one
    if one in IRREGULAR:
        return IRREGULAR[one]
    return one.removesuffix("es") if one.endswith(tuple(f"{end}es" for end in HISSING)) else one.removesuffix("s")


def _many(one: str) -> str:
    if one in IRREGULAR:
        return IRREGULAR[one]
    if one.endswith("y") and one[-2:-1] not in "aeiou":
        return f"{one[:-1]}ies"
    return f"{one}es" if one.endswith(HISSING) else f"{one}s"
