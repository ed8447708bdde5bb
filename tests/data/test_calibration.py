import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.conversion.calibration import calibration_of, calibration_record
from coordatt_deploy.conversion.plan import QuantizePlan
from coordatt_deploy.data.calibration import (
    ASIDE,
    MINIMUM,
    PACKAGED,
    CalibrationSet,
    digits_calibration,
    load_calibration,
)
from coordatt_deploy.data.digits import read_split
from coordatt_deploy.data.images import normalise, preprocess
from coordatt_deploy.errors import UsageError
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.models import model_card
from coordatt_deploy.quantization.recipes import parse
from coordatt_deploy.tensors import weights_sha256

PREPROCESSING = Preprocessing(size=(16, 20))
IMAGE = TensorSpec("image", (1, 3, 16, 20), "float32", "NCHW")


def photo(seed, size=(40, 32)):
    """An image of several colours, unlike the others."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)


@pytest.fixture
def folder(tmp_path):
    for index in range(30):
        path = tmp_path / "photos" / f"kind_{index % 3}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(index).save(path)
    return tmp_path / "photos"


def tensors(count=30):
    return np.stack([preprocess(photo(index), PREPROCESSING) for index in range(count)])


@pytest.fixture
def saved(tmp_path):
    def save(array, name="image"):
        np.savez(tmp_path / "data.npz", **{name: array})
        return tmp_path / "data.npz"

    return save


def load(source, **options):
    return load_calibration(source, [IMAGE], PREPROCESSING, **options)


def test_images_go_through_the_models_own_preprocessing(folder):
    """
    Each tensor is what the app will make of that file.
    """
    data = load(folder)

    assert (24, 3, 16, 20) == data.arrays["image"].shape
    for name, array in zip(data.names, data.arrays["image"], strict=True):
        assert np.array_equal(array, preprocess(Image.open(folder / name), PREPROCESSING))


def test_the_seed_chooses_and_the_same_seed_chooses_the_same(folder):
    """
    Count and seed decide which images; the hash tells whether it was the same data.
    """
    one, same, other = load(folder, count=10), load(folder, count=10), load(folder, count=10, seed=1)

    assert 10 == len(one) == len(other)
    assert (one.names, one.fingerprint) == (same.names, same.fingerprint)
    assert set(one.names) != set(other.names)
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize(("count", "aside"), [(200, 6), (10, 5), (26, 6)])
def test_some_images_are_set_aside(folder, count, aside):
    """
    Nothing is measured on them, and they are of the same kind.
    """
    data = load(folder, count=count)

    assert data.aside is not None
    assert not set(data.aside.names) & set(data.names)
    assert 1 <= len(data.aside) <= min(ASIDE, aside)
    assert len(data) + len(data.aside) <= 30
    assert len(data.aside) == calibration_record(data).held_out


def test_an_archive_of_tensors_is_the_same_as_the_folder(folder, saved):
    """
    Values, not places, decide the hash.
    """
    data = load(folder)

    again = load(saved(np.concatenate([data.arrays["image"], data.aside.arrays["image"]])))

    assert sorted(map(bytes, again.arrays["image"])) != []
    assert len(again) == len(data)
    assert set(map(bytes, again.arrays["image"])) <= set(map(bytes, tensors()))


def test_the_digits_are_training_images():
    """
    No held-out digit is among them; the digits set aside are held out.
    """
    data = digits_calibration([IMAGE], PREPROCESSING, count=50)
    held_out = {f"digit_{index}" for index in read_split("held_out").indices}

    assert 50 == len(data)
    assert not held_out & set(data.names)
    assert set(data.aside.names) <= held_out


def test_batches_leave_out_what_does_not_fill_the_last():
    """
    A model that takes two images gets pairs.
    """
    data = CalibrationSet("made up", {"image": np.zeros((5, 1), np.float32)}, tuple("abcde"), 0)

    assert [2, 2] == [len(feeds["image"]) for feeds in data.feeds(2)]


@pytest.mark.parametrize("source", ["absent", "absent.npz"])
def test_no_such_place(tmp_path, source):
    """
    The place is named, and what would do.
    """
    with pytest.raises(UsageError, match=f"no calibration data at .*{source}.*folder of images"):
        load(tmp_path / source)


def test_an_empty_folder(tmp_path):
    """
    What files were expected is said.
    """
    with pytest.raises(UsageError, match=r"holds no image.*\.png"):
        load(tmp_path)


def test_a_folder_of_unreadable_images(folder):
    """
    They are named, and beyond a tenth of them nothing is calibrated.
    """
    for path in sorted(folder.rglob("*.png"))[:10]:
        path.write_bytes(b"not an image")

    with pytest.raises(UsageError, match=r"10 of 30 images cannot be read: kind_\d/\d\d\.png .* and 5 more"):
        load(folder)


def test_one_unreadable_image_is_said_and_replaced(folder):
    """
    Named in a note that travels into the manifest.
    """
    (folder / "kind_0" / "00.png").write_bytes(b"\x89PNG broken")

    notes = load(folder).notes

    assert any("1 of 30 images could not be read" in note and "kind_0/00.png" in note for note in notes)


def test_too_few(folder):
    """
    Below eight images nothing is measured; below sixty-four it is said.
    """
    assert any("only 24 images" in note or "only 30 images" in note for note in load(folder).notes)
    for path in sorted(folder.rglob("*.png"))[MINIMUM - 1 :]:
        path.unlink()

    with pytest.raises(UsageError, match="7 different images; ranges need at least 8"):
        load(folder)


@pytest.mark.parametrize("count", [0, -1, MINIMUM - 1])
def test_a_count_too_small(folder, count):
    """
    For the packaged digits as for a folder.
    """
    with pytest.raises(UsageError, match=f"--calibration-count is {count}"):
        load(folder, count=count)
    with pytest.raises(UsageError, match=f"--calibration-count is {count}"):
        digits_calibration([IMAGE], PREPROCESSING, count=count)


def test_copies_count_once(folder):
    """
    Twenty copies of one image are one image.
    """
    first, *others = sorted(folder.rglob("*.png"))
    for path in others[:20]:
        path.write_bytes(first.read_bytes())

    data = load(folder)

    assert any("20 of 30 images are copies" in note for note in data.notes)
    assert 10 == len(data) + len(data.aside)


def test_images_of_one_colour_each(folder):
    """
    Blank pages say nothing of activations.
    """
    for index, path in enumerate(sorted(folder.rglob("*.png"))):
        Image.new("RGB", (20, 20), (8 * index, 40, 200 - 5 * index)).save(path)

    with pytest.raises(UsageError, match="30 of 30 images are of one colour each"):
        load(folder)


def test_images_all_alike(folder):
    """
    Thirty frames of one scene are no sample.
    """
    pixels = np.array(photo(0))
    for index, path in enumerate(sorted(folder.rglob("*.png"))):
        changed = pixels.copy()
        changed[index % 32, index] ^= 1 + index % 3
        Image.fromarray(changed).resize((400, 400), Image.Resampling.NEAREST).save(path)

    with pytest.raises(UsageError, match=r"nearly alike|different images"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x * 50, "preprocessed images of this model lie within"),
        (lambda x: (x * 0.2).astype(np.float32), "as if they had not been normalised"),
        (lambda x: np.where(x > 2, np.nan, x).astype(np.float32), "NaN or infinity"),
        (lambda x: x.transpose(0, 2, 3, 1), "channels last: transpose"),
        (lambda x: x[:, :, :8], "has shape"),
        (lambda x: x[:, 0], "has shape"),
        (lambda x: (x * 50).clip(0, 255).astype(np.uint8), "must have been through the model's preprocessing"),
    ],
    ids=["pixels", "scaled", "nan", "layout", "size", "rank", "bytes"],
)
def test_tensors_that_cannot_be_what_they_should_be(saved, change, said):
    """
    The wrong range, layout or size is named, with the remedy.
    """
    with pytest.raises(UsageError, match=said):
        load(saved(change(tensors())))


def test_red_and_blue_exchanged(saved):
    """
    Where the channels have different bounds, the order shows.
    """
    bounds = [(np.array([0, 1]) - m) / s for m, s in zip(PREPROCESSING.mean, PREPROCESSING.std, strict=True)]
    array = tensors()
    array[0, :, 0, 0] = [low for low, _ in bounds]
    array[0, :, 0, 1] = [high for _, high in bounds]
    load(saved(array))

    with pytest.raises(UsageError, match=r"red and blue exchanged.*\[:, ::-1\]"):
        load(saved(np.ascontiguousarray(array[:, ::-1])))


@pytest.mark.parametrize("name", ["picture", "images"])
def test_an_array_of_another_name(saved, name):
    """
    The model's own names are given.
    """
    with pytest.raises(UsageError, match="image"):
        load(saved(tensors(), name))


def test_a_damaged_archive(tmp_path):
    """
    No traceback for a file that is no archive.
    """
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04 broken")

    with pytest.raises(UsageError, match=r"data\.npz cannot be read"):
        load(tmp_path / "data.npz")


def test_a_model_that_takes_no_image(folder):
    """
    A folder cannot feed it; an archive can.
    """
    spec = TensorSpec("features", (1, 12), "float32", "NC")

    with pytest.raises(UsageError, match=r"give an \.npz with every input"):
        load_calibration(folder, [spec], PREPROCESSING)


CHANNELS = {
    1: Preprocessing((16, 20), (0.5,), (0.5,), "GREY"),
    3: PREPROCESSING,
    4: Preprocessing((16, 20), (0.5, 0.4, 0.3, 0.2), (0.5,) * 4, "OTHER"),
}


def of_channels(channels, count=30, pixels=False):
    """Preprocessed tensors of a network of so many channels, or the pixels themselves as floats."""
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (count, 4, 5, channels), dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    if pixels:
        return raw.transpose(0, 3, 1, 2).astype(np.float32)
    return np.stack([normalise(image, CHANNELS[channels]) for image in raw])


@pytest.mark.parametrize("channels", CHANNELS)
def test_the_range_is_held_to_the_preprocessing_for_every_number_of_channels(channels, saved):
    """
    Pixels of 0 to 255 are refused, with what they should lie within; preprocessed ones are taken.
    """
    spec = TensorSpec("image", (1, channels, 16, 20), "float32", "NCHW")
    with pytest.raises(UsageError, match=r"values from 0 to 255, but preprocessed images of this model lie within"):
        load_calibration(saved(of_channels(channels, pixels=True)), [spec], CHANNELS[channels])
    with pytest.raises(UsageError, match=r"fill only \d+% of the .*as if they had not been normalised"):
        load_calibration(saved(of_channels(channels) * np.float32(0.1)), [spec], CHANNELS[channels])

    assert 24 == len(load_calibration(saved(of_channels(channels)), [spec], CHANNELS[channels]))


def test_a_grey_network_takes_a_folder_of_grey_images(folder):
    """
    Grey files as they are, coloured ones weighted to grey.
    """
    for path in list(folder.rglob("*.png"))[::2]:
        Image.open(path).convert("L").save(path)
    spec = TensorSpec("image", (1, 1, 16, 20), "float32", "NCHW")
    data = load_calibration(folder, [spec], CHANNELS[1])

    assert (24, 1, 16, 20) == data.arrays["image"].shape
    for name, array in zip(data.names, data.arrays["image"], strict=True):
        grey = np.asarray(Image.open(folder / name).convert("L").resize((20, 16), Image.Resampling.BILINEAR))
        assert np.allclose((grey / 255 - 0.5) / 0.5, array[0], atol=1e-6)


def test_channels_that_no_image_has_come_as_arrays(folder, tmp_path):
    """
    A folder of .npy files is read; a folder of images is refused with what to give.
    """
    spec = TensorSpec("image", (1, 4, 16, 20), "float32", "NCHW")
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    for index, array in enumerate(of_channels(4)):
        np.save(arrays / f"{index:02d}.npy", array)

    assert (24, 4, 16, 20) == load_calibration(arrays, [spec], CHANNELS[4]).arrays["image"].shape
    with pytest.raises(UsageError, match=r"give an \.npz with every input"):
        load_calibration(folder, [spec], CHANNELS[4])
    np.save(arrays / "99.npy", np.zeros((3, 16, 20), np.float32))
    with pytest.raises(UsageError, match=r"99\.npy holds \(3, 16, 20\), expected \(4, 16, 20\)"):
        load_calibration(arrays, [spec], CHANNELS[4])


def test_scenes_calibrate_the_network_that_was_trained_on_them():
    """
    Scenes of the training, further ones set aside; an embedded model finds its own by its weights.
    """
    data = PACKAGED["scenes"]([IMAGE], PREPROCESSING, count=12, seed=0)
    card = model_card("lraspp_mobilenetv2_ca_035.scenes")
    weights = weights_sha256(load_file(card.weights_path))
    spec = ModelSpec(card.name, PREPROCESSING, source_sha256=weights)
    recipe = parse("static_wi8_ai8")
    plan = QuantizePlan(recipes=(recipe,), count=12)
    own = calibration_of(plan, Manifest(spec, (IMAGE,), ()))

    assert "scenes" == own.source
    assert own.fingerprint == data.fingerprint
    assert [f"train_{number:03d}" for number in range(12)] == list(data.names)
    assert [f"train_{number:03d}" for number in range(12, 28)] == list(data.aside.names)
