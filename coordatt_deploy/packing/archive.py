"""A bundle as one ``.zip`` file.

    manifest.json     first
    golden/ onnx/ …   sorted by path, as they lie in the bundle
    checksums.json    last: sha256 of every file above, reports included

The same bundle gives the same bytes, wherever and whenever it is packed (with the same zlib): times and permissions are
fixed. An archive may come from anybody. ``entries`` holds its directory to bounds, every byte is hashed as it is read,
and nothing is put in its place before all of it is proven.
"""

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from coordatt_deploy.bundle import Bundle, FileState, Verification, VerifiedFile, open_bundle
from coordatt_deploy.documents import DocumentError, load
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.files import open_regular, sha256, whole_file
from coordatt_deploy.interruption import undisturbed
from coordatt_deploy.journal import is_own
from coordatt_deploy.locks import take_lock
from coordatt_deploy.manifest import MANIFEST, Manifest
from coordatt_deploy.packing.contents import Choice, contents, unlike_manifest
from coordatt_deploy.packing.entries import (
    MOST_BYTES,
    MOST_FILES,
    MOST_RATIO,
    SMALL_BYTES,
    DamagedEntryError,
    Entry,
    blocks,
    check_paths,
    opened,
)
from coordatt_deploy.packing.result import Checksums, Packing, Unpacking

SUFFIX: Final = ".zip"
CHECKSUMS: Final = "checksums.json"
MOST_DOCUMENT_BYTES: Final = 64 << 20  # of the manifest, and of the checksums; ours have some hundred thousand

BLOCK_BYTES: Final = 1 << 20

_UNPACKING: Final = ".unpacking-"  # between a dot with the folder's name and eight letters
_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the first that the format can say
_MODE: Final = 0o100644 << 16  # a regular file that its owner may write and everybody read
_UNIX: Final = 3


# Pack ----------------------------------------------------------------------------------------------------------------


def pack(bundle: Bundle, output: Path, choice: Choice | None = None) -> Packing:
    """Write a bundle into one archive, whole or not at all; one that is there is replaced.

    Args:
        bundle: Opened, its hashes checked or not: each file is hashed as it is packed.
        output: Of the archive; its name ends in ``.zip``.
        choice: What of the bundle; None for everything.

    Raises:
        UsageError: The bundle has no such artifact, or *output* cannot be.
        BundleError: A file was changed after the bundle was written; or it is larger, or of more files, than
            ``unpack`` takes.
    """
    _check_output(bundle, output)
    packed = contents(bundle, choice or Choice())
    if CHECKSUMS in packed.files:
        raise BundleError(f"{bundle.root} holds {CHECKSUMS}, which is the archive's own; rename or remove that file")
    check_paths([MANIFEST, CHECKSUMS, *packed.files])
    size = sum(file.stat().st_size for file in packed.files.values())
    if len(packed.files) + 2 > MOST_FILES or size > MOST_BYTES:
        raise BundleError(
            f"{bundle.root} holds {len(packed.files):,} files of {size:,} bytes together; archives hold {MOST_FILES:,}"
            f" and {MOST_BYTES:,} at most"
        )
    text = packed.manifest_text.encode()
    hashes = {MANIFEST: hashlib.sha256(text).hexdigest()}
    with whole_file(output) as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, allowZip64=False) as archive:
            archive.writestr(_info(MANIFEST), text)
            for path, file in packed.files.items():
                hashes[path] = _pack_file(archive, path, file)
            changed = sorted(unlike_manifest(packed.manifest, hashes))
            if changed:
                raise BundleError(
                    f"{bundle.root.name} is damaged: {changed[0]} was changed after the bundle was written; build it"
                    " again"
                )
            checksums = Checksums(hashes)
            archive.writestr(_info(CHECKSUMS), checksums.text())
        bundle.check_unchanged()
    artifacts = tuple(item.path for item in packed.manifest.artifacts)
    return Packing(
        str(bundle.root), str(output), sha256(output), output.stat().st_size, size + len(text), checksums.content,
        len(hashes), artifacts,
    )  # fmt: skip


def _check_output(bundle: Bundle, output: Path) -> None:
    if output.suffix.lower() != SUFFIX:
        raise UsageError(f"{output} does not end in {SUFFIX}, the one form that bundles are packed in; name it so")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent} is no folder; make it, or name another --output")
    if output.is_dir():
        raise UsageError(f"{output} is a folder; name another --output")
    if output.resolve().is_relative_to(bundle.root.resolve()):
        raise UsageError(f"{output} lies in the bundle that is packed; name another --output")


def _info(path: str, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path, _TIME)
    info.compress_type, info.external_attr, info.create_system = method, _MODE, _UNIX
    return info


def _pack_file(archive: zipfile.ZipFile, path: str, file: Path) -> str:
    """Add a file, and return its hash. What would shrink more than ``unpack`` believes is stored as it is."""
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        method = zipfile.ZIP_STORED if size > SMALL_BYTES and _shrinks_much(stream) else zipfile.ZIP_DEFLATED
        info, digest, left = _info(path, method), hashlib.sha256(), size
        info.file_size = size
        with archive.open(info, "w") as target:
            while block := stream.read(min(left, BLOCK_BYTES)):
                target.write(block)
                digest.update(block)
                left -= len(block)
    if size > SMALL_BYTES and size > MOST_RATIO * info.compress_size:
        raise BundleError(f"{path} shrinks from {size:,} to {info.compress_size:,} bytes, which unpack would refuse")
    return digest.hexdigest()


def _shrinks_much(stream: BinaryIO) -> bool:
    """Whether even the fastest deflate makes a tenth of a file or less; the stream is back at its beginning then."""
    packer, size, packed = zlib.compressobj(1), 0, 0
    while block := stream.read(BLOCK_BYTES):
        size, packed = size + len(block), packed + len(packer.compress(block))
    stream.seek(0)
    return size > MOST_RATIO / 10 * (packed + len(packer.flush()))


# Unpack --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PackedBundle:
    """An archive that was opened, its directory, manifest and checksums found good.

    Attributes:
        path: Of the archive.
        manifest: Of the bundle in it.
        content: sha256 of the checksums.
        hashes: What each file's sha256 is to be, by path; the checksums document is not among them.
        size: Of all these files in bytes, as the directory claims.
    """

    path: Path
    manifest: Manifest
    content: str
    hashes: Mapping[str, str]
    size: int
    _archive: zipfile.ZipFile
    _entries: Mapping[str, Entry]

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of a file; whoever takes all of them knows that they are the right ones.

        Raises:
            DamagedEntryError: They are not.
        """
        digest = hashlib.sha256()
        for block in blocks(self._archive, self._entries[path]):
            digest.update(block)
            yield block
        if digest.hexdigest() != self.hashes[path]:
            raise DamagedEntryError(path, "was changed after the bundle was packed")


@contextmanager
def open_archive(path: Path) -> Iterator[PackedBundle]:
    """Open an archive, and hold its directory, manifest and checksums to each other.

    Raises:
        BundleError: It is no archive of a bundle, or a damaged or a hostile one; the text says what is wrong with it.
    """
    try:
        stream = open_regular(path, follow_link=True)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from None
    with stream:
        try:
            with opened(stream) as (archive, entries):
                yield _packed(path, archive, entries)
        except BundleError as error:
            raise BundleError(f"{path.name} is refused: {error}") from None


def _packed(path: Path, archive: zipfile.ZipFile, entries: Mapping[str, Entry]) -> PackedBundle:
    for name in (MANIFEST, CHECKSUMS):
        if name not in entries:
            raise BundleError(f"it holds no {name}; make one with: coordatt-deploy bundle pack")
    text = _document(archive, entries[CHECKSUMS])
    try:
        hashes = dict(load(Checksums, text).files)
    except DocumentError as error:
        raise BundleError(f"{CHECKSUMS} is damaged: {error}") from None
    content = Checksums(hashes).content
    there = entries.keys() - {CHECKSUMS}
    unlisted, missing = sorted(there - hashes.keys()), sorted(hashes.keys() - there)
    if unlisted or missing:
        what = f"{unlisted[0]!r}, of which {CHECKSUMS} has no hash" if unlisted else f"no {missing[0]!r}"
        raise BundleError(f"it holds {what}")
    for name in there:
        if is_own(name.partition("/")[0]):
            raise BundleError(f"it holds {name!r}, which no bundle has: it would be taken for one half written")
    size = sum(entries[name].bytes for name in there)
    # The manifest's own hash is compared when its bytes are read with the others'.
    manifest = Manifest.parse(_document(archive, entries[MANIFEST]))
    unlike = sorted(unlike_manifest(manifest, hashes))
    if unlike:
        raise BundleError(f"{MANIFEST} and {CHECKSUMS} do not agree about {unlike[0]!r}")
    return PackedBundle(path, manifest, content, hashes, size, archive, entries)


def _document(archive: zipfile.ZipFile, entry: Entry) -> str:
    if entry.bytes > MOST_DOCUMENT_BYTES:
        raise BundleError(f"{entry.path} has {entry.bytes:,} bytes, {MOST_DOCUMENT_BYTES:,} at most are read")
    try:
        return b"".join(blocks(archive, entry)).decode("utf-8")
    except UnicodeDecodeError:
        raise BundleError(f"{entry.path} is damaged: it is no UTF-8") from None


def verified_archive(path: Path) -> Verification:
    """Compare every file in an archive with its hash; nothing is written.

    Raises:
        BundleError: See ``open_archive``.
    """
    with open_archive(path) as packed:
        files = tuple(VerifiedFile(name, _state(packed, name)) for name in packed.hashes)
    return Verification(str(path), all(item.state is FileState.AS_WRITTEN for item in files), files)


def _state(packed: PackedBundle, name: str) -> FileState:
    try:
        for _ in packed.blocks(name):
            pass
    except DamagedEntryError:
        return FileState.CHANGED
    return FileState.AS_WRITTEN


def unpack(archive: Path, target: Path) -> Unpacking:
    """Make a bundle of an archive: all of it, every hash compared, or nothing.

    Args:
        archive: Of ``pack``, or from anybody.
        target: The bundle's folder, which must not be there yet.

    Raises:
        UsageError: *target* is there, or cannot be made.
        BundleError: The archive is damaged or hostile; the text names the file.
    """
    if os.path.lexists(target):
        raise UsageError(f"{target} exists; name another --output-dir, or remove it")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is no folder; make it, or name another --output-dir")
    with open_archive(archive) as packed, _new_folder(target) as folder:
        for name in sorted(packed.hashes):
            _write(packed, name, folder / name)
        open_bundle(folder, verify=False)  # its paths stay inside: the hashes are compared
        _sync_folders(folder)
        if os.path.lexists(target):
            raise UsageError(f"{target} was made by another command meanwhile; nothing was unpacked")
        folder.rename(target)
    artifacts = tuple(item.path for item in packed.manifest.artifacts)
    return Unpacking(str(archive), str(target), packed.content, len(packed.hashes), packed.size, artifacts)


def _write(packed: PackedBundle, name: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("xb") as stream:
        for block in packed.blocks(name):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Give a folder beside *target* that goes when the block has not moved it; also what killed processes left."""
    start = f".{target.name}{_UNPACKING}"
    with suppress(OSError):
        for stale in target.parent.iterdir():
            if stale.name.startswith(start) and len(stale.name) == len(start) + 8 and not stale.is_symlink():
                with suppress(OSError):
                    lock = take_lock(stale)
                    with lock or nullcontext():
                        if lock is not None:
                            shutil.rmtree(stale)
    try:
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=start))
    except OSError as error:
        raise UsageError(f"{target.parent} cannot be written: {error.strerror}") from None
    try:
        with take_lock(folder) or nullcontext():
            folder.chmod(0o755)
            yield folder
    finally:
        with undisturbed():
            shutil.rmtree(folder, ignore_errors=True)


def _sync_folders(root: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
