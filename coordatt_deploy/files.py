"""Files of a bundle: paths that stay inside, hashes, sizes, and writing as a whole or not at all."""

import hashlib
import os
import tempfile
from pathlib import Path, PurePosixPath

from coordatt_deploy.errors import BundleError


def inside(root: Path, relative: str) -> Path:
    """Return ``root / relative``.

    Raises:
        BundleError: The path is absolute, climbs out, or a link leads out of the folder.
    """
    pure = PurePosixPath(relative)
    path = root / pure
    climbs = pure.is_absolute() or ".." in pure.parts or "\\" in relative or ":" in relative or not pure.parts
    if climbs or not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"manifest.json names {relative!r}, which lies outside the bundle; the bundle is refused")
    return path


def sha256(path: Path) -> str:
    """Hash a file, or a package: its sorted relative paths and their contents."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(item for item in path.rglob("*") if item.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\n{sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def size_bytes(path: Path) -> int:
    """Size on disk of a file, or of all files of a package."""
    return (
        sum(item.stat().st_size for item in path.rglob("*") if item.is_file()) if path.is_dir() else path.stat().st_size
    )


def write_whole(path: Path, text: str) -> Path:
    """Write a text file so that a reader sees the old one or the new one, never a half."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
