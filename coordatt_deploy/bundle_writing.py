"""Write a bundle: all of it or nothing, one process at a time, the old one there until the new one is.

How files are put in their place is in ``journal``.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from coordatt_deploy.artifact_specs import ModelSpec, TensorSpec
from coordatt_deploy.bundle import REPORTS, Bundle, open_bundle
from coordatt_deploy.documents import object_of
from coordatt_deploy.errors import UsageError
from coordatt_deploy.files import files_below, sha256
from coordatt_deploy.interruption import undisturbed
from coordatt_deploy.journal import (
    NEW,
    NOT_WRITABLE,
    STAGING,
    bring_back,
    bundle_files,
    commit,
    is_own,
    is_pending,
    recover,
    wait_for_lock,
)
from coordatt_deploy.locks import holder
from coordatt_deploy.manifest import MANIFEST, Manifest

BUSY_S: Final = 0.5  # a reader that mends what was left half written holds the lock for milliseconds


@contextmanager
def writing(target: Path, source_sha256: str, expected: Manifest | None = None) -> Iterator[Path]:
    """Give a folder to fill; what it holds becomes the bundle at *target* when the block ends well, else it vanishes.

    A bundle of the same weights that stands there is copied in first, so that its other artifacts are kept; its reports
    stay where they are. *target* may be a link, the working directory or a mounted folder: it stays the same folder.

    Args:
        target: The bundle's folder; made where it is not there.
        source_sha256: Of the weights.
        expected: What the bundle is to hold, where the caller has read it before; None where that does not matter.

    Raises:
        UsageError: *target* is no bundle, one of other weights, not writable, or being written by another process.
        BundleError: It holds a link or a pipe.
    """
    with _claimed(target):
        existing = check_target(target, source_sha256)
        if expected is not None and (existing is None or existing.manifest != expected):
            raise UsageError(f"{target} was written by another command since it was opened; run this one again")
        staging = _new_folder(target)
        try:
            new = staging / NEW
            new.mkdir()
            copied = [] if existing is None else list(_copy_in(target, new))
            yield new
            commit(target, staging, copied)
        finally:
            if not is_pending(target):
                with undisturbed():
                    shutil.rmtree(staging, ignore_errors=True)


def check_free(target: Path) -> None:
    """Refuse at once what ``writing`` would refuse after the model is loaded.

    Raises:
        UsageError: Another process writes there, or it cannot be written.
    """
    if target.is_dir():
        with _claimed(target):
            _new_folder(target).rmdir()


@contextmanager
def _claimed(target: Path) -> Iterator[None]:
    """Hold the lock of *target*, made where it is not there and removed again where nothing came of it."""
    bring_back(target)
    _check_bundle_or_empty(target)
    made = _make_folders(target)
    try:
        lock = wait_for_lock(target, BUSY_S)
        if lock is None:
            raise UsageError(f"{target} is being written by {holder(target)}; run this again when that has ended")
        with lock:
            _recover(target)
            yield
    finally:
        with suppress(OSError):  # something is in it: as it should be
            for folder in made:
                folder.rmdir()


def _recover(target: Path) -> None:
    try:
        recover(target)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise UsageError(f"{target} cannot be written: {error.strerror}") from None


def _make_folders(target: Path) -> list[Path]:
    """Make *target* and what is missing above it; return what was made, the innermost first."""
    made: list[Path] = []
    while not target.is_dir():
        missing = [folder for folder in (target, *target.parents) if not folder.exists()]
        try:
            target.mkdir(parents=True)
        except FileExistsError:
            if target.is_dir():  # another process was faster
                break
            what = "is a link to nothing" if target.is_symlink() else "is no folder"
            raise UsageError(f"{target} {what}; name another --output-dir or remove it") from None
        made += missing
    return made


def _new_folder(target: Path) -> Path:
    try:
        staging = Path(tempfile.mkdtemp(dir=target, prefix=STAGING))
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from None
    staging.chmod(0o755)
    return staging


def _copy_in(target: Path, new: Path) -> Iterator[str]:
    """Copy the bundle without its reports; yield the paths."""
    for file in bundle_files(target):
        path = file.relative_to(target).as_posix()
        if path.partition("/")[0] != REPORTS:
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, new / path, follow_symlinks=False)
            yield path


def _check_bundle_or_empty(target: Path) -> None:
    """Refuse to touch a folder that is somebody else's."""
    if not target.exists() or (target / MANIFEST).is_file() or (target.is_dir() and is_pending(target)):
        return
    if not target.is_dir() or not all(is_own(path.name) for path in target.iterdir()):
        raise UsageError(f"{target} exists and is no bundle; name another --output-dir or remove it")


def check_target(target: Path, source_sha256: str) -> Bundle | None:
    """Return the bundle of the same weights that stands at *target*; None where nothing does.

    Raises:
        UsageError: Something else stands there.
    """
    _check_bundle_or_empty(target)
    if not (target / MANIFEST).is_file() and not is_pending(target):
        return None
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
    differing = [
        key
        for key in ("preprocessing", "labels", "pixels", "about", "input_layout")
        if getattr(there, key) != getattr(model, key)
    ]
    if "preprocessing" in differing:
        old, new = object_of(there.preprocessing), object_of(model.preprocessing)
        differing = [f"{key} {old[key]} there, {new[key]} here" for key in new if old[key] != new[key]]
    words = {"about": "author, licence or description", "input_layout": "--input-layout"}
    differing = [words.get(key, key) for key in differing]
    if not differing and existing.manifest.inputs != inputs:
        differing = ["the input is dynamic in one and fixed in the other"]
    if differing:
        raise UsageError(
            f"{existing.root} holds artifacts of the same weights that differ in what an app gives or is told"
            f" ({'; '.join(differing)}); name another --output-dir"
        )


def check_texts(manifest: Manifest) -> None:
    """Refuse names that no file can hold, before the work is done.

    Raises:
        UsageError: A name has no form in UTF-8.
    """
    manifest.dump()  # what cannot be written at all is a bug, and told now
    tensors = (*manifest.inputs, *manifest.outputs)
    about = manifest.model.about.said().values()
    names = (manifest.model.name, *(manifest.model.labels or ()), *about, *(spec.name for spec in tensors))
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UsageError(f"the name {name!r} is no text that a file can hold (UTF-8); give another") from None


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
