"""Answer shards on the workers of a Dask cluster.

Dask does what it is good at: it hands shards to workers that are free, and does those of a worker that died again. What
is sent is bytes and text, see ``cluster_messages``. Each worker gets a bundle's files once, when it says that it lacks
them, so that one that joins late gets them too. Shards are small and few are on the way: a slow worker holds back few,
and at the end others do these again; whichever answer comes first is taken, as both are the same.
"""

import asyncio
import concurrent.futures
import hashlib
import logging
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Final, Protocol, TypeVar, cast

import distributed
import numpy as np
from distributed.comm.core import connect
from distributed.scheduler import KilledWorker
from distributed.security import Security

from coordatt_deploy.bundle import Bundle
from coordatt_deploy.errors import (
    DeployError,
    InternalError,
    MetricError,
    TargetError,
    UsageError,
    WorkerDiedError,
    error_named,
)
from coordatt_deploy.evaluation import cluster_worker
from coordatt_deploy.evaluation.bench import RowMaker
from coordatt_deploy.evaluation.cluster_messages import (
    Introduction,
    Job,
    Packed,
    Returned,
    dumped,
    machine_kind,
    pack,
    read_answer,
    read_introduction,
    sources,
    unpack_answer,
)
from coordatt_deploy.evaluation.predictions import Failure, Predictions, Shard, Trial
from coordatt_deploy.evaluation.scoring import Asked, MeanIou, Own, Top1
from coordatt_deploy.evaluation.user_metric import EvaluatedImage
from coordatt_deploy.files import files_below, sha256
from coordatt_deploy.formats import FORMATS
from coordatt_deploy.host import Host, describe, tool_versions
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.plurals import counted

CONNECT_S: Final = 8.0  # an answer from another continent takes one
JOIN_S: Final = 5.0  # that workers may take to join a scheduler that was started with them
GONE_S: Final = 30.0  # without any worker; Dask's own nanny starts a dead one again in three
QUIET_S: Final = 30.0  # that a scheduler may leave a question without an answer
INTRODUCE_S: Final = 60.0  # a worker imports the runtimes meanwhile
LATE_S: Final = 5.0  # that a worker may be later than the first one; it joins in when it answers
POLL_S: Final = 0.5
SHARDS_EACH: Final = 2  # on the way for each thread of a worker: one is worked on, the next one waits there
PIECE_BYTES: Final = 8 << 20
LATE_TIMES: Final = 3.0  # as long as other shards took, from which on one is given to another worker as well
LATE_LEAST_S: Final = 2.0
TRIES: Final = 100  # of one shard at workers that lack the files
ALWAYS: Final = ("coordatt-deploy", "numpy", "Pillow")
REFERENCE: Final = ("torch",)
NAMED: Final = 3  # images or workers in a message

KEPT_TIMES: Final = 100  # of shards: what the next one takes is told by the last ones
FORGET_S: Final = 2.0

T = TypeVar("T")


class _Future(Protocol):
    """What of Dask's future is used here."""

    key: str

    def __await__(self) -> Generator[None, None, object]:
        """Wait for its result."""

    def cancel(self) -> Awaitable[None]:
        """Drop it."""


class _Scheduler(Protocol):
    def identity(self, *, n_workers: int) -> Awaitable[Mapping[str, Mapping[str, Mapping[str, object]]]]:
        """Say who is there; -1 for all workers."""


class _Loop(Protocol):
    asyncio_loop: asyncio.AbstractEventLoop


class _Client(Protocol):
    """What of Dask's client is used here, on its own thread, where all of it can be awaited."""

    scheduler: _Scheduler

    def submit(
        self, function: Callable[[str, str, Mapping[str, bytes]], tuple[str, bytes]], *arguments: object, pure: bool,
        workers: Sequence[str] | None, allow_other_workers: bool,
    ) -> _Future:  # fmt: skip
        """Call a function on a worker."""

    def run(self, function: object, *arguments: object, workers: Sequence[str]) -> Awaitable[Mapping[str, object]]:
        """Call a function on each worker, beside what else it does."""

    def processing(self) -> Awaitable[Mapping[str, Sequence[str]]]:
        """Say which futures each worker is at."""


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """A job and what workers need for it.

    Attributes:
        job: Itself.
        hashed: Its hash.
        files: By hash, the job last; a file of the bundle, or bytes.
    """

    job: Job
    hashed: str
    files: Mapping[str, Path | bytes]


@dataclass(slots=True, eq=False)
class _Sent:
    """A shard on the way.

    Attributes:
        packed: What is sent.
        begun: When, by the clock.
        futures: Dask's.
        twice: Whether another worker was asked as well.
        done: Whether it was answered.
    """

    packed: Packed
    begun: float
    futures: list[_Future] = field(default_factory=list)
    twice: bool = False
    done: bool = False


Waiting = dict["concurrent.futures.Future[object]", _Sent]


@contextmanager
def connected(address: str) -> Iterator["Cluster"]:
    """Give the workers of a scheduler.

    Args:
        address: Checked, see ``check_address``.

    Raises:
        TargetError: It does not answer, or has no workers.
    """
    with _silent():
        try:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:  # the caller's thread may have a loop, in a notebook
                pool.submit(asyncio.run, _greeted(address)).result()
            client = distributed.Client(  # type: ignore[no-untyped-call]
                address, timeout=CONNECT_S, name="coordatt-deploy", set_as_default=False
            )
        except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:  # TLS alone raises three of these
            raise TargetError(
                f"the scheduler {address} does not answer: {_first_line(error)}; is it running, and can it be reached"
                " from here?"
            ) from None
        try:
            yield Cluster(address, cast(_Client, client), cast(_Loop, client.loop).asyncio_loop)
        finally:
            with suppress(Exception):
                client.close(timeout=2)  # type: ignore[no-untyped-call]


async def _greeted(address: str) -> None:
    """Connect and hang up: Dask's client waits for minutes where something listens and says nothing."""
    options = Security().get_connection_args("client")  # type: ignore[no-untyped-call]
    greeting = connect(address, timeout=CONNECT_S, **options)  # type: ignore[no-untyped-call]
    comm = await asyncio.wait_for(greeting, CONNECT_S)
    await comm.close()


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Dask's own log off the screen: what matters in it is told in errors."""
    loggers = [logging.getLogger(name) for name in (*logging.root.manager.loggerDict,)
               if name.partition(".")[0] in ("distributed", "tornado", "asyncio")]  # fmt: skip
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


class Cluster:
    """The workers of a Dask scheduler; see ``executors.Executor``.

    Attributes:
        address: Of the scheduler.
        sent_bytes: Of the files of bundles, by the address of a worker.
        answered: Shards, by the address of a worker.
    """

    def __init__(self, address: str, client: _Client, loop: asyncio.AbstractEventLoop) -> None:
        """Ask who is there.

        Raises:
            TargetError: Nobody; or the scheduler does not answer.
        """
        self.address = address
        self._client, self._loop = client, loop
        self.sent_bytes: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self._known: dict[str, Introduction] = {}
        self._strangers: dict[str, str] = {}
        self._threads: dict[str, int] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._seen, self._asked_again = time.monotonic(), 0.0
        self._look()
        while not self._threads and time.monotonic() < self._seen + JOIN_S:
            time.sleep(POLL_S)
            self._look()
        if not self._threads:
            raise TargetError(f"the scheduler {address} has no workers; start some: dask worker {address}")
        self._introduce([*self._threads])
        if not self._known and not self._strangers:
            raise TargetError(f"none of the {counted(len(self._threads), 'worker')} of {address} answers")

    @property
    def processes(self) -> int:
        """Threads of all workers."""
        return max(1, sum(self._threads.values()))

    @property
    def machines(self) -> tuple[Host, ...]:
        """One of each kind."""
        kinds = {machine_kind(item.host): item.host for item in self._known.values()}
        return tuple(kinds[kind] for kind in sorted(kinds))

    @property
    def machine(self) -> str:
        """What a record names in place of one machine."""
        names = Counter(f"{item.host.cpu} ({item.host.architecture})" for item in self._known.values())
        return f"{counted(len(self._known), 'worker')} of {self.address}: " + ", ".join(
            f"{count} × {name}" for name, count in sorted(names.items())
        )

    @property
    def tool_versions(self) -> Mapping[str, str]:
        """What had a hand in figures there; what matters is the same on all workers."""
        first = next(iter(self._known.values()))
        return {**first.versions, "distributed": metadata.version("distributed")}

    @property
    def notes(self) -> tuple[str, ...]:
        """Who answered."""
        kinds = {machine_kind(item) for item in self.machines}
        told = [f"run on {self.machine}"]
        if kinds != {machine_kind(describe())}:
            told.append(
                "the CPUs of the workers and of this machine are not of one kind: runtimes may round the last digits"
                " otherwise on each"
            )
        return tuple(told)

    # Shards ----------------------------------------------------------------------------------------------------------

    def answers(
        self, trial: Trial, shards: Iterator[Shard], step: Callable[[], None]
    ) -> Generator[Predictions, None, None]:
        """See ``executors.Executor``.

        Raises:
            TargetError: A worker may not work for this, the scheduler is gone, or what comes back is no answer.
            WorkerDiedError: A shard ended every worker that it met.
            MetricError: See ``executors.Executor``.
        """
        order = self._order(trial)
        self._check(order.job)
        maker = RowMaker(trial) if isinstance(trial.scoring, Own) else None
        masks = isinstance(trial.scoring, MeanIou)
        waiting: Waiting = {}
        took: list[float] = []
        more = True
        try:
            self._prepare(order)
            while more or waiting:
                while more and len(waiting) < SHARDS_EACH * self.processes:
                    shard = next(shards, None)
                    more = shard is not None
                    if shard is None:
                        break
                    packed = pack(shard, masks=masks)
                    if len(packed.unreadable) == len(shard.images):
                        yield _nothing_read(packed, trial)
                        _stepped(step, packed)
                    else:
                        sent = _Sent(packed, time.monotonic())
                        waiting[self._begun(self._asked(order, sent, None))] = sent
                for future in self._ended(waiting):
                    if future not in waiting or waiting[future].done:
                        waiting.pop(future, None)
                        continue
                    sent = waiting.pop(future)
                    part = self._part(self._result(future, sent), sent.packed, trial, order.job, maker)
                    sent.done = True
                    took = [*took[-KEPT_TIMES:], time.monotonic() - sent.begun]
                    if sent.twice:
                        self._begun(_cancelled(sent.futures))
                        waiting = {key: item for key, item in waiting.items() if item is not sent}
                    yield part
                    _stepped(step, sent.packed)
                self._ask_again(order, waiting, took)
        finally:
            self._finish(order, waiting)

    async def _asked(self, order: _Order, sent: _Sent, avoided: Sequence[str] | None) -> object:
        """Return what a worker says of a shard; one that lacks the files gets them first."""
        packed = sent.packed
        for _ in range(TRIES):
            others = None if avoided is None else [item for item in self._threads if item not in avoided]
            future = self._client.submit(
                cluster_worker.answer, order.hashed, packed.document, packed.blobs,
                pure=False, workers=others or None, allow_other_workers=bool(others),
            )  # fmt: skip
            sent.futures = [*sent.futures, future]
            raw = await future
            record, _ = read_answer(raw)
            if not record.lacks:
                return raw
            await self._send(order, record.worker)
        raise TargetError(f"workers of {self.address} lose the files that they are sent, again and again")

    def _ended(self, waiting: Waiting) -> "list[concurrent.futures.Future[object]]":
        """Return those that have ended, or none after a moment."""
        done, _ = concurrent.futures.wait(waiting, POLL_S, concurrent.futures.FIRST_COMPLETED)
        if not done:
            self._look()
            if not self._threads and time.monotonic() > self._seen + GONE_S:
                raise TargetError(
                    f"the last worker of {self.address} has been gone for {GONE_S:g} s; start some, and run it again"
                )
        return [*done]

    def _result(self, future: "concurrent.futures.Future[object]", sent: _Sent) -> object:
        try:
            return future.result()
        except KilledWorker as error:
            images = [image.name for image in sent.packed.shard.images]
            raise WorkerDiedError(
                f"{error.allowed_failures + 1} workers died, one after the other, each while it ran the artifacts on"
                f" {', '.join(images[:NAMED])}{'' if len(images) <= NAMED else f' and {len(images) - NAMED} more'};"
                " their logs may say of what, perhaps for want of memory"
            ) from None
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise TargetError(f"the scheduler {self.address} is gone, or has dropped the work; run it again") from None
        except DeployError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever Dask, or what a worker cannot import, raises
            raise TargetError(f"a worker of {self.address} could not answer: {_first_line(error)}") from None

    def _part(self, raw: object, packed: Packed, trial: Trial, job: Job, maker: RowMaker | None) -> Predictions:
        record, data = read_answer(raw)
        if record.refused is not None:
            raise _refused([f"{record.worker}: {record.refused}"], len(self._threads))
        if record.error is not None:
            raise error_named(record.error, InternalError)(f"on the worker {record.worker}: {record.error_text}")
        returned = unpack_answer(record, data, packed, trial, job)
        self.answered[record.worker] += 1
        return returned.part if maker is None else _scored_here(returned, packed, trial, maker)

    def _ask_again(self, order: _Order, waiting: Waiting, took: Sequence[float]) -> None:
        """Give what takes long to another worker as well, where one has nothing to do."""
        now = time.monotonic()
        late = max(LATE_LEAST_S, LATE_TIMES * median(took)) if took else INTRODUCE_S
        overdue = [item for item in waiting.values() if not item.twice and now > item.begun + late]
        if not overdue or now < self._asked_again + POLL_S:
            return
        self._asked_again = now
        try:
            busy = self._begun(_awaited(self._client.processing)).result(QUIET_S)
        except (OSError, TimeoutError):
            return
        free = sum(threads for worker, threads in self._threads.items() if not busy.get(worker))
        for sent in sorted(overdue, key=lambda item: item.begun):
            keys = {item.key for item in sent.futures}
            at = [worker for worker, held in busy.items() if keys & set(held)]
            if at and free > 0:
                sent.twice, free = True, free - 1
                waiting[self._begun(self._asked(order, sent, at))] = sent

    def _finish(self, order: _Order, waiting: Waiting) -> None:
        """Drop what is still under way, and close what workers have opened for it."""
        for future in waiting:
            future.cancel()
        left = [item for sent in waiting.values() for item in sent.futures]
        known = [worker for worker in self._threads if worker in self.answered]
        forgotten = [self._begun(self._called(cluster_worker.forget, (order.hashed,), worker))
                     for worker in known]  # fmt: skip
        concurrent.futures.wait([self._begun(_cancelled(left))], FORGET_S)
        concurrent.futures.wait(forgotten, FORGET_S)

    # Workers and their files -----------------------------------------------------------------------------------------

    def _begun(self, work: Coroutine[None, None, T]) -> "concurrent.futures.Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _look(self) -> None:
        """Ask the scheduler who is there.

        Raises:
            TargetError: It does not answer.
        """
        try:
            found = self._begun(_awaited(lambda: self._client.scheduler.identity(n_workers=-1))).result(QUIET_S)
        except (OSError, TimeoutError, concurrent.futures.CancelledError) as error:
            raise TargetError(f"the scheduler {self.address} is gone: {_first_line(error)}") from None
        self._threads = {worker: int(str(item["nthreads"])) for worker, item in found["workers"].items()}
        if self._threads:
            self._seen = time.monotonic()

    def _introduce(self, workers: Sequence[str]) -> None:
        """Ask workers what they are; one that takes much longer than another one is not waited for."""
        asked = {self._begun(self._called(cluster_worker.introduce, (), worker)): worker for worker in workers}
        _first_and_soon([*asked], INTRODUCE_S)
        for future, worker in asked.items():
            if not future.done():
                future.cancel()
                continue
            try:
                found = future.result()
            except OSError:  # it died meanwhile
                continue
            except Exception as error:  # noqa: BLE001 - whatever its Python makes of being asked
                self._strangers[worker] = f"it has no coordatt-deploy that knows --cluster: {_first_line(error)}"
                continue
            if found is not None:
                self._known[worker] = read_introduction(found, worker)

    def _check(self, job: Job) -> None:
        """Refuse workers that would not answer as this machine does.

        Raises:
            TargetError: There are some; the text names them.
        """
        here = describe().architecture
        reasons = dict(self._strangers)
        for worker, found in self._known.items():
            reason = cluster_worker.refusal(found, job)
            if found.host.architecture != here:
                reason = f"its CPU is of {found.host.architecture}, this machine's of {here}"
            if reason is not None:
                reasons[worker] = reason
        if reasons:
            raise _refused([f"{worker}: {reason}" for worker, reason in reasons.items()], len(self._threads))

    def _prepare(self, order: _Order) -> None:
        """Send the files to all workers at once; one that takes long gets them while others work."""
        sending = [self._begun(self._send(order, worker)) for worker in self._threads]
        while sending and not _first_and_soon(sending, POLL_S):
            self._look()

    async def _called(self, function: object, arguments: Sequence[object], worker: str) -> object:
        """Call a function on a worker beside what else it does; what it returns, None where it is gone."""
        found = await self._client.run(function, *arguments, workers=[worker])
        return found.get(worker)

    async def _send(self, order: _Order, worker: str) -> None:
        """Send the files that a worker lacks."""
        async with self._locks.setdefault(worker, asyncio.Lock()):
            lacked = await self._called(cluster_worker.lacking, ([*order.files],), worker)
            for hashed in lacked if isinstance(lacked, list) else ():
                if hashed in order.files:
                    await self._send_file(hashed, order.files[hashed], worker)

    async def _send_file(self, hashed: str, source: Path | bytes, worker: str) -> None:
        total = len(source) if isinstance(source, bytes) else source.stat().st_size
        for start in range(0, max(total, 1), PIECE_BYTES):
            if isinstance(source, bytes):
                piece = source[start : start + PIECE_BYTES]
            else:
                with source.open("rb") as stream:
                    stream.seek(start)
                    piece = stream.read(PIECE_BYTES)
            await self._called(cluster_worker.store_piece, (hashed, start, total, piece), worker)
            self.sent_bytes[worker] += len(piece)

    def _order(self, trial: Trial) -> _Order:
        """Return what workers need to know, and the files by their hashes."""
        bundle, scoring, here = trial.bundle, trial.scoring, tool_versions()
        manifest = bundle.manifest
        runtimes = [name for item in trial.artifacts for name in FORMATS[item.format].runtimes]
        needed = dict.fromkeys([*ALWAYS, *(REFERENCE if trial.reference else ()), *runtimes])
        paths = dict(_files(bundle, trial))
        hashes = {relative: sha256(path) for relative, path in paths.items()}
        job = Job(
            versions={name: here[name] for name in needed if name in here},
            sources=sources(),
            machines=tuple(sorted(machine_kind(item) for item in self.machines)),
            model=Manifest(manifest.model, manifest.inputs, manifest.outputs, (), golden=manifest.golden),
            artifacts=trial.artifacts,
            reference=trial.reference,
            input=trial.input,
            output=scoring.output if isinstance(scoring, Top1 | MeanIou) else None,
            classes=scoring.classes if isinstance(scoring, MeanIou) else None,
            exact_sums=tuple(sorted(trial.exact_sums)),
            files=hashes,
        )
        document = dumped(job).encode()
        hashed = hashlib.sha256(document).hexdigest()
        files: dict[str, Path | bytes] = {hashes[relative]: path for relative, path in paths.items()}
        return _Order(job, hashed, {**files, hashed: document})


def _files(bundle: Bundle, trial: Trial) -> Iterator[tuple[str, Path]]:
    """The files that a trial opens, by their paths in the bundle."""
    for relative in (*(item.path for item in trial.artifacts), *(("reference",) if trial.reference else ())):
        place = bundle.path(relative).resolve()
        if not place.is_dir():
            yield relative, place
        else:
            yield from ((f"{relative}/{file.relative_to(place).as_posix()}", file) for file in files_below(place))
    spec = next(item for item in bundle.manifest.inputs if item.name == trial.input)
    if spec.shape[0] is None and bundle.manifest.golden:
        yield "golden/inputs.npz", bundle.path("golden/inputs.npz")


def _scored_here(returned: Returned, packed: Packed, trial: Trial, maker: RowMaker) -> Predictions:
    """Make the rows of outputs that came back, as a process that has the images makes them."""
    part, sizes, spec = returned.part, returned.sizes, trial.bundle.manifest.model.preprocessing
    assert sizes is not None  # noqa: S101 - it was asked for outputs
    kept, asked, unreadable = [], [], list(part.unreadable)
    for column, row in enumerate(map(int, part.rows)):
        image, size = packed.shard.images[row - packed.shard.start], (int(sizes[column, 0]), int(sizes[column, 1]))
        try:
            asked.append(Asked(trial.scoring.label(image, size, spec), EvaluatedImage(image.name, *size)))
            kept.append(column)
        except UsageError as error:
            unreadable.append((row, str(error)))
    found = Predictions(
        part.rows[kept], {}, asked, {}, part.signal[kept], part.noise[:, kept], part.nonfinite[:, kept],
        sorted(unreadable), dict(part.failures), part.runtimes,
    )  # fmt: skip
    for index in sorted(part.scored):
        rows = []
        try:
            for column, there in enumerate(kept):
                outputs = returned.given[index, there]
                try:
                    rows.append(maker.row(outputs, None, found, index, column))
                except MetricError as error:
                    if not found.nonfinite[index, column]:
                        raise
                    raise ValueError(f"NaN or infinity in its outputs; {error}") from None
        except (ValueError, KeyError, IndexError) as error:
            found.failures[index] = Failure(str(error), missing=False)
            continue
        if rows:
            found.scored[index] = np.stack(rows)
    return found


def _nothing_read(packed: Packed, trial: Trial) -> Predictions:
    shape = (trial.subjects, 0)
    return Predictions(
        np.zeros(0, np.int64), {}, [], {}, np.zeros(0), np.zeros(shape), np.zeros(shape, np.bool_), packed.unreadable
    )


def _stepped(step: Callable[[], None], packed: Packed) -> None:
    for _ in packed.shard.images:
        step()


def _refused(reasons: Sequence[str], workers: int) -> TargetError:
    more = f"; and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
    return TargetError(
        f"{len(reasons)} of {counted(workers, 'worker')} would not answer as this machine does: "
        f"{'; '.join(reasons[:NAMED])}{more}. Install the same versions there, or leave them out"
    )


def _first_and_soon(begun: "Sequence[concurrent.futures.Future[T]]", timeout_s: float) -> bool:
    """Wait for the first, and a while longer for the others; whether there was a first one in time."""
    done, _ = concurrent.futures.wait(begun, timeout_s, concurrent.futures.FIRST_COMPLETED)
    if done:
        concurrent.futures.wait(begun, LATE_S)
    return bool(done)


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    """Ask Dask's client on its own thread, where it gives what can be awaited."""
    return await work()


async def _cancelled(futures: Sequence[_Future]) -> None:
    for future in futures:
        with suppress(Exception):
            await future.cancel()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
