"""What travels between this machine and workers: whatever arrives otherwise than it was sent is refused."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
from colours import BLIND_TO_BLUE, IMAGE, RIGHT

from coordatt_deploy.data.dataset import InputTensor, LabelledImage, Pixels
from coordatt_deploy.errors import TargetError
from coordatt_deploy.evaluation.cluster_messages import (
    AnswerRecord,
    Job,
    UnreadableRow,
    dumped,
    pack,
    pack_answer,
    read_answer,
    read_introduction,
    sources,
    unpack,
    unpack_answer,
)
from coordatt_deploy.evaluation.cluster_worker import FileStore
from coordatt_deploy.evaluation.predictions import Predictions, Shard, Trial
from coordatt_deploy.evaluation.scoring import Top1
from coordatt_deploy.manifest import Manifest

WORKER = "tcp://worker:1"


@pytest.fixture
def asked(bundle, photos):
    """Four images from the tenth on, and the job that they are asked for, of two files."""
    opened, folder = bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(4)
    images = tuple(LabelledImage(path.name, 1, path) for path in sorted((folder / "green").iterdir()))
    trial = Trial(opened, opened.manifest.artifacts, False, IMAGE.name, Top1("logits"))
    manifest = Manifest(opened.manifest.model, opened.manifest.inputs, opened.manifest.outputs, ())
    job = Job({}, sources(), (), manifest, trial.artifacts, False, IMAGE.name, "logits", None, (), {})
    return pack(Shard(10, images), masks=False), trial, job


def found(**changes):
    part = Predictions(
        np.arange(10, 14), {0: np.array([[1.0, 0.0]] * 4), 1: np.array([[2.0, 1.0]] * 4)}, [], {}, np.ones(4),
        np.zeros((2, 4)), np.zeros((2, 4), np.bool_),
    )  # fmt: skip
    return replace(part, **changes)


def returned(asked, part, **record):
    text, data = pack_answer(part, None, asked[1].names, WORKER)
    said, data = read_answer((text, data))
    return unpack_answer(replace(said, **record), data, *asked)


def test_an_answer_arrives_as_it_was_found(asked):
    """
    Every array, in its type and place.
    """
    part = returned(asked, found()).part

    assert list(range(10, 14)) == list(part.rows)
    assert np.array_equal(found().scored[1], part.scored[1])
    assert (np.dtype(bool), (2, 4)) == (part.nonfinite.dtype, part.nonfinite.shape)


@pytest.mark.parametrize(
    ("changes", "record", "said"),
    [
        ({"rows": np.arange(9, 13)}, {}, "it tells of the images .*, asked were 10 to 13"),
        ({"rows": np.array([10, 10, 11, 12])}, {}, "it tells of the images"),
        ({}, {"unreadable": (UnreadableRow(13, "no"),)}, "it tells of the images"),
        ({"rows": np.arange(10, 14).astype(np.float64)}, {}, "rows is float64"),
        ({"signal": np.ones(3)}, {}, r"signal is float64 \(3,\)"),
        ({"noise": np.zeros((1, 4))}, {}, "noise is float64"),
        ({"nonfinite": np.zeros((2, 4))}, {}, "nonfinite is float64"),
        ({"scored": {0: np.ones((4, 2))}}, {}, "scored/1 is missing"),
        ({"scored": {0: np.ones((4, 2)), 1: np.ones((4, 3))}}, {}, r"scored/1 is float64 \(4, 3\)"),
        ({"scored": {0: np.ones((4, 2)), 1: np.full((4, 2), np.nan)}}, {}, "scored/1 holds what is no count"),
        ({"scored": {0: np.full((4, 2), 0.5), 1: np.ones((4, 2))}}, {}, "scored/0 holds what is no count"),
        ({"scored": {0: np.full((4, 2), -7.0), 1: np.ones((4, 2))}}, {}, "scored/0 holds what is no count"),
        ({"runtimes": {7: ("onnxruntime", None)}}, {}, "it tells of subject 7, there are 2"),
    ],
)  # fmt: skip
def test_an_answer_to_something_else_is_refused(asked, changes, record, said):
    """
    With the worker's address and what does not fit.
    """
    with pytest.raises(TargetError, match=f"the answer of the worker {WORKER} does not fit what was asked: {said}"):
        returned(asked, found(**changes), **record)


def pickled():
    stream = io.BytesIO()
    np.savez(stream, rows=np.array([print], object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize("data", [b"", b"PK", b"\x80\x04.", pickled()])
def test_arrays_that_are_no_numbers_are_refused(asked, data):
    """
    An archive is read without Python's pickles.
    """
    with pytest.raises(TargetError, match="does not fit what was asked"):
        unpack_answer(AnswerRecord(WORKER), data, *asked)


@pytest.mark.parametrize(
    "raw", [None, 1, "text", ("{}",), ("{}", b""), ("[1]", b""), (b"{}", b""), ("{", b""), ({}, b"")]
)
def test_what_is_no_answer_is_refused(raw):
    """
    Whatever a worker returns in its place.
    """
    with pytest.raises(TargetError, match="a worker answers what cannot be read"):
        read_answer(raw)
    with pytest.raises(TargetError, match=f"the worker {WORKER} introduces itself in words that cannot be read"):
        read_introduction(raw, WORKER)


def test_images_of_every_kind_arrive(tmp_path):
    """
    Files as their bytes, arrays in their shapes; masks too.
    """
    generator = np.random.default_rng(0)
    pixels, tensor = generator.integers(0, 255, (8, 9, 3)).astype(np.uint8), generator.random((3, 4, 5), np.float32)
    mask = generator.integers(0, 3, (8, 9)).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(b"bytes")
    images = (
        LabelledImage("file", 0, tmp_path / "a.png", tmp_path / "a.png"),
        LabelledImage("pixels", 1, Pixels(pixels), mask),
        LabelledImage("digit", 2, Pixels(pixels[:8, :8, 0], digit=True), mask),
        LabelledImage("tensor", 3, InputTensor(tensor), mask),
        LabelledImage("absent", 4, tmp_path / "b.png", mask),
    )
    packed = pack(Shard(5, images), masks=True)
    arrived = [image for _, image in unpack(packed.document, packed.blobs)]

    assert [(9, f"there is no image {tmp_path / 'b.png'}")] == packed.unreadable
    assert ["file", "pixels", "digit", "tensor"] == [image.name for image in arrived]
    assert b"bytes" == arrived[0].source.data == arrived[0].truth.data
    assert np.array_equal(pixels, arrived[1].source.values)
    assert np.array_equal(mask, arrived[1].truth)
    assert arrived[2].source.digit
    assert np.array_equal(tensor, arrived[3].source.values)


def test_an_image_that_arrives_damaged_is_refused(asked):
    """
    One bit is enough.
    """
    packed = asked[0]
    blobs = {**packed.blobs, "12": bytes([packed.blobs["12"][0] ^ 1, *packed.blobs["12"][1:]])}
    with pytest.raises(TargetError, match=r"2\.png did not arrive as it was sent"):
        unpack(packed.document, blobs)


def test_files_of_a_worker_are_called_by_their_hashes(tmp_path, asked):
    """
    A file with another hash is not kept, a path is no hash, and a job whose files are not there is not begun.
    """
    store = FileStore(tmp_path / "store")
    job = asked[2]
    document = dumped(replace(job, files={"onnx/right.onnx": "0" * 64})).encode()
    with pytest.raises(TargetError, match="did not arrive as it was sent"):
        store.add("1" * 64, 0, len(document), document)
    for name in ("../../x", "", "0" * 63, "A" * 64, "0" * 63 + "/"):
        with pytest.raises(TargetError, match="is no sha256"):
            store.file(name)

    assert store.job("1" * 64) is None
    assert [] == [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_a_file_that_two_send_at_once_arrives(tmp_path):
    """
    Pieces of two senders in any order make one file; what an earlier, longer transfer left makes no part of it.
    """
    store = FileStore(tmp_path / "store")
    data = bytes(range(256)) * 12
    hashed = hashlib.sha256(data).hexdigest()
    pieces = [(start, data[start : start + 1024]) for start in (0, 1024, 2048)]
    store.file(hashed).with_suffix(".part").write_bytes(b"?" * 5000)
    for start, piece in (pieces[0], pieces[1], pieces[0], pieces[2]):
        store.add(hashed, start, len(data), piece)
    assert data == store.file(hashed).read_bytes()
    store.add(hashed, *pieces[1][:1], len(data), pieces[1][1])
    assert data == store.file(hashed).read_bytes()
