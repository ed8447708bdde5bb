"""mIoU of masks: by hand, from folders and archives, with ignored pixels, limits and what does not fit."""

import json

import numpy as np
import pytest
from colours import BLIND_TO_BLUE, RIGHT, evaluated, reported, run
from PIL import Image
from pixel_colours import mask_bundle, mask_folder, pictures

from coordatt_deploy.artifact_specs import Preprocessing
from coordatt_deploy.errors import UsageError
from coordatt_deploy.evaluation.run import EvaluationPlan, evaluate_bundle
from coordatt_deploy.evaluation.scoring import MeanIou, class_map
from coordatt_deploy.models import model_card
from coordatt_deploy.progress import Stages
from coordatt_deploy.report.write import write_page


def miou_by_hand(found, truth):
    """The mean over the classes that are there of |both| / |either|, over the pixels that are not ignored."""
    kept = truth != 255
    ious = []
    for number in np.unique(truth[kept]):
        both = ((found == number) & (truth == number) & kept).sum()
        either = (((found == number) | (truth == number)) & kept).sum()
        ious.append(both / either)
    return np.mean(ious)


def test_score_and_difference_are_what_the_networks_do(tmp_path):
    """
    The right file has every pixel; the one that is blind to blue names blue pixels red or green.
    """
    bundle = mask_bundle(tmp_path / "bundle", right=RIGHT, blind=BLIND_TO_BLUE)
    found = evaluated(bundle, mask_folder(tmp_path / "data", 6), max_drop=1.0)
    images, masks = pictures(6)
    scores = images[..., :] @ BLIND_TO_BLUE.T
    expected = miou_by_hand(scores.argmax(-1), masks)
    reference, right, blind = found.subjects

    assert (1.0, 1.0) == (reference.score, right.score)
    assert blind.score == pytest.approx(expected)
    assert (None, True, False) == (reference.passed, right.passed, blind.passed)
    assert blind.score_difference.value == pytest.approx(expected - 1)
    low, high = blind.score_difference.interval
    assert low < expected - 1 < high < 0
    assert right.score_difference.interval is None
    assert right.agreement == 1.0 > blind.agreement
    assert (1.0, 0.0) == (right.class_iou[2], blind.class_iou[2])
    assert 1 == found.exit_code


def test_interval_is_the_jackknife_over_images(tmp_path):
    """
    Computed again from the pixels, leaving out one image at a time.
    """
    found = evaluated(mask_bundle(tmp_path / "bundle", blind=BLIND_TO_BLUE), mask_folder(tmp_path / "data", 5))
    images, masks = pictures(5)
    named = (images @ BLIND_TO_BLUE.T).argmax(-1)
    rest = [np.arange(5) != left_out for left_out in range(5)]
    without = np.array([miou_by_hand(named[kept], masks[kept]) for kept in rest]) - 1
    reach = 2.7764451 * np.sqrt(4 / 5 * np.square(without - without.mean()).sum())
    difference = found.subjects[1].score_difference

    assert difference.interval == pytest.approx((difference.value - reach, difference.value + reach))


def test_an_archive_gives_what_its_folder_gives(tmp_path):
    """
    The same images and masks as arrays: the same figures.
    """
    images, masks = pictures(4)
    np.savez(tmp_path / "set.npz", images=images, masks=masks)
    bundle = mask_bundle(tmp_path / "bundle", blind=BLIND_TO_BLUE)
    of_folder = evaluated(bundle, mask_folder(tmp_path / "data", 4))
    of_archive = evaluated(bundle, tmp_path / "set.npz")

    assert [item.score for item in of_folder.subjects] == [item.score for item in of_archive.subjects]
    assert of_folder.subjects[1].score_difference == of_archive.subjects[1].score_difference


@pytest.mark.slow
def test_several_processes_give_the_same_figures(tmp_path):
    """
    However the images are shared out.
    """
    bundle, folder = mask_bundle(tmp_path / "bundle", blind=BLIND_TO_BLUE), mask_folder(tmp_path / "data", 9)
    records = [evaluate_bundle(bundle, EvaluationPlan(str(folder), workers=n), Stages()).record() for n in (1, 2)]

    assert records[0] == records[1]


@pytest.mark.parametrize("crop", ["none", "center", "border", "squash"])
def test_masks_go_the_way_of_their_images(tmp_path, crop):
    """
    Oblong images of another size than the model's: whatever is cut off, a right network is right everywhere.
    """
    generator = np.random.default_rng(0)
    colours = np.array([(200, 10, 20), (10, 200, 20), (10, 20, 200)], np.uint8)
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "masks").mkdir()
    for number in range(4):
        blocks = generator.integers(0, 3, (4, 6)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(colours[blocks]).save(tmp_path / "data" / "images" / f"{number}.png")
        Image.fromarray(blocks).save(tmp_path / "data" / "masks" / f"{number}.png")
    rule = Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3, resize="nearest", crop=crop, crop_ratio=0.9)
    found = evaluated(mask_bundle(tmp_path / "bundle", rule), tmp_path / "data")

    assert 1.0 == found.subjects[0].score


def test_what_does_not_fit_is_named_and_counted(tmp_path):
    """
    A mask of another size, in colours, or with a class that the model lacks: named with the reason, in no figure.
    """
    folder = mask_folder(tmp_path / "data", 5)
    Image.new("L", (4, 8)).save(folder / "masks" / "00.png")
    Image.new("RGB", (8, 8)).save(folder / "masks" / "01.png")
    Image.new("L", (8, 8), 3).save(folder / "masks" / "02.png")
    (folder / "images" / "lonely.png").write_bytes((folder / "images" / "03.png").read_bytes())
    found = evaluated(mask_bundle(tmp_path / "bundle"), folder)

    assert 2 == found.images
    reasons = dict(found.unreadable)
    assert "its mask is 8x4, the image 8x8" in reasons["images/00.png"]
    assert "is RGB; expected the index of a class per pixel" in reasons["images/01.png"]
    assert "its mask holds class 3; the model's 3 classes" in reasons["images/02.png"]
    assert any("1 image has no mask and is left out: lonely" in note for note in found.notes)


def test_labels_and_metric_must_belong_together(tmp_path, photos, bundle):
    """
    Exit code 2 with what is there: classes for mIoU, masks for top-1, logits where pixels are asked.
    """
    masks, classes = mask_folder(tmp_path / "data", 2), photos(2)
    segmenter, classifier = mask_bundle(tmp_path / "segmenter"), bundle()
    for opened, folder, options, message in (
        (segmenter, classes, {"metric": "miou"}, "miou needs masks as labels"),
        (segmenter, masks, {"metric": "top-1"}, "accuracy needs a classifier"),
        (classifier, masks, {}, r"mIoU needs scores \(1, classes, H, W\)"),
        (classifier, masks, {"metric": "top-1"}, "top-1 needs classes as labels"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluated(opened, folder, **options)


def test_nan_is_no_class(tmp_path):
    """
    A pixel with a score that is not finite is of no class, and the images are counted.
    """
    broken = RIGHT.copy()
    broken[2, 2] = np.nan
    found = evaluated(mask_bundle(tmp_path / "bundle", broken=broken), mask_folder(tmp_path / "data", 3)).subjects[1]

    assert (0.0, 3) == (found.score, found.nonfinite)


def test_the_command_tells_and_keeps_it(tmp_path):
    """
    Exit code 1 beyond the limit; the table, the document and the page have it where top-1 has its place.
    """
    bundle = mask_bundle(tmp_path / "bundle", right=RIGHT, blind=BLIND_TO_BLUE)
    folder = mask_folder(tmp_path / "data", 4)
    result = run("evaluate", bundle.root, "--dataset", folder, "--workers", 1, "--max-drop", 2)
    document = reported(bundle.root)

    assert 1 == result.exit_code, result.output
    assert "mIoU" in result.stdout
    assert "points lost, 2 allowed" in result.stdout
    assert {"name": "miou", "higher_is_better": True, "unit": "points", "file": None, "per_image": False} == (
        document["metric"]
    )
    blind = document["subjects"][2]
    assert blind["difference_points"] == pytest.approx(100 * (blind["score"] - 1))
    assert blind["top1"] is None
    assert (2.0, False) == (document["max_drop_points"], document["passed"])
    page = write_page(bundle).read_text()
    assert "mIoU" in page
    assert "top-1" not in page.partition("Accuracy on labelled images")[2].partition("</section>")[0]
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 1, 4, 4)])
def test_a_network_may_give_the_classes_themselves(shape):
    """
    Classes as numbers, with a channel axis or without, count like the greatest of their scores.
    """
    classes = np.random.default_rng(0).integers(0, 5, (4, 4))
    scores = np.eye(5)[classes].transpose(2, 0, 1)[None]

    assert class_map(classes.reshape(shape)).tolist() == class_map(scores).tolist() == classes.tolist()


def test_a_class_that_no_mask_has_is_no_class_of_the_mean():
    """
    Nor when a file names it somewhere: that costs the class that is there.
    """
    scoring = MeanIou("mask", 3)
    counts = np.array([[3, 0, 0], [3, 1, 0], [4, 0, 0]])
    rows = np.array([[*counts.ravel(), 0, 4]], float)

    assert 0.75 == scoring.score(rows)
    assert [False, True, True] == np.isnan(scoring.class_ious(rows)).tolist()


@pytest.mark.slow
def test_packaged_weights_on_the_packaged_scenes(tmp_path):
    """
    The segmentation net's float file has the mIoU that its recipe says, and the reference's class at every pixel.
    """
    root = tmp_path / "scenes"
    model = ("--model", "lraspp_mobilenetv2_ca_035.scenes", "--format", "onnx", "--precision", "fp32")
    assert 0 == run("export", *model, "--output-dir", root).exit_code
    result = run("evaluate", root, "--dataset", "scenes", "--max-drop", 0.01, "--workers", 1, "--json")
    assert 0 == result.exit_code, result.output
    subjects = json.loads(result.stdout)["subjects"]
    recipe = model_card("lraspp_mobilenetv2_ca_035.scenes").recipe()

    assert [pytest.approx(recipe["accuracy"]["held_out"]["miou"], abs=1e-4)] * 2 == [item["score"] for item in subjects]
    assert subjects[1]["agreement"] > 0.9999
