"""The bundle: the folder that every command takes and that travels to a board.

    manifest.json   what is here, with hashes
    reference/      the captured graph and its weights (needs torch to run)
    golden/         inputs, float64 outputs and torch's own rounding on them; images as a user has them
    onnx/ tflite/ coreml/
    reports/        results; not covered by the hashes

A bundle is written into a temporary folder beside its place and renamed when whole, so an interruption leaves none or
the old one. Opening one checks schema, paths and hashes.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, ModelSpec, TensorSpec
from coordatt_deploy.data.archives import ArchiveError, read_npz
from coordatt_deploy.documents import object_of
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.files import files_below, inside, make_folder, open_regular, read_text, sha256, write_whole
from coordatt_deploy.formats import FORMATS, Format
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.manifest import MANIFEST, Manifest

REPORTS: Final = "reports"


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle."""

    root: Path
    manifest: Manifest

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

    def reports(self) -> Path:
        """Return the folder ``reports/``, made where it is not there yet.

        Raises:
            BundleError: A link or a file has its name.
        """
        return make_folder(self.root / REPORTS)


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
    files_below(root)  # or it is refused
    for relative, _ in _hashed(bundle.manifest):
        inside(root, relative)
    if verify:
        check_hashes(bundle)
    return bundle


def check_hashes(bundle: Bundle) -> None:
    """Compare every file with the manifest.

    Raises:
        BundleError: A file is missing or changed; all of them are listed.
    """
    problems = []
    for relative, expected in _hashed(bundle.manifest):
        path = bundle.path(relative)
        if not path.exists():
            problems.append(f"{relative} is missing")
        elif sha256(path) != expected:
            problems.append(f"{relative} was changed after the bundle was written")
    if problems:
        raise BundleError(f"{bundle.root.name} is damaged: {'; '.join(problems)}; build it again")


def _hashed(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield from manifest.files.items()
    for artifact in manifest.artifacts:
        yield artifact.path, artifact.sha256


@contextmanager
def writing(target: Path, source_sha256: str) -> Iterator[Path]:
    """Give a folder to fill; it takes the place of *target* when the block ends well, and vanishes when it does not.

    A bundle of the same weights that stands at *target* is copied in first, so that its other artifacts are kept.

    Raises:
        UsageError: *target* exists and is no bundle, or one of other weights.
        BundleError: It holds a link or a pipe.
    """
    existing = check_target(target, source_sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-"))
    try:
        if existing is not None:
            shutil.copytree(target, staging, dirs_exist_ok=True, symlinks=True)
            files_below(staging)  # or it is refused: what is written next must not go through a link
        staging.chmod(0o755)
        yield staging
        _take_place(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_target(target: Path, source_sha256: str) -> Bundle | None:
    """Return the bundle of the same weights that stands at *target*; None where nothing does.

    Raises:
        UsageError: Something else stands there.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not (target / MANIFEST).is_file():
        raise UsageError(f"{target} exists and is no bundle; name another --output-dir or remove it")
    existing = open_bundle(target, verify=False)
    if existing.manifest.model.source_sha256 != source_sha256:
        raise UsageError(
            f"{target} is a bundle of other weights ({existing.manifest.model.name},"
            f" {existing.manifest.model.source_sha256[:12]}… here {source_sha256[:12]}…); name another --output-dir"
        )
    return existing


def check_same(existing: Bundle | None, model: ModelSpec, inputs: tuple[TensorSpec, ...]) -> None:
    """Refuse to put artifacts beside others that take other inputs or describe them in another way.

    Raises:
        UsageError: Sizes, preprocessing or labels differ; the text says which.
    """
    if existing is None:
        return
    there = existing.manifest.model
    differing = [key for key in ("preprocessing", "labels", "pixels") if getattr(there, key) != getattr(model, key)]
    if "preprocessing" in differing:
        old, new = object_of(there.preprocessing), object_of(model.preprocessing)
        differing = [f"{key} {old[key]} there, {new[key]} here" for key in new if old[key] != new[key]]
    if not differing and existing.manifest.inputs != inputs:
        differing = ["the input is dynamic in one and fixed in the other"]
    if differing:
        raise UsageError(
            f"{existing.root} holds artifacts of the same weights that differ in what an app gives them"
            f" ({'; '.join(differing)}); name another --output-dir"
        )


def _take_place(staging: Path, target: Path) -> None:
    aside = None
    if target.exists():
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-"))
        target.replace(aside / "bundle")
    try:
        staging.replace(target)
    except BaseException:
        if aside is not None:
            (aside / "bundle").replace(target)
        raise
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def finish(staging: Path, manifest: Manifest) -> Manifest:
    """Hash everything in *staging*, write its manifest, and return it.

    Raises:
        BundleError: Something in it is neither a regular file nor a folder.
    """
    covered = {artifact.path for artifact in manifest.artifacts}
    files = []
    for file in files_below(staging):
        relative = file.relative_to(staging).as_posix()
        in_artifact = any(relative == path or relative.startswith(f"{path}/") for path in covered)
        if not in_artifact and relative != MANIFEST and not relative.startswith(f"{REPORTS}/"):
            files.append((relative, sha256(file)))
    complete = replace(manifest, files=dict(files))
    (staging / MANIFEST).write_text(complete.dump(), encoding="utf-8")
    return complete


def artifact_name(model: str, kind: Format, precision: str, target_cpu: str | None) -> str:
    """Return the path of an artifact inside the bundle: ``onnx/mobilenetv2_ca_035_digits_fp32.onnx``."""
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in model)
    cpu = f"_{target_cpu}" if target_cpu else ""
    return f"{kind.value}/{safe}_{precision}{cpu}{FORMATS[kind].suffix}"
