"""Archives from anybody: arrays of plain numbers come out as NumPy wrote them, everything else is one line."""

import io
import zipfile

import numpy as np
import pytest

from coordatt_deploy.artifact_specs import Preprocessing, TensorSpec
from coordatt_deploy.data import archives
from coordatt_deploy.data.archives import ArchiveError, read_npz
from coordatt_deploy.data.arrays import read_inputs
from coordatt_deploy.data.calibration import load_calibration
from coordatt_deploy.errors import UsageError

VALUES = {"image": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)}


def packed(arrays=VALUES, *, pack=np.savez, **options):
    stream = io.BytesIO()
    pack(stream, **arrays, **options)
    return stream.getvalue()


def rewritten(change):
    """The archive with the bytes of its one entry changed."""
    entry = zipfile.ZipFile(io.BytesIO(packed())).read("image.npy")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("image.npy", change(entry))
    return stream.getvalue()


def with_shape(text):
    """The header keeps its length."""
    return lambda entry: entry.replace(b"(2, 3, 2, 2)", text.ljust(12))


def flagged(mask, offset):
    """Set bits of the entry, in both places that have them; as encryption and other compressions do."""
    content = bytearray(packed())
    for mark, at in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
        content[content.index(mark) + at] |= mask
    return bytes(content)


def corrupted():
    content = bytearray(packed(pack=np.savez_compressed))
    start = content.index(b"image.npy") + 30
    content[start : start + 20] = b"\xff" * 20
    return bytes(content)


def twins():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("image.npy", "imagf.npy"):
            archive.writestr(name, zipfile.ZipFile(io.BytesIO(packed())).read("image.npy"))
    return stream.getvalue().replace(b"imagf", b"image")


HOSTILE = {
    "not an archive": (lambda: b"PK nothing", "BadZipFile"),
    "empty file": (lambda: b"", "BadZipFile"),
    "encrypted": (lambda: flagged(1, 6), "is encrypted"),
    "another compression": (lambda: flagged(12, 8), "compressed in a way"),
    "damaged stream": (corrupted, ""),
    "checksum": (lambda: packed().replace(b"\x00\x00\x80\x3f", b"\x00\x00\x80\x40", 1), "CRC"),
    "more than is there": (lambda: rewritten(with_shape(b"(999999999,)")), "needs 3,999,999,996 bytes and has 96"),
    "less than nothing": (lambda: rewritten(with_shape(b"(-1,)")), "has the shape"),
    "no number": (lambda: rewritten(with_shape(b"(True,)")), "has the shape|"),
    "no Python": (lambda: rewritten(lambda entry: entry.replace(b"False", b"Fals(")), "|"),
    "cut": (lambda: rewritten(lambda entry: entry[:-5]), "needs 96 bytes and has 91"),
    "no magic": (lambda: rewritten(lambda entry: b"x" + entry[1:]), "magic"),
    "objects": (lambda: packed({"image": np.array([{}])}), "type object"),
    "texts": (lambda: packed({"image": np.array(["a"])}), "not an array of plain numbers"),
    "records": (lambda: packed({"image": np.zeros(2, "f4,i4")}), "not an array of plain numbers"),
    "complex": (lambda: packed({"image": np.zeros(2, "c8")}), "not an array of plain numbers"),
    "twice": (twins, "stands there twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_archive_of_numbers_is_one_line(name, tmp_path):
    """
    For the reader, and for both commands' data that go through it.
    """
    make, said = HOSTILE[name]
    path = tmp_path / "a.npz"
    path.write_bytes(make())

    with pytest.raises(ArchiveError, match=said) as caught, path.open("rb") as stream:
        read_npz(stream)
    assert "\n" not in str(caught.value)
    spec = (TensorSpec("image", (1, 3, 2, 2), "float32", "NCHW"),)
    for read in (read_inputs, load_calibration):
        with pytest.raises(UsageError, match=r"a\.npz cannot be read as \.npz"):
            read(path, spec, Preprocessing((2, 2)))


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
def test_arrays_come_out_as_numpy_wrote_them(pack):
    """
    Of every type, shape and order, and they can be written to.
    """
    rng = np.random.default_rng(0)
    arrays = {
        "half": rng.normal(size=(2, 3)).astype(np.float16), "bytes": np.arange(4, dtype=np.uint8),
        "scalar": np.float64(2.5), "none": np.zeros((0, 3), np.int32), "truth": np.array([True, False]),
        "fortran": np.asfortranarray(rng.normal(size=(3, 4, 5))), "big": np.arange(5, dtype=">f4"),
    }  # fmt: skip

    found = read_npz(io.BytesIO(packed(arrays, pack=pack)))

    assert list(arrays) == list(found)
    for name, expected in arrays.items():
        np.testing.assert_array_equal(expected, found[name])
        assert expected.dtype.newbyteorder("=") == found[name].dtype
        found[name][...] = 0


def test_more_than_fits_is_refused_before_it_is_read(monkeypatch):
    """
    By what the archive's directory says, which the entries are held to.
    """
    monkeypatch.setattr(archives, "MOST_BYTES", 200)

    with pytest.raises(ArchiveError, match="200 at most are read"):
        read_npz(io.BytesIO(packed(pack=np.savez_compressed)))
