"""What runs on a worker of a cluster: files are kept by their hashes, shards are answered.

A worker keeps what it is sent in its own folder, each file under its hash, so that it comes once; the files of a job
are linked into a folder of their own, where they look like a bundle. What a worker has opened it keeps open for the
next shard. Several threads of one worker have each their own.
"""

import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.errors import BundleError, DeployError, TargetError
from coordatt_deploy.evaluation.bench import Bench
from coordatt_deploy.evaluation.cluster_messages import (
    AnswerRecord,
    Given,
    Introduction,
    Job,
    dumped,
    machine_kind,
    pack_answer,
    read_job,
    sources,
    unpack,
)
from coordatt_deploy.evaluation.predictions import Predictions, Shard, Trial
from coordatt_deploy.files import inside, sha256
from coordatt_deploy.host import describe, tool_versions
from coordatt_deploy.logs import set_environment
from coordatt_deploy.processes import internal_error

FOLDER: Final = "coordatt-deploy"
JOBS_KEPT: Final = 4  # of the last ones: what is open in them, and their files
HASH_LETTERS: Final = frozenset("0123456789abcdef")


class Worker(Protocol):
    """What of Dask's worker is used here."""

    @property
    def address(self) -> str:
        """Of this worker."""

    @property
    def local_directory(self) -> str:
        """Its own folder, which goes with it."""


def introduce() -> str:
    """Say what this worker is."""
    set_environment()
    return dumped(_introduction())


@cache  # a process does not change its versions, nor its machine
def _introduction() -> Introduction:
    return Introduction(tool_versions(), sources(), describe())


def lacking(hashes: Sequence[str], dask_worker: Worker | None = None) -> list[str]:
    """Return those of *hashes* that this worker has no file of."""
    store = FileStore.of(dask_worker)
    return [item for item in hashes if not store.file(item).exists()]


def store_piece(hashed: str, start: int, total: int, piece: bytes, dask_worker: Worker | None = None) -> None:
    """Keep a piece of a file; the last one makes it a file, if it has the hash.

    Args:
        hashed: sha256 of the whole file.
        start: Where the piece begins.
        total: Bytes of the whole file.
        piece: At least the next byte.
        dask_worker: Given by Dask.

    Raises:
        TargetError: The file did not arrive as it was sent.
    """
    FileStore.of(dask_worker).add(hashed, start, total, piece)


def forget(hashed: str, dask_worker: Worker | None = None) -> None:
    """Close what is open for a job."""
    FileStore.of(dask_worker).close(hashed)


def answer(hashed: str, document: str, blobs: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Run a job's subjects on the images of a shard.

    Args:
        hashed: sha256 of the job.
        document: A ``ShardRecord``.
        blobs: What its images hold.

    Returns:
        An ``AnswerRecord`` and the arrays, as ``.npz``; whatever goes wrong is in the record.
    """
    from distributed import get_worker  # only a worker has it loaded already

    worker: Worker = get_worker()
    set_environment()
    try:
        return _answered(worker, hashed, document, blobs)
    except DeployError as error:
        told: DeployError = error
    except Exception as error:  # noqa: BLE001 - a bug: the caller gets its text, the log of this machine the rest
        told = internal_error(error, "running the artifacts on images")
    return dumped(AnswerRecord(worker.address, error=type(told).__name__, error_text=str(told))), b""


def _answered(worker: Worker, hashed: str, document: str, blobs: Mapping[str, bytes]) -> tuple[str, bytes]:
    store = FileStore.of(worker)
    job = store.job(hashed)
    if job is None:
        return dumped(AnswerRecord(worker.address, lacks=True)), b""
    refusal = why_not(job)
    if refusal is not None:
        return dumped(AnswerRecord(worker.address, refused=refusal)), b""
    images = unpack(document, blobs)
    with store.bench(hashed, job) as bench:
        scoring = bench.trial.scoring
        given = scoring if isinstance(scoring, Given) else None
        if given is not None:
            given.held.clear()
        parts = [bench.answer(Shard(row, (image,))) for row, image in images]
        return pack_answer(_together(parts, bench.trial), given, bench.trial.names, worker.address)


def _together(parts: Sequence[Predictions], trial: Trial) -> Predictions:
    """The answers for images that need not lie beside each other in the dataset, without the subjects that failed."""
    failures = parts[-1].failures if parts else {}
    whole = [index for index in range(trial.subjects) if index not in failures]
    read = [part for part in parts if len(part.rows)]
    return Predictions(
        np.array([row for part in read for row in part.rows], np.int64),
        {index: np.concatenate([part.scored[index] for part in read]) for index in whole if read},
        [asked for part in read for asked in part.asked],
        {},
        np.array([value for part in read for value in part.signal], np.float64),
        np.concatenate([np.zeros((trial.subjects, 0)), *(part.noise for part in read)], axis=1),
        np.concatenate([np.zeros((trial.subjects, 0), np.bool_), *(part.nonfinite for part in read)], axis=1),
        [item for part in parts for item in part.unreadable],
        dict(failures),
        dict(parts[-1].runtimes) if parts else {},
    )


def why_not(job: Job) -> str | None:
    """Return why this machine does not work for a job; None where it does."""
    return refusal(_introduction(), job)


def refusal(found: Introduction, job: Job) -> str | None:
    """Return why a worker may not work for a job; None where it may."""
    wrong = []
    for name, version in job.versions.items():
        there = found.versions.get(name)
        if there is None:
            wrong.append(f"{name} is not installed there")
        elif there != version:
            wrong.append(f"{name} is {there} there and {version} here")
    if not wrong and found.sources != job.sources:
        wrong.append("the code of coordatt-deploy is another one there, though its version is the same")
    if not wrong and machine_kind(found.host) not in job.machines:
        wrong.append(f"its CPU ({found.host.cpu}) is of a kind that was not there when the work began")
    return "; ".join(wrong) or None


class FileStore:
    """The files that a worker was sent, and what is open of them."""

    _stores: Final[dict[str, "FileStore"]] = {}
    _guard: Final = threading.Lock()

    @classmethod
    def of(cls, worker: Worker | None) -> "FileStore":
        """Return the store of a worker of this process."""
        assert worker is not None  # noqa: S101 - Dask gives it to whoever has such a parameter
        with cls._guard:
            if worker.local_directory not in cls._stores:
                cls._stores[worker.local_directory] = cls(Path(worker.local_directory) / FOLDER)
            return cls._stores[worker.local_directory]

    def __init__(self, folder: Path) -> None:
        self._files, self._jobs = folder / "files", folder / "jobs"
        for part in (self._files, self._jobs):
            part.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Job] = OrderedDict()
        self._idle: dict[str, list[tuple[Bench, ExitStack]]] = {}

    def file(self, hashed: str) -> Path:
        """Return where the file with a hash is, or would be."""
        if len(hashed) != 64 or not HASH_LETTERS.issuperset(hashed):
            raise TargetError(f"{hashed[:80]!r} is no sha256")
        return self._files / hashed

    def add(self, hashed: str, start: int, total: int, piece: bytes) -> None:
        """See ``store_piece``."""
        file = self.file(hashed)
        part = file.with_suffix(".part")
        if file.exists():
            return
        # Never emptied: two commands may send the same file at once, and the same pieces belong to the same places.
        with part.open("r+b" if part.exists() else "wb") as stream:
            stream.seek(start)
            stream.write(piece)
            if start + len(piece) == total:
                stream.truncate()
        if start + len(piece) < total:
            return
        if sha256(part) != hashed:
            part.unlink()
            raise TargetError(f"the file {hashed[:12]}… did not arrive as it was sent: its sha256 is another one")
        part.replace(file)

    def job(self, hashed: str) -> Job | None:
        """Return a job whose files are all here; None where one is missing."""
        with self._lock:
            if hashed in self._known:
                self._known.move_to_end(hashed)
                return self._known[hashed]
            document = self.file(hashed)
            if not document.exists():
                return None
            job = read_job(document.read_text(encoding="utf-8"))
            if any(not self.file(item).exists() for item in job.files.values()):
                return None
            self._laid_out(hashed, job)
            self._known[hashed] = job
            while len(self._known) > JOBS_KEPT:
                self._drop(next(iter(self._known)))
            return job

    def _laid_out(self, hashed: str, job: Job) -> None:
        """Link the files of a job to where a bundle has them, and compare the artifacts with their own hashes."""
        root = self._jobs / hashed
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for relative, item in job.files.items():
            place = inside(root, relative, "the job")
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.file(item), place)
        for artifact in job.artifacts:
            if sha256(inside(root, artifact.path, "the job")) != artifact.sha256:
                raise BundleError(f"{artifact.path} is not what the bundle says: its sha256 is another one")

    @contextmanager
    def bench(self, hashed: str, job: Job) -> Iterator[Bench]:
        """Give what is open for a job to one thread at a time."""
        with self._lock:
            idle = self._idle.setdefault(hashed, [])
            found = idle.pop() if idle else None
        if found is None:
            stack = ExitStack()
            found = Bench(self._trial(hashed, job), stack), stack
        try:
            yield found[0]
        except BaseException:
            found[1].close()
            raise
        with self._lock:
            if hashed in self._known:
                self._idle.setdefault(hashed, []).append(found)
                return
        found[1].close()

    def _trial(self, hashed: str, job: Job) -> Trial:
        artifacts: tuple[Artifact, ...] = job.artifacts
        bundle = Bundle(self._jobs / hashed, job.model)
        return Trial(
            bundle, artifacts, job.reference, job.input, job.scoring, exact_sums=frozenset(job.exact_sums)
        )  # fmt: skip

    def close(self, hashed: str) -> None:
        """Close what is open for a job; its files stay for the next one."""
        with self._lock:
            idle = self._idle.pop(hashed, [])
        for _, stack in idle:
            stack.close()

    def _drop(self, hashed: str) -> None:
        """Remove a job, and the files that no other one has."""
        dropped = self._known.pop(hashed)
        for _, stack in self._idle.pop(hashed, []):
            stack.close()
        shutil.rmtree(self._jobs / hashed, ignore_errors=True)
        used = {item for job in self._known.values() for item in job.files.values()}
        for item in {hashed, *dropped.files.values()} - used:
            self.file(item).unlink(missing_ok=True)
