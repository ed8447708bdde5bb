"""What travels between this machine and the workers of a cluster: text that is JSON, and bytes with their hashes.

    here → worker   the job: versions it must have, artifacts, what is scored, hashes of files; it is a file itself
                    files of the bundle, in pieces; each once per worker
                    a shard: images as records, and the bytes of their files
    worker → here   an introduction: versions, its machine
                    the answer: a document, and the arrays as ``.npz``

Whatever comes back is held to what was asked before anything is made of it.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy import __file__ as package
from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, Origin, Preprocessing
from coordatt_deploy.data.archives import ArchiveError, read_npz
from coordatt_deploy.data.dataset import FileBytes, InputTensor, LabelledImage, Pixels
from coordatt_deploy.data.images import load_image
from coordatt_deploy.documents import DocumentError, from_json, parse_object, to_json, write
from coordatt_deploy.errors import BundleError, TargetError, UsageError
from coordatt_deploy.evaluation.paired import NOT_FINITE
from coordatt_deploy.evaluation.predictions import Failure, Predictions, Shard, Trial
from coordatt_deploy.evaluation.result import MetricRecord
from coordatt_deploy.evaluation.scoring import Asked, MeanIou, Outputs, Scorer, Scoring, Top1
from coordatt_deploy.files import open_regular
from coordatt_deploy.host import Host
from coordatt_deploy.manifest import Manifest

TRUTH: Final = ":truth"  # behind an image's number, in the names of blobs

K = TypeVar("K", np.int64, np.float64, np.bool_)


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a worker is.

    Attributes:
        versions: Of everything that has a hand in a figure; see ``host.tool_versions``.
        sources: Hash of this package's own code there.
        host: Its machine.
    """

    versions: Mapping[str, str]
    sources: str
    host: Host


@dataclass(frozen=True, slots=True)
class Job:
    """A trial, for a machine that has neither the bundle nor the images.

    Attributes:
        versions: That a worker must have, by distribution.
        sources: Hash of this package's own code.
        machines: Kinds of machines that may answer; see ``machine_kind``.
        model: The manifest without what no worker needs.
        artifacts: See ``Trial``, as the next two.
        reference: Likewise.
        input: Likewise.
        output: Of what is scored there; None where outputs are to come back.
        classes: Of a mask; None for top-1.
        exact_sums: See ``Trial``.
        files: Hash by path in the bundle.
    """

    versions: Mapping[str, str]
    sources: str
    machines: tuple[str, ...]
    model: Manifest
    artifacts: tuple[Artifact, ...]
    reference: bool
    input: str
    output: str | None
    classes: int | None
    exact_sums: tuple[str, ...]
    files: Mapping[str, str]

    @property
    def scoring(self) -> Scoring:
        """What a worker makes of outputs."""
        if self.output is None:
            return Given()
        return Top1(self.output) if self.classes is None else MeanIou(self.output, self.classes)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a shard; what it holds is a blob, or two.

    Attributes:
        row: Which of the dataset.
        name: See ``LabelledImage``.
        label: Likewise.
        kind: ``file``, ``pixels``, ``digit`` or ``tensor``.
        sha256: Of the blob where it was read.
        path: Of the file; empty for what was in memory.
        shape: Of what was in memory.
        truth_sha256: Of the blob of its mask; None without.
        truth_path: Of the mask's file; empty for what was in memory.
        truth_shape: Of what was in memory.
    """

    row: int
    name: str
    label: int
    kind: str
    sha256: str
    path: str = ""
    shape: tuple[int, ...] = ()
    truth_sha256: str | None = None
    truth_path: str = ""
    truth_shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The images of a shard that could be read here."""

    images: tuple[ImageRecord, ...]


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """An image that could not be read, by its place in the dataset."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class SubjectFailure:
    """Why a subject gave no answers; see ``Failure``."""

    subject: int
    text: str
    missing: bool


@dataclass(frozen=True, slots=True)
class SubjectRuntime:
    """What ran a subject."""

    subject: int
    name: str
    origin: Origin | None


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """What a worker says of a shard.

    Attributes:
        worker: Its address.
        lacks: Whether it has not got the files of the job, so that nothing was done.
        refused: Why it does not work for this job; None where it does.
        error: Class of what was raised; None where nothing was.
        error_text: Of it.
        unreadable: Images.
        failures: Subjects.
        runtimes: What ran them.
        outputs: Names of the outputs that came back.
    """

    worker: str
    lacks: bool = False
    refused: str | None = None
    error: str | None = None
    error_text: str = ""
    unreadable: tuple[UnreadableRow, ...] = ()
    failures: tuple[SubjectFailure, ...] = ()
    runtimes: tuple[SubjectRuntime, ...] = ()
    outputs: tuple[str, ...] = ()


def dumped(record: Introduction | Job | ShardRecord | AnswerRecord) -> str:
    """Return a record as text."""
    document = to_json(record)
    assert isinstance(document, dict)  # noqa: S101 - a dataclass is an object
    return write(document, indent=None)


def read_introduction(text: object, worker: str) -> Introduction:
    """Read what a worker said of itself.

    Raises:
        TargetError: It is no such text.
    """
    try:
        return from_json(Introduction, parse_object(_text(text)))
    except (DocumentError, ValueError) as error:
        raise TargetError(f"the worker {worker} introduces itself in words that cannot be read: {error}") from None


def read_job(text: str) -> Job:
    """Read a job, on a worker."""
    return from_json(Job, parse_object(text))


def machine_kind(host: Host) -> str:
    """Return what two machines have in common that compute the same: CPU family and instruction sets."""
    return " ".join((host.architecture, *host.features))


@cache
def sources() -> str:
    """Return the hash of this package's own code that evaluates; files that a wheel has elsewhere are left out."""
    root, digest = Path(package).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0] not in ("exporters", "models"):
            digest.update(f"{relative.as_posix()}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


class Given:
    """Scores nothing: the outputs themselves go back, and what is made of them is made where the user's code is."""

    def __init__(self) -> None:
        """Hold none yet."""
        self.held: dict[str, dict[str, dict[str, NDArray[np.float32]]]] = {}

    @property
    def record(self) -> MetricRecord:
        """Return a name for it; no document has it."""
        return MetricRecord("outputs", higher_is_better=True, unit="")

    @property
    def outputs(self) -> tuple[str, ...]:
        """All of them."""
        return ()

    @property
    def keeps_outputs(self) -> bool:
        """No: a row is empty."""
        return False

    def scorer(self) -> Scorer:
        """Return itself."""
        return self

    def label(self, image: LabelledImage, size: tuple[int, int], preprocessing: Preprocessing) -> None:
        """None is needed."""

    def row(self, outputs: Outputs, baseline: Outputs | None, asked: Asked) -> NDArray[np.float64]:  # noqa: ARG002 - the protocol's
        """Hold the outputs by subject and image; the row is (H, W) of the image."""
        given = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
        self.held.setdefault(asked.subject, {})[asked.image.name] = given
        return np.array([asked.image.height, asked.image.width], np.float64)


@dataclass(slots=True, eq=False)
class Packed:
    """A shard as it travels.

    Attributes:
        shard: The shard.
        document: A ``ShardRecord``.
        blobs: What images hold, by row; masks with ``TRUTH`` behind it.
        unreadable: Images that could not even be read here.
    """

    shard: Shard
    document: str
    blobs: dict[str, bytes]
    unreadable: list[tuple[int, str]] = field(default_factory=list)


def pack(shard: Shard, *, masks: bool) -> Packed:
    """Read the images of a shard.

    Args:
        shard: Which.
        masks: Whether their masks are needed there.
    """
    packed, records = Packed(shard, "", {}), []
    for row, image in enumerate(shard.images, shard.start):
        try:
            kind, data, path, shape = _source(image)
            truth = _mask(image) if masks else None
        except UsageError as error:
            packed.unreadable.append((row, str(error)))
            continue
        packed.blobs[str(row)] = data
        record = ImageRecord(row, image.name, image.label, kind, hashlib.sha256(data).hexdigest(), path, shape)
        if truth is not None:
            mask, mask_path, mask_shape = truth
            packed.blobs[f"{row}{TRUTH}"] = mask
            hashed = hashlib.sha256(mask).hexdigest()
            record = replace(record, truth_sha256=hashed, truth_path=mask_path, truth_shape=mask_shape)
        records.append(record)
    packed.document = dumped(ShardRecord(tuple(records)))
    return packed


def _source(image: LabelledImage) -> tuple[str, bytes, str, tuple[int, ...]]:
    source = image.source
    if isinstance(source, Path):
        return "file", _file(source), str(source), ()
    if isinstance(source, FileBytes):
        return "file", source.data, str(source.path), ()
    kind = "tensor" if isinstance(source, InputTensor) else "digit" if source.digit else "pixels"
    return kind, np.ascontiguousarray(source.values).tobytes(), "", source.values.shape


def _mask(image: LabelledImage) -> tuple[bytes, str, tuple[int, ...]]:
    truth = image.truth
    if isinstance(truth, Path):
        return _file(truth), str(truth), ()
    if isinstance(truth, np.ndarray):
        return np.ascontiguousarray(truth.astype(np.int64)).tobytes(), "", truth.shape
    raise TypeError(f"{image.name}: a {type(truth).__name__} is no mask")


def _file(path: Path) -> bytes:
    try:
        with open_regular(path, follow_link=True) as stream:
            return stream.read()
    except (OSError, BundleError):
        load_image(path)  # says what is wrong, as everywhere else
        raise


def unpack(document: str, blobs: Mapping[str, bytes]) -> list[tuple[int, LabelledImage]]:
    """Return the images of a shard with their places in the dataset, on a worker.

    Raises:
        TargetError: Something is not what it was where it was read.
    """
    found = []
    for record in from_json(ShardRecord, parse_object(document)).images:
        data = _checked(record.name, blobs[str(record.row)], record.sha256)
        source: FileBytes | Pixels | InputTensor
        if record.kind == "file":
            source = FileBytes(Path(record.path), data)
        elif record.kind == "tensor":
            source = InputTensor(np.frombuffer(data, np.float32).reshape(record.shape))
        else:
            source = Pixels(np.frombuffer(data, np.uint8).reshape(record.shape), digit=record.kind == "digit")
        truth: FileBytes | NumberArray | None = None
        if record.truth_sha256 is not None:
            mask = _checked(f"the mask of {record.name}", blobs[f"{record.row}{TRUTH}"], record.truth_sha256)
            truth = (
                FileBytes(Path(record.truth_path), mask)
                if record.truth_path
                else np.frombuffer(mask, np.int64).reshape(record.truth_shape)
            )
        found.append((record.row, LabelledImage(record.name, record.label, source, truth)))
    return found


def _checked(name: str, data: bytes, sha256: str) -> bytes:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise TargetError(f"{name} did not arrive as it was sent: its sha256 is another one")
    return data


def pack_answer(part: Predictions, given: Given | None, names: Sequence[str], worker: str) -> tuple[str, bytes]:
    """Return what a worker found as it travels.

    Args:
        part: What it found.
        given: Outputs, where these go back.
        names: Of the subjects.
        worker: Its address.
    """
    arrays: dict[str, NumberArray] = {
        "rows": part.rows, "signal": part.signal, "noise": part.noise, "nonfinite": part.nonfinite,
        **{f"scored/{index}": rows for index, rows in part.scored.items()},
    }  # fmt: skip
    outputs: dict[str, int] = {}
    for index in part.scored if given is not None else ():
        assert given is not None  # noqa: S101 - for the type checker
        for column, asked in enumerate(part.asked):
            for name, value in given.held[names[index]][asked.image.name].items():
                arrays[f"given/{index}/{column}/{outputs.setdefault(name, len(outputs))}"] = value
    record = AnswerRecord(
        worker,
        unreadable=tuple(UnreadableRow(row, reason) for row, reason in part.unreadable),
        failures=tuple(SubjectFailure(index, item.text, item.missing) for index, item in part.failures.items()),
        runtimes=tuple(SubjectRuntime(index, *item) for index, item in part.runtimes.items()),
        outputs=tuple(outputs),
    )
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return dumped(record), stream.getvalue()


def read_answer(raw: object) -> tuple[AnswerRecord, bytes]:
    """Read what a worker says, before the arrays are looked at.

    Raises:
        TargetError: It is no such answer.
    """
    try:
        text, data = raw if isinstance(raw, tuple | list) and len(raw) == 2 else (None, None)
        if not isinstance(data, bytes):
            raise ValueError(f"a {type(raw).__name__}")
        return from_json(AnswerRecord, parse_object(_text(text))), data
    except (DocumentError, ValueError) as error:
        raise TargetError(f"a worker answers what cannot be read: {error}") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} in place of text")
    return value


@dataclass(frozen=True, slots=True, eq=False)
class Returned:
    """What came back for a shard, held to what was asked.

    Attributes:
        part: As if it had been found here.
        sizes: (H, W) of each image, where outputs came back.
        given: Outputs by subject and column, likewise.
    """

    part: Predictions
    sizes: NDArray[np.int64] | None
    given: Mapping[tuple[int, int], dict[str, NDArray[np.float64]]]


def unpack_answer(record: AnswerRecord, data: bytes, packed: Packed, trial: Trial, job: Job) -> Returned:
    """Return what a worker found.

    Raises:
        TargetError: It is not what was asked: images, shapes, types or counts do not fit.
    """
    try:
        return _unpacked(record, read_npz(io.BytesIO(data)), packed, trial, job)
    except (ArchiveError, KeyError, ValueError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise TargetError(f"the answer of the worker {record.worker} does not fit what was asked: {what}") from None


def _unpacked(
    record: AnswerRecord, arrays: Mapping[str, NumberArray], packed: Packed, trial: Trial, job: Job
) -> Returned:
    start, count = packed.shard.start, len(packed.shard.images)
    rows = _like(arrays["rows"], "rows", np.int64, None)
    told = [*map(int, rows), *(item.row for item in record.unreadable), *(row for row, _ in packed.unreadable)]
    if sorted(told) != list(range(start, start + count)) or list(rows) != sorted(rows):
        raise ValueError(f"it tells of the images {sorted(told)[:20]}, asked were {start} to {start + count - 1}")
    known = range(trial.subjects)
    subjects = [*(item.subject for item in record.failures), *(item.subject for item in record.runtimes)]
    strangers = [subject for subject in subjects if subject not in known]
    if strangers:
        raise ValueError(f"it tells of subject {strangers[0]}, there are {trial.subjects}")
    failures = {item.subject: Failure(item.text, item.missing) for item in record.failures}
    read = len(rows)
    scored: dict[int, NDArray[np.float64]] = {}
    width = 2 if job.classes is None else 3 * job.classes + 2
    for index in known:
        if index in failures or not read:
            continue
        values = _like(arrays[f"scored/{index}"], f"scored/{index}", np.float64, (read, width))
        if not np.isfinite(values).all() or (values != np.rint(values)).any() or values.min() < NOT_FINITE:
            raise ValueError(f"scored/{index} holds what is no count")
        scored[index] = values
    part = Predictions(
        rows,
        scored,
        [],
        {},
        _like(arrays["signal"], "signal", np.float64, (read,)),
        _like(arrays["noise"], "noise", np.float64, (trial.subjects, read)),
        _like(arrays["nonfinite"], "nonfinite", np.bool_, (trial.subjects, read)),
        sorted([*packed.unreadable, *((item.row, item.reason) for item in record.unreadable)]),
        failures,
        {item.subject: (item.name, item.origin) for item in record.runtimes},
    )
    if job.output is not None:
        return Returned(part, None, {})
    given: dict[tuple[int, int], dict[str, NDArray[np.float64]]] = {}
    for index in scored:
        for column in range(read):
            places = {name: f"given/{index}/{column}/{place}" for place, name in enumerate(record.outputs)}
            given[index, column] = {
                name: arrays[place].astype(np.float64) for name, place in places.items() if place in arrays
            }
    sizes = next(iter(scored.values()), np.zeros((read, 2))).astype(np.int64)
    return Returned(part, sizes, given)


def _like(array: NumberArray, name: str, kind: type[K], shape: tuple[int, ...] | None) -> NDArray[K]:
    fits = array.ndim == 1 if shape is None else array.shape == shape
    if array.dtype != kind or not fits:
        raise ValueError(f"{name} is {array.dtype} {array.shape}; expected {np.dtype(kind)} {shape or '(N,)'}")
    return cast("NDArray[K]", array)
