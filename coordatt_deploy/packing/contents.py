"""What of a bundle is handed on: all of it, or chosen artifacts with what belongs to them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import REPORTS, Bundle
from coordatt_deploy.errors import BundleError, UsageError, nearest
from coordatt_deploy.files import package_sha256, read_text
from coordatt_deploy.formats import Format
from coordatt_deploy.journal import bundle_files
from coordatt_deploy.manifest import MANIFEST, Manifest

REFERENCE: Final = "reference"


@dataclass(frozen=True, slots=True)
class Choice:
    """What is handed on.

    Attributes:
        formats: Artifacts of these; empty for all.
        artifacts: These, by path or file name; empty for all. With *formats*, what either names.
        reference: Whether the captured graph and its weights go with them; only machines with torch can use them.
        reports: Whether results do.
        unnamed: Whether files that the manifest does not name do, reports aside.
    """

    formats: tuple[Format, ...] = ()
    artifacts: tuple[str, ...] = ()
    reference: bool = True
    reports: bool = True
    unnamed: bool = True


@dataclass(frozen=True, slots=True)
class Contents:
    """A bundle as it is handed on.

    Attributes:
        manifest: Of what is handed on alone.
        manifest_text: The same, as it is written.
        files: Where each file lies by its path in the bundle, sorted; the manifest is not among them.
    """

    manifest: Manifest
    manifest_text: str
    files: Mapping[str, Path]


def contents(bundle: Bundle, choice: Choice) -> Contents:
    """Return what *choice* takes of a bundle.

    All of it with the manifest as it stands, and also what the manifest does not name, where nothing is left out.

    Raises:
        UsageError: It has no such artifact, or none at all.
        BundleError: A file of the manifest is missing.
    """
    chosen = _chosen(bundle.manifest.artifacts, choice)
    there = {file.relative_to(bundle.root).as_posix(): file for file in bundle_files(bundle.root)}
    there.pop(MANIFEST, None)
    if not choice.reports:
        there = {path: file for path, file in there.items() if not _is_in(path, REPORTS)}
    has_reference = any(_is_in(path, REFERENCE) for path in bundle.manifest.files)
    if chosen == bundle.manifest.artifacts and (choice.reference or not has_reference):
        manifest, text, kept = bundle.manifest, read_text(bundle.root / MANIFEST), there
    else:
        manifest = _cut(bundle.manifest, chosen, reference=choice.reference)
        text, kept = manifest.dump(), there
    if manifest is not bundle.manifest or not choice.unnamed:
        kept = {path: file for path, file in there.items() if _is_in(path, REPORTS) or _is_named(path, manifest)}
    missing = [path for path in manifest.files if path not in kept]
    missing += [item.path for item in manifest.artifacts if not any(_is_in(path, item.path) for path in kept)]
    if missing:
        raise BundleError(f"{bundle.root.name} is damaged: {missing[0]} is missing; build it again")
    return Contents(manifest, text, dict(sorted(kept.items())))


def unlike_manifest(manifest: Manifest, hashes: Mapping[str, str]) -> Iterator[str]:
    """Yield the paths of which the manifest says another hash than *hashes*, or that are not there.

    Args:
        manifest: Of the bundle.
        hashes: sha256 of each single file by its path, those of packages included.
    """
    for path, expected in manifest.files.items():
        if hashes.get(path) != expected:
            yield path
    for artifact in manifest.artifacts:
        if _hash_of(artifact.path, hashes) != artifact.sha256:
            yield artifact.path


def _hash_of(path: str, hashes: Mapping[str, str]) -> str | None:
    """Hash an artifact by the hashes of its files, as ``files.sha256`` does."""
    if path in hashes:
        return hashes[path]
    inside = {PurePosixPath(name).relative_to(path): value for name, value in hashes.items() if _is_in(name, path)}
    return package_sha256(inside) if inside else None


def _chosen(artifacts: tuple[Artifact, ...], choice: Choice) -> tuple[Artifact, ...]:
    for name in choice.artifacts:
        if not any(_is_called(item, name) for item in artifacts):
            raise UsageError(f"the bundle has no artifact {name!r}; {nearest(name, [item.path for item in artifacts])}")
    if not choice.formats and not choice.artifacts:
        return artifacts
    chosen = tuple(
        item
        for item in artifacts
        if item.format in choice.formats or any(_is_called(item, name) for name in choice.artifacts)
    )
    if not chosen:
        has = ", ".join(dict.fromkeys(item.format.value for item in artifacts)) or "no artifact at all"
        asked = ", ".join(item.value for item in choice.formats)
        raise UsageError(f"the bundle has no artifact of the format {asked}; it has {has}")
    return chosen


def _is_called(artifact: Artifact, name: str) -> bool:
    return name in (artifact.path, PurePosixPath(artifact.path).name)


def _cut(manifest: Manifest, chosen: tuple[Artifact, ...], *, reference: bool) -> Manifest:
    """Leave out what belongs to other artifacts alone, and the reference where it stays here."""
    paths = {item.path for item in chosen}
    quantization = {path: record for path, record in manifest.quantization.items() if path in paths}
    kept_maps = {item.layers for item in chosen}
    kept_folders = {record.held_out.folder for record in quantization.values() if record.held_out is not None}
    dropped = {item.layers for item in manifest.artifacts} - kept_maps
    folders = {
        record.held_out.folder for record in manifest.quantization.values() if record.held_out is not None
    } - kept_folders
    files = {
        path: value
        for path, value in manifest.files.items()
        if path not in dropped
        and not any(_is_in(path, f"golden/{folder}") for folder in folders)
        and (reference or not _is_in(path, REFERENCE))
    }
    return replace(
        manifest,
        artifacts=chosen,
        files=files,
        lowering={path: report for path, report in manifest.lowering.items() if path in paths},
        quantization=quantization,
    )


def _is_named(path: str, manifest: Manifest) -> bool:
    return path in manifest.files or any(_is_in(path, artifact.path) for artifact in manifest.artifacts)


def _is_in(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")
