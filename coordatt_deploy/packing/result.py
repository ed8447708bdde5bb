"""What packing and unpacking did, and the document that stands in an archive."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from coordatt_deploy.documents import dump


@dataclass(frozen=True, slots=True)
class Checksums:
    """The document ``checksums.json`` of an archive.

    Attributes:
        files: sha256 of every other file in the archive by its path, the manifest and reports included.
    """

    VERSION: ClassVar[int] = 1

    files: Mapping[str, str]

    def text(self) -> str:
        """The document, by path: the same for the same files, in whatever order they were hashed."""
        return dump(Checksums(dict(sorted(self.files.items()))))

    @property
    def content(self) -> str:
        """sha256 of the document: what stands for all of the files."""
        return hashlib.sha256(self.text().encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Packing:
    """What ``bundle pack`` wrote.

    Attributes:
        bundle: The folder that was packed.
        archive: The file that was written.
        sha256: Of the archive.
        bytes: Its size.
        unpacked_bytes: Of all files in it.
        content: sha256 of its checksums: the same for the same files, whatever compressed them.
        files: Number of files in it.
        artifacts: Paths of the artifacts in it, in the order of the manifest.
    """

    VERSION: ClassVar[int] = 1

    bundle: str
    archive: str
    sha256: str
    bytes: int
    unpacked_bytes: int
    content: str
    files: int
    artifacts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unpacking:
    """What ``bundle unpack`` wrote.

    Attributes:
        archive: The file that was unpacked.
        bundle: The folder that was made.
        content: sha256 of the archive's checksums.
        files: Number of files in the folder.
        unpacked_bytes: Of all of them.
        artifacts: Paths of the artifacts, in the order of the manifest.
    """

    VERSION: ClassVar[int] = 1

    archive: str
    bundle: str
    content: str
    files: int
    unpacked_bytes: int
    artifacts: tuple[str, ...]
