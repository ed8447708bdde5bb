"""The bundle: the folder that every command takes and that travels to a board.

    manifest.json   what is here, with hashes
    reference/      the captured graph and its weights (needs torch to run)
    golden/         inputs, float64 outputs and torch's own rounding on them; images as a user has them
    onnx/ tflite/ coreml/
    reports/        results; not covered by the hashes

``bundle_writing`` changes one inside its folder; whoever opens it meanwhile sees the old or the new one. Opening one
checks schema, paths and hashes.
"""

import enum
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.data.archives import ArchiveError, read_npz
from coordatt_deploy.errors import BundleError
from coordatt_deploy.files import (
    inside,
    make_folder,
    open_regular,
    read_text,
    remove_stale_parts,
    sha256,
    write_whole,
)
from coordatt_deploy.formats import FORMATS, Format
from coordatt_deploy.journal import WAIT_S, bundle_files, is_pending, settled, wait_for_lock
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.locks import holder
from coordatt_deploy.manifest import MANIFEST, Manifest, RefusedFile

REPORTS: Final = "reports"


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle.

    Attributes:
        root: Its folder.
        manifest: What it held when it was opened.
        read_only: Whether *root* is a copy of one that was left half written where this process cannot mend it.
        refused: Of the command that has just written it, the files that it could not write; the manifest has those of
            earlier commands as well.
        written: Likewise, the paths of the artifacts that it wrote; None where no command has just written it.
        reused: Of those, what it did not make anew: the same was made before.
    """

    root: Path
    manifest: Manifest
    read_only: bool = False
    refused: tuple[RefusedFile, ...] = ()
    written: frozenset[str] | None = None
    reused: frozenset[str] = frozenset()

    def path(self, relative: str) -> Path:
        """Return the place of a file of the bundle.

        Raises:
            BundleError: The path leaves the folder.
        """
        return inside(self.root, relative)

    def layers(self, artifact: Artifact) -> LayerMap:
        """Return the artifact's layer map."""
        return LayerMap.load(self.path(artifact.layers))

    def golden(self, file: str) -> dict[str, list[NumberArray]]:
        """Return ``golden/<file>.npz`` as one list per tensor, in the order of the golden cases.

        Raises:
            BundleError: The file is missing or no such archive.
        """
        path = self.path(f"golden/{file}.npz")
        values: dict[str, list[NumberArray]] = {}
        try:
            with open_regular(path) as stream:
                arrays = read_npz(stream)
        except (OSError, ArchiveError) as error:
            raise BundleError(f"golden/{file}.npz cannot be read: {error}") from None
        for key in sorted(arrays):
            values.setdefault(key.partition("/")[2], []).append(arrays[key])
        return values

    def write_report(self, name: str, text: str) -> Path:
        """Write ``reports/<name>`` as a whole or not at all."""
        return write_whole(self.reports() / name, text)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Keep other processes from ``reports/`` while a report is read, added to, and written again.

        Raises:
            BundleError: What was judged is no longer what the bundle holds; or another process does not let go of it.
        """
        folder = self.reports()
        lock = wait_for_lock(folder, WAIT_S)
        if lock is None:
            raise BundleError(f"{folder} is being written by {holder(folder)}; wait for it, or end it")
        with lock:
            self.check_unchanged()
            yield

    def check_unchanged(self) -> None:
        """Refuse to go on where another process has changed files of the bundle since it was opened.

        Raises:
            BundleError: It has; the text names them.
        """
        now = dict(_hashed(open_bundle(self.root, verify=False).manifest))
        changed = [path for path, expected in _hashed(self.manifest) if now.get(path) != expected]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise BundleError(
                f"{self.root} was written by another command meanwhile: {', '.join(changed[:3])}{more} changed;"
                " nothing was reported, run it again"
            )

    def reports(self) -> Path:
        """Return the folder ``reports/``, made where it is not there yet.

        Raises:
            BundleError: A link or a file has its name; or the bundle can be read only.
        """
        if self.read_only:
            raise BundleError(
                f"{self.root.name} was left half written by a command that was ended, and cannot be mended where it can"
                " only be read: no report is kept there; open it once where it can be written"
            )
        folder = make_folder(self.root / REPORTS)
        remove_stale_parts(folder)
        return folder


def save_golden(path: Path, cases: Mapping[str, Sequence[NumberArray]]) -> None:
    """Write one array per case and tensor: ``003/logits``; sizes may differ between cases."""
    arrays = {f"{index:03d}/{name}": value for name, values in cases.items() for index, value in enumerate(values)}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def open_bundle(root: Path, *, verify: bool = True) -> Bundle:
    """Open the bundle at *root*.

    Args:
        root: The folder.
        verify: Check every hash of the manifest.

    Raises:
        BundleError: It is no bundle, of another schema, holds a link or a pipe, or something in it is missing, changed
            or outside the folder.
    """
    deadline = time.monotonic() + WAIT_S
    while True:
        place = settled(root)
        before = _signature(place)
        try:
            bundle = _opened(place, verify=verify)
        except (BundleError, FileNotFoundError):
            if (is_pending(place) or _signature(place) != before) and time.monotonic() < deadline:
                continue  # it was written meanwhile
            raise
        if not is_pending(place) and _signature(place) == before:
            return replace(bundle, read_only=place != root)
        if time.monotonic() > deadline:
            raise BundleError(f"{root} is written again and again by {holder(root)}; open it when that has ended")


def _signature(root: Path) -> tuple[int, int, int] | None:
    """What changes whenever a bundle is written: its manifest is a new file then."""
    try:
        there = (root / MANIFEST).lstat()
    except OSError:
        return None
    return there.st_ino, there.st_mtime_ns, there.st_size


def _opened(root: Path, *, verify: bool) -> Bundle:
    manifest = root / MANIFEST
    if not manifest.exists() and not manifest.is_symlink():
        what = "is not a folder" if root.exists() and not root.is_dir() else (
            "has no manifest.json" if root.exists() else "does not exist")  # fmt: skip
        raise BundleError(f"{root} is no bundle: it {what}; make one with: coordatt-deploy build")
    try:
        text = read_text(manifest)
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"manifest.json cannot be read: {error}") from None
    bundle = Bundle(root, Manifest.parse(text))
    bundle_files(root)  # or it is refused
    for relative, _ in _hashed(bundle.manifest):
        inside(root, relative)
    if verify:
        check_hashes(bundle)
    return bundle


class FileState(enum.StrEnum):
    """What became of a file since the bundle was written."""

    AS_WRITTEN = "as written"
    CHANGED = "changed"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """One file that the manifest has a hash of."""

    path: str
    state: FileState


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether a bundle is as it was written.

    Attributes:
        bundle: Its folder, or the archive that it is packed in.
        intact: Whether every file is.
        files: All that the manifest has a hash of; reports are not among them. In an archive all files.
    """

    VERSION: ClassVar[int] = 1

    bundle: str
    intact: bool
    files: tuple[VerifiedFile, ...]


def verified(bundle: Bundle) -> Verification:
    """Compare every file with the hash in the manifest."""
    files = tuple(VerifiedFile(path, _state(bundle.path(path), hash_)) for path, hash_ in _hashed(bundle.manifest))
    intact = all(item.state is FileState.AS_WRITTEN for item in files)
    return Verification(str(bundle.root), intact, files)


def _state(path: Path, expected: str) -> FileState:
    if not path.exists():
        return FileState.MISSING
    return FileState.AS_WRITTEN if sha256(path) == expected else FileState.CHANGED


def check_hashes(bundle: Bundle) -> None:
    """Compare every file with the manifest.

    Raises:
        BundleError: A file is missing or changed; all of them are listed.
    """
    said = {FileState.MISSING: "is missing", FileState.CHANGED: "was changed after the bundle was written"}
    problems = [f"{item.path} {said[item.state]}" for item in verified(bundle).files if item.state in said]
    if problems:
        raise BundleError(f"{bundle.root.name} is damaged: {'; '.join(problems)}; build it again")


def _hashed(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield from manifest.files.items()
    for artifact in manifest.artifacts:
        yield artifact.path, artifact.sha256


def artifact_name(model: str, kind: Format, precision: str, target_cpu: str | None) -> str:
    """Return the path of an artifact inside the bundle: ``onnx/mobilenetv2_ca_035_digits_fp32.onnx``."""
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in model)
    cpu = f"_{target_cpu}" if target_cpu else ""
    return f"{kind.value}/{safe}_{precision}{cpu}{FORMATS[kind].suffix}"
