"""Which file of one bundle is which of another: the same path, or else the only one of the same kind."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from coordatt_deploy.artifact_specs import Artifact

Kind = tuple[str, str, str | None, str | None]


@dataclass(frozen=True, slots=True)
class Counterparts:
    """The files of two bundles.

    Attributes:
        pairs: The file in A and that in B.
        lost: Files of A without a counterpart.
        new: Files of B without one.
    """

    pairs: tuple[tuple[Artifact, Artifact], ...]
    lost: tuple[Artifact, ...]
    new: tuple[Artifact, ...]


def counterparts(a: Sequence[Artifact], b: Sequence[Artifact]) -> Counterparts:
    """Pair the files of two bundles, in the order of *a*.

    A path is what an app names, so the same path and format is the same file; where a model was renamed, the only file
    of a format, precision, recipe and CPU is.
    """
    by_path = {(item.path, item.format): item for item in b}
    found = {item.path: by_path[item.path, item.format] for item in a if (item.path, item.format) in by_path}
    taken = {item.path for item in found.values()}
    rest_a = [item for item in a if item.path not in found]
    rest_b = [item for item in b if item.path not in taken]
    counts_a, counts_b = Counter(map(_kind, rest_a)), Counter(map(_kind, rest_b))
    for item in rest_a:
        kind = _kind(item)
        if counts_a[kind] == counts_b[kind] == 1:
            found[item.path] = next(other for other in rest_b if _kind(other) == kind)
    taken = {item.path for item in found.values()}
    return Counterparts(
        tuple((item, found[item.path]) for item in a if item.path in found),
        tuple(item for item in a if item.path not in found),
        tuple(item for item in b if item.path not in taken),
    )


def _kind(artifact: Artifact) -> Kind:
    return artifact.format, artifact.precision, artifact.recipe, artifact.target_cpu
