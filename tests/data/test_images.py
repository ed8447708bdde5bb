import numpy as np
import pytest
from PIL import Image

from coordatt_deploy.artifact_specs import Preprocessing
from coordatt_deploy.data.images import as_png, find_images, load_image, preprocess
from coordatt_deploy.errors import UsageError

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "input_range": (0.0, 255.0)}  # tensor = pixel


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_formula_holds_per_channel():
    """
    Each channel is scaled to the input range, shifted by its mean and divided by its std.
    """
    pixels = noise(5, 7)
    spec = Preprocessing((5, 7), mean=(0.1, -0.2, 0.3), std=(0.5, 1.0, 2.0), input_range=(-1.0, 1.0))

    expected = ((-1 + pixels / 255 * 2 - [0.1, -0.2, 0.3]) / [0.5, 1.0, 2.0]).transpose(2, 0, 1).astype(np.float32)
    actual = preprocess(Image.fromarray(pixels), spec)

    assert (3, 5, 7) == actual.shape
    assert np.dtype(np.float32) == actual.dtype
    assert actual.flags.c_contiguous
    np.testing.assert_array_equal(expected, actual)


def test_defaults_are_imagenets():
    """
    Without options, white becomes (1 - mean) / std of ImageNet.
    """
    actual = preprocess(Image.new("RGB", (2, 2), "white"), Preprocessing((2, 2)))

    np.testing.assert_allclose([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225], actual[:, 0, 0], rtol=1e-6)


def test_bgr_reverses_the_channels_but_not_the_means():
    """
    In BGR, channel 0 is blue and takes the first mean.
    """
    red = Image.new("RGB", (1, 1), (200, 20, 2))
    spec = Preprocessing((1, 1), mean=(1.0, 10.0, 100.0), std=(1.0, 1.0, 1.0), input_range=(0.0, 255.0), colour="BGR")

    assert [1.0, 10.0, 100.0] == preprocess(red, spec).ravel().tolist()


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [(8, 8), (31, 17), (96, 50)])
def test_resizing_is_pillows(name, size):
    """
    Stretching to the input size gives the bits that Pillow's filter of that name gives.
    """
    image = Image.fromarray(noise(40, 33))
    filters = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "nearest": Image.NEAREST}

    expected = np.asarray(image.resize((size[1], size[0]), filters[name])).transpose(2, 0, 1)
    actual = preprocess(image, Preprocessing(size, resize=name, **PLAIN))

    np.testing.assert_array_equal(expected, actual)


@pytest.mark.parametrize(
    ("image_size", "size", "ratio", "covering", "offset"),
    [
        ((40, 64), (28, 28), 0.875, (32, 51), (2, 12)),  # landscape: 51.2 is cut, 11.5 rounds to even
        ((64, 40), (28, 28), 0.875, (51, 32), (12, 2)),
        ((30, 30), (20, 20), 1.0, (20, 20), (0, 0)),
        ((60, 40), (20, 40), 1.0, (60, 40), (20, 0)),  # not square: the width decides
        ((10, 40), (20, 40), 0.5, (40, 160), (10, 60)),
    ],
)
def test_centre_crop_cuts_the_middle_of_the_covering_image(image_size, size, ratio, covering, offset):
    """
    The image is resized to just cover size / ratio and the middle is cut out; sizes and offsets worked out by hand.
    """
    image = Image.fromarray(noise(*image_size))
    resized = np.asarray(image.resize((covering[1], covering[0]), Image.BILINEAR)).transpose(2, 0, 1)

    expected = resized[:, offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]
    actual = preprocess(image, Preprocessing(size, crop="center", crop_ratio=ratio, **PLAIN))

    np.testing.assert_array_equal(expected, actual)


def test_grey_is_replicated():
    """
    A grey image gives three equal channels.
    """
    pixels = noise(6, 6, channels=1)

    actual = preprocess(Image.fromarray(pixels), Preprocessing((6, 6), **PLAIN))

    np.testing.assert_array_equal(np.stack([pixels] * 3), actual)


def test_sixteen_bits_are_scaled_not_cut():
    """
    65535 of a 16-bit image is 255, and 257 is 1.
    """
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)

    actual = preprocess(Image.fromarray(values), Preprocessing((1, 4), **PLAIN))

    assert [[0.0, 1.0, 128.0, 255.0]] * 3 == actual[:, 0].tolist()


def test_sixteen_bit_png_is_read_from_disk(tmp_path):
    """
    A saved 16-bit grey PNG keeps its brightness through loading and preprocessing.
    """
    Image.fromarray(np.full((3, 3), 200 * 257, dtype=np.uint16)).save(tmp_path / "deep.png")

    actual = preprocess(load_image(tmp_path / "deep.png"), Preprocessing((3, 3), **PLAIN))

    assert {200.0} == set(actual.ravel().tolist())


def test_transparency_lies_over_black():
    """
    A transparent pixel is black whatever colour it hides, and half transparency halves the colour.
    """
    pixels = np.array([[[250, 100, 50, 0], [200, 100, 50, 255], [200, 100, 50, 128]]], dtype=np.uint8)

    actual = preprocess(Image.fromarray(pixels), Preprocessing((1, 3), **PLAIN))

    assert [[0.0, 200.0, 100.0], [0.0, 100.0, 50.0], [0.0, 50.0, 25.0]] == actual[:, 0].tolist()


def test_transparent_colour_of_a_palette_is_black(tmp_path):
    """
    The transparent entry of a palette counts as transparency.
    """
    image = Image.new("P", (2, 1))
    image.putpalette([255, 255, 255, 9, 9, 9])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)

    actual = preprocess(load_image(tmp_path / "palette.png"), Preprocessing((1, 2), **PLAIN))

    assert [[0.0, 9.0]] * 3 == actual[:, 0].tolist()


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "HSV", "LAB", "LA", "P"])
def test_every_common_mode_gives_three_channels(mode):
    """
    Modes other than RGB are converted.
    """
    image = Image.fromarray(noise(4, 4, channels=1)).convert("RGB")
    image = image.convert(mode) if mode != "LAB" else Image.new("LAB", (4, 4))

    assert (3, 4, 4) == preprocess(image, Preprocessing((4, 4))).shape


@pytest.mark.parametrize("values", [np.float32([[0.5]]), np.int32([[70000]]), np.int32([[-1]])])
def test_pixels_of_unknown_range_are_refused(values):
    """
    Floating-point pixels and integers beyond 16 bits are an error, not a guess.
    """
    with pytest.raises(UsageError, match="16"):
        preprocess(Image.fromarray(values), Preprocessing((1, 1)))


def test_one_brighter_pixel_changes_the_tensor():
    """
    A difference of one grey level arrives in the tensor.
    """
    pixels = noise(9, 9)
    brighter = pixels.copy()
    brighter[4, 4, 1] ^= 1
    spec = Preprocessing((9, 9))

    assert 1 == np.count_nonzero(
        preprocess(Image.fromarray(pixels), spec) != preprocess(Image.fromarray(brighter), spec)
    )


def test_exif_orientation_turns_the_image_upright(tmp_path):
    """
    A photo that a camera stored lying down is loaded as it is shown.
    """
    image = Image.fromarray(noise(2, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    image.save(tmp_path / "photo.png", exif=exif)

    np.testing.assert_array_equal(np.rot90(np.asarray(image), -1), np.asarray(load_image(tmp_path / "photo.png")))


def test_animation_gives_its_first_frame(tmp_path):
    """
    Only the first frame of an animated image is used.
    """
    frames = [Image.new("L", (3, 3), level) for level in (10, 240)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])

    actual = preprocess(load_image(tmp_path / "moving.gif"), Preprocessing((3, 3), **PLAIN))

    assert {10.0} == set(actual.ravel().tolist())


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tiff"])
def test_truncated_file_is_a_usage_error(tmp_path, suffix):
    """
    Half an image names its path instead of showing Pillow's own error.
    """
    path = tmp_path / f"half.{suffix}"
    Image.fromarray(noise(64, 64)).save(path)
    assert (64, 64) == load_image(path).size
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(UsageError, match=rf"half\.{suffix}"):
        load_image(path)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_a_usage_error(tmp_path, content):
    """
    An empty file, text and a bare signature are refused by name.
    """
    path = tmp_path / "page.png"
    path.write_bytes(content)

    with pytest.raises(UsageError, match=r"page\.png"):
        load_image(path)


def test_missing_file_is_a_usage_error(tmp_path):
    """
    The path of a missing image is in the message.
    """
    with pytest.raises(UsageError, match=r"there is no image .*nothing\.png"):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(UsageError, match="cannot read"):
        load_image(tmp_path)


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    """
    More than twice Pillow's pixel limit is refused, one and a half times is read without a warning.
    """
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("L", (30, 50)).save(tmp_path / "big.png")
    Image.new("L", (50, 50)).save(tmp_path / "bomb.png")

    assert (30, 50) == load_image(tmp_path / "big.png").size
    with pytest.raises(UsageError, match=r"bomb\.png is refused.*2500 pixels"):
        load_image(tmp_path / "bomb.png")


def test_images_are_found_in_stable_order(tmp_path):
    """
    The search is recursive, sorted by relative path, blind to case, hidden files, other files and link loops.
    """
    for name in ("b/2.PNG", "b/10.png", "a.jpg", "c/d/e.webp", "b/notes.txt", "b/._2.png", ".cache/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c" / "loop").symlink_to(tmp_path)

    assert ["a.jpg", "b/10.png", "b/2.PNG", "c/d/e.webp"] == [
        path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)
    ]


def test_folder_without_images_is_a_usage_error(tmp_path):
    """
    A missing folder, a file and an empty folder are each refused.
    """
    with pytest.raises(UsageError, match="holds no image"):
        find_images(tmp_path)
    with pytest.raises(UsageError, match="is no folder"):
        find_images(tmp_path / "nowhere")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_an_image_of_any_kind_survives_as_png(mode, tmp_path):
    """
    What is kept among the golden images gives the same tensor as what the user had.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels)
    image = image if mode == "I;16" else image.convert(mode)
    wanted = Preprocessing((8, 8))

    as_png(image).save(tmp_path / "kept.png")

    assert np.array_equal(preprocess(image, wanted), preprocess(load_image(tmp_path / "kept.png"), wanted))
