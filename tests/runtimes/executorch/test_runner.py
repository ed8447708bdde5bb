"""ExecuTorch files as they are opened: threads, inner tensors, pieces, and files that are damaged or changed."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from executorch_files import KIND, images, made

from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.graph.execution import run
from coordatt_deploy.layer_map import place_all, restore
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.runtimes.executorch.program_file import opened, packed
from coordatt_deploy.runtimes.executorch.runner import ExecutorchRunner
from coordatt_deploy.runtimes.executorch.tensors import sources
from coordatt_deploy.runtimes.submodels import submodel_extractor


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return made(tmp_path_factory.mktemp("executorch"))


def mapped(small):
    return [layer for layer in small.exported.layers.layers if layer.parts]


def names_of(layers):
    return tuple({part.tensor for layer in layers for part in layer.parts})


def test_taken_apart_and_put_together_it_computes_the_same(small, tmp_path):
    """
    Bit by bit, and putting it together again gives the same bytes.
    """
    copy = tmp_path / "copy.pte"
    copy.write_bytes(packed(opened(small.path.read_bytes(), "small")))
    image = {"image": images()}
    with small.open() as one, runtime(KIND).open_artifact(copy, small.artifact) as other:
        expected, actual = one.infer(image), other.infer(image)

    assert all(np.array_equal(expected[name], actual[name]) for name in expected)
    assert copy.read_bytes() == packed(opened(copy.read_bytes(), "copy"))


def test_runners_of_other_threads_stand_beside_each_other(small):
    """
    The runtime has one pool of threads: whoever wants another number loads its program again, and results stay.
    """
    image = {"image": images()}
    with small.open(threads=1) as one, small.open(threads=2) as two:
        results = [runner.infer(image)["output"] if "output" in runner.infer(image) else
                   next(iter(runner.infer(image).values())) for runner in (one, two, one, two)]  # fmt: skip

    for result in results[1:]:
        assert np.allclose(results[0], result, atol=1e-6)
    with pytest.raises(UsageError):
        small.open(threads=0)


def test_results_are_the_callers_to_keep(small):
    """
    The next run does not overwrite them.
    """
    with small.open() as runner:
        first = runner.infer({"image": images()})
        kept = {name: value.copy() for name, value in first.items()}
        runner.infer({"image": images(seed=5)})

    assert all(np.array_equal(kept[name], first[name]) for name in kept)


def test_pieces_give_each_layer_from_what_it_is_given(small):
    """
    Fed with the reference's values, and one of them wrong: only what reads that one sees it.
    """
    layers = mapped(small)
    nodes = {layer.layer_id: layer.parts[0].tensor for layer in small.graph.layers.layers if layer.parts}
    image = {"image": images()}
    values = run(small.graph, image, nodes=frozenset(nodes.values()))
    by_id = {layer.layer_id: values[nodes[layer.layer_id]] for layer in layers if layer.layer_id in nodes}
    layers = [layer for layer in layers if layer.layer_id in by_id]
    names = names_of(layers)
    known = sources(opened(small.path.read_bytes(), "small"))
    shapes = {name: known[name].shape for name in names}
    plain = [layer for layer in layers if len(layer.parts) == 1 and layer.parts[0].channels is None]

    with submodel_extractor(KIND).open_pieces(small.path, small.artifact, names) as pieces:
        given = place_all(plain, by_id, shapes)
        given |= {name: np.zeros(shapes[name]) for name in names if name not in given}
        right = pieces.infer(image, given)
        wrong_at = next(layer for layer in plain if layer.layer_id.startswith("depthwise"))
        moved = given | {wrong_at.parts[0].tensor: given[wrong_at.parts[0].tensor] + 1}
        wrong = pieces.infer(image, moved)

    stem = next(layer for layer in plain if layer.layer_id.startswith("stem"))
    assert np.allclose(by_id[stem.layer_id], restore(stem, right), atol=1e-4)
    assert np.allclose(by_id[wrong_at.layer_id], restore(wrong_at, right), atol=1e-4)
    assert np.array_equal(right[wrong_at.parts[0].tensor], wrong[wrong_at.parts[0].tensor])
    assert not all(np.array_equal(right[name], wrong[name]) for name in names)


def test_a_changed_weight_is_seen(small, tmp_path):
    """
    The file is opened as it stands: a weight of another value gives another result.
    """
    file = opened(small.path.read_bytes(), "small")
    place = max(file.program.named_data, key=lambda item: len(file.segments[item.segment_index])).segment_index
    file.segments[place] = (-np.frombuffer(file.segments[place], np.float32)).tobytes()
    changed = tmp_path / "changed.pte"
    changed.write_bytes(packed(file))
    image = {"image": images()}
    with small.open() as one, runtime(KIND).open_artifact(changed, small.artifact) as other:
        expected, actual = one.infer(image), other.infer(image)

    assert not all(np.allclose(expected[name], actual[name]) for name in expected)


@pytest.mark.parametrize("damage", ["truncated", "noise", "empty", "segment", "other"])
def test_a_damaged_file_is_refused(small, tmp_path, damage):
    """
    In one sentence, and whoever opens it lives on.
    """
    content = small.path.read_bytes()
    path = tmp_path / "small.pte"
    path.write_bytes({
        "truncated": content[: len(content) // 2],
        "noise": np.random.default_rng(0).bytes(len(content)),
        "empty": b"",
        "segment": content[: len(content) - 4096],
        "other": b"\x1c\0\0\0TFL3" + content[8:],
    }[damage])  # fmt: skip

    with pytest.raises(BundleError, match="build"):
        runtime(KIND).open_artifact(path, small.artifact)


def test_bytes_changed_at_random_end_nothing(small, tmp_path):
    """
    Every change is refused, or runs in this process as it ran in the one that may die of it.
    """
    content, random = small.path.read_bytes(), np.random.default_rng(1)
    head = len(content) - sum(map(len, opened(content, "small").segments))
    path = tmp_path / "small.pte"
    for _ in range(12):
        changed = bytearray(content)
        for place in random.integers(40, head, 3):
            changed[place] = random.integers(256)
        path.write_bytes(bytes(changed))
        with suppress(BundleError), runtime(KIND).open_artifact(path, small.artifact) as runner:
            assert isinstance(runner, ExecutorchRunner)


def test_another_artifact_is_refused(small):
    """
    Of another shape than the manifest has, or with outputs that it does not name.
    """
    other = replace(small.artifact, inputs=(replace(small.artifact.inputs[0], shape=(1, 3, 8, 8)),))
    fewer = replace(small.artifact, outputs=small.artifact.outputs[:1])

    for artifact in (other, fewer):
        with pytest.raises(BundleError, match="build"):
            runtime(KIND).open_artifact(small.path, artifact)
    with pytest.raises(BundleError, match="no tensor"):
        small.open(tensors=("xnnpack_0/9999",))
