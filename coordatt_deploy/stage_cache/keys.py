"""What a stage's result follows from, as hashes: two runs with the same key would make the same.

Source files of the user's have no part in it. Their code is run and captured in every build, and the captured graph
has: so a changed constant is another key, and a changed comment is none. This package's own source has, so that whoever
changes an exporter never meets a file of the old one.
"""

import functools
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from packaging.requirements import InvalidRequirement, Requirement

import coordatt_deploy
from coordatt_deploy import __version__
from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.documents import to_json
from coordatt_deploy.files import sha256
from coordatt_deploy.host import TOOLS, Host, describe
from coordatt_deploy.logs import ENVIRONMENT

SOURCE: Final = frozenset({".py", ".json"})  # what this package is written in, and the tables that it reads
# What torch, the converters and the runtimes read: some choose other kernels, which round otherwise.
VARIABLES: Final = (
    "ATEN_", "DNNL_", "ITEX_", "JAX_", "KMP_", "LITERT_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "ORT_", "TF_",
    "TORCH", "XLA_", "XNN",
)  # fmt: skip

# As the user gave them: libraries add to them as they load, and which are loaded depends on what is reused.
GIVEN: Final = {key: value for key, value in os.environ.items() if key.startswith(VARIABLES) and key not in ENVIRONMENT}


@dataclass(frozen=True, slots=True)
class StageKey:
    """What a result follows from.

    Attributes:
        stage: What is done: ``convert``.
        name: What it makes: ``onnx/net_fp32.onnx``.
        parts: A hash of each thing that has a hand in it, by a word for people: ``weights``.
    """

    stage: str
    name: str
    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """All of it as one sha256."""
        return digest_of([self.stage, self.name, dict(self.parts)])

    def differing(self, other: "StageKey") -> tuple[str, ...]:
        """Return the words of the parts that *other* has otherwise."""
        names = dict.fromkeys([*self.parts, *other.parts])
        return tuple(name for name in names if self.parts.get(name) != other.parts.get(name))


def stage_key(stage: str, name: str, machine: Host | None = None, **parts: str) -> StageKey:
    """Return the key of what *stage* makes of *parts*, with the tools, the machine and its environment.

    Args:
        stage: What is done.
        name: What it makes.
        machine: This one; looked up by default.
        parts: Hashes, by a word each; ``_`` stands for a space.
    """
    own = {name.replace("_", " "): digest for name, digest in parts.items()}
    return StageKey(stage, name, own | surroundings(machine))


def surroundings(machine: Host | None = None) -> dict[str, str]:
    """Return what every stage depends on: this package, the packages that it calls, the machine, the environment."""
    here = machine or describe()
    return {
        "coordatt-deploy": own_source(),
        "packages": digest_of(packages()),
        "machine": digest_of([
            here.cpu, here.architecture, here.features, platform.python_version(), platform.system(),
            platform.libc_ver(),
        ]),
        "environment": digest_of(GIVEN),
    }  # fmt: skip


def digest_of(value: object) -> str:
    """Return the sha256 of a document, or of what one may hold; keys are sorted."""
    text = json.dumps(to_json(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_arrays(arrays: Mapping[str, Sequence[NumberArray]]) -> str:
    """Return the sha256 of arrays with their names, types and shapes, in their order."""
    digest = hashlib.sha256()
    for name, items in arrays.items():
        for array in items:
            digest.update(f"{name!r} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def digest_of_files(root: Path, paths: Sequence[str]) -> str:
    """Return the sha256 of files and folders below *root*, with their names; of what is not there it says so.

    Raises:
        BundleError: One is, or holds, neither a regular file nor a folder.
    """
    return digest_of({path: sha256(root / path) if (root / path).exists() else None for path in sorted(paths)})


@functools.cache
def own_source() -> str:
    """Return the sha256 of this package's version and source, as it is now: of a checkout as of a wheel."""
    found = find_spec("coordatt_deploy.exporters"), find_spec("coordatt_deploy.models")
    subpackages = (spec.submodule_search_locations or () for spec in found if spec is not None)
    roots = [*coordatt_deploy.__path__, *(place for places in subpackages for place in places)]
    return digest_of([__version__, [list(_hashes(Path(root))) for root in roots]])


def _hashes(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(root.rglob("*")):
        if path.suffix in SOURCE and path.is_file():
            yield path.relative_to(root).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def packages() -> Mapping[str, str]:
    """Return the versions of the tools and of everything that they require, as far as it is installed."""
    found: dict[str, str] = {}
    waiting = [*TOOLS, "coordatt-deploy"]
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        waiting += _required(distribution.requires or ())
    return found


def _required(lines: Sequence[str]) -> Iterator[str]:
    """The packages of requirements that hold here without extras."""
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name
