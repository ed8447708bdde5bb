"""Time per operator: what was timed belongs to the right tensor, and pieces compute what the whole file computes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from executorch_files import KIND, images, made, quantized
from small_network import feeds_for

from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.runtimes.file_graph import Node
from coordatt_deploy.runtimes.onnx.operator_clock import join_trace
from coordatt_deploy.runtimes.operator_times import Method, Piece, operator_timer, owned_tensors, owners, timed
from coordatt_deploy.runtimes.reader import read_artifact

IMAGE = np.random.default_rng(5).uniform(-1, 1, (1, 3, 6, 8)).astype(np.float32)


def node(operator, inputs, outputs):
    return Node(operator, tuple(inputs.split()), tuple(outputs.split()))


CHAIN = (
    node("Conv", "image kernel", "a"),
    node("Reshape", "a", "b"),
    node("Mul", "b gate", "c"),
    node("Transpose", "c", "result"),
)


def test_what_moves_data_counts_with_what_reads_it():
    """
    And behind the last layer with what it reads; what is connected with no layer has no owner.
    """
    alone = node("Cast", "other", "cast")

    assert owners((*CHAIN, alone), {"a": "a", "c": "c"}) == ("a", "c", "c", "c", None)


def test_a_tensor_is_owned_by_the_layer_that_is_computed_from_it():
    """
    Tensors of the layer map by themselves, the others by the next one.
    """
    assert owned_tensors(CHAIN, frozenset({"c"})) == {"a": "c", "b": "c", "c": "c", "result": "c"}


def events(*rows, runs=2):
    """A trace of ONNX Runtime's, as it writes it."""
    listed = [{"cat": "Session", "name": "model_run", "dur": 100, "args": {}}]
    for _ in range(runs):
        listed += [
            {
                "cat": "Node", "name": f"{name}_kernel_time", "dur": duration,
                "args": {"op_name": operator, "node_index": str(index)},
            }
            for index, (name, operator, duration) in enumerate(rows)
        ]  # fmt: skip
    return json.dumps(listed)


ORIGINAL = (
    ("", node("Conv", "image kernel", "conv")),
    ("", node("Clip", "conv", "clip")),
    ("", node("QuantizeLinear", "clip", "clip_q")),
    ("", node("DequantizeLinear", "clip_q", "clip_dq")),
    ("", node("Gemm", "clip_dq matrix", "logits")),
)
OPTIMISED = (
    ("clip_nchwc", node("Conv", "image reordered", "reorder_token_1")),
    ("", node("ReorderOutput", "reorder_token_1", "plain")),
    ("", node("Gemm", "plain matrix", "logits")),
)
MAPPED = frozenset({"clip", "logits"})


def test_fused_and_reordered_operators_find_their_layer():
    """
    One in blocked layout is called after the tensor that it makes, reordering belongs to what reads it.
    """
    trace = events(("clip_nchwc", "Conv", 7), ("ReorderOutput_3", "ReorderOutput", 2), ("Gemm_4", "Gemm", 5))

    parts = join_trace(trace, ORIGINAL, OPTIMISED, MAPPED)

    assert [(part.tensor, part.operators, part.samples_ns) for part in parts] == [
        ("clip", ("Conv",), (7000, 7000)),
        ("logits", ("ReorderOutput",), (2000, 2000)),
        ("logits", ("Gemm",), (5000, 5000)),
    ]


def test_an_integer_operator_finds_its_layer_through_the_file():
    """
    ONNX Runtime drops the dequantized tensor of the layer map; what is left on the grid belongs to the same layer.
    """
    optimised = (("", node("QLinearConv", "image kernel", "clip_q")), ("", node("QGemm", "clip_q matrix", "logits")))
    trace = events(("QLinearConv_0", "QLinearConv", 7), ("QGemm_1", "QGemm", 5))

    parts = join_trace(trace, ORIGINAL, optimised, frozenset({"clip_dq", "logits"}))

    assert [part.tensor for part in parts] == ["clip_dq", "logits"]


CONVOLUTIONS = (
    ("first", node("Conv", "image k", "one")),
    ("second", node("Conv", "one k", "two")),
    ("", node("Transpose", "two", "logits")),
)


def test_with_the_channels_last_an_operator_is_called_after_that_of_the_file():
    """
    By what it makes, or by its own name, with a number behind it: all tensors have other names then.
    """
    optimised = (
        ("first_token_80", node("QLinearConv", "image k", "first")),
        ("second_token_3", node("QLinearConv", "first k", "elsewhere")),
        ("", node("Transpose", "elsewhere", "logits")),
    )
    trace = events(("first_token_80", "QLinearConv", 7), ("second_token_3", "QLinearConv", 5), ("T_2", "Transpose", 1))

    parts = join_trace(trace, CONVOLUTIONS, optimised, frozenset({"one", "two", "logits"}))

    assert ["one", "two", "logits"] == [part.tensor for part in parts]


def test_what_computes_and_is_found_by_no_name_belongs_to_no_layer():
    """
    The layer behind it did not make it: its time would be told of a wrong one, and all of it as explained.
    """
    optimised = (
        ("fused_1", node("QLinearConv", "image k", "unheard_of")),
        ("", node("ReorderOutput", "unheard_of", "plain")),
        ("", node("Conv", "plain k", "two")),
    )
    trace = events(("fused_1", "QLinearConv", 7), ("R_1", "ReorderOutput", 1), ("C_2", "Conv", 5))

    parts = join_trace(trace, CONVOLUTIONS, optimised, frozenset({"one", "two", "logits"}))

    assert [None, "two", "two"] == [part.tensor for part in parts]


def test_another_order_is_joined_by_name_or_not_at_all():
    """
    Never to whatever stands at the same place.
    """
    trace = events(("Gemm_4", "Gemm", 5), ("clip_nchwc", "Conv", 7))

    assert [part.tensor for part in join_trace(trace, ORIGINAL, OPTIMISED, MAPPED)] == [None, "clip"]


def clock_of(file, tensors, threads=1):
    path, artifact, _ = file
    return operator_timer(artifact.format).open_clock(path, artifact, tensors, feeds_for(artifact, IMAGE), threads)


def test_every_operator_is_timed(file):
    """
    In every run, each once, and each with a layer: the clip and what is behind it.
    """
    path, _, inner = file
    tensors = frozenset({next(name for name in read_artifact(path).tensors if name.endswith(inner)), "logits"})
    with clock_of(file, tensors) as clock:
        for _ in range(3):
            clock.run()
        parts = clock.parts()

    assert {part.tensor for part in parts} <= tensors
    assert {3} == {len(part.samples_ns) for part in parts}
    assert all(sample >= 0 for part in parts for sample in part.samples_ns)
    assert sum(len(part.operators) for part in parts) > 1


def test_pieces_of_a_tflite_file_compute_what_the_whole_does(files):
    """
    Otherwise it would be another network that is timed.
    """
    file = files[Format.TFLITE]
    path, artifact, _ = file
    graph = read_artifact(path)
    made_here = tuple(dict.fromkeys(name for item in graph.nodes for name in item.outputs))
    with runtime(Format.TFLITE).open_artifact(path, artifact, tensors=made_here) as runner:
        whole = runner.infer(feeds_for(artifact, IMAGE))
    with clock_of(file, frozenset(made_here)) as clock:
        clock.run()
        pieces = list(clock._pieces)
        results = {item.timed.name: item.interpreter.get_tensor(item.interpreter.get_output_details()[0]["index"])
                   for item in pieces}  # fmt: skip
        operators = [name for item in pieces for name in item.timed.operators]

    assert operators == [item.operator for item in graph.nodes]
    for name, value in results.items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("executorch_times")
    source = made(folder)
    return {"float": source, "int8": quantized(source, folder)}


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_pieces_of_an_executorch_file_compute_what_the_whole_does(small, kind):
    """
    Each layer by itself, in its delegate, gives its value in the whole file.
    """
    source = small[kind]
    tensors = tuple({part.tensor for layer in source.exported.layers.layers for part in layer.parts})
    feeds = {"image": images()}
    if source.artifact.inputs[0].dtype == "int8":
        spec = source.artifact.inputs[0]
        feeds = {"image": np.clip(np.round(images() / spec.scale) + spec.zero_point, -128, 127).astype(np.int8)}
    with source.open() as runner:
        whole = runner.infer(feeds)
    with operator_timer(KIND).open_clock(source.path, source.artifact, frozenset(tensors), feeds, 1) as clock:
        clock.run()
        parts = clock.parts()
        results = [np.asarray(value) for item in clock._pieces for value in item.program.load().plan_execute("forward")]

    assert len(parts) > 3
    assert None not in {part.tensor for part in parts}
    for name, expected in whole.items():
        assert any(value.shape == expected.shape and np.allclose(value, expected, atol=1e-5) for value in results), name


def test_a_sample_that_lost_its_core_is_marked(monkeypatch):
    """
    By the kernel's own count.
    """
    counts = iter([0, 0, 4, 5])
    monkeypatch.setattr("coordatt_deploy.runtimes.operator_times.preempted", lambda: next(counts))
    piece = Piece("conv", ("Conv",), "conv", alone=False)
    piece.time(int)
    piece.time(int)

    assert piece.part().lost == (False, True)


def test_of_a_thread_that_works_alone_its_time_on_the_core_counts(monkeypatch):
    """
    Where the core was taken away, the time that others had it is left out; the sample is as good as another then.
    """
    counts, wall, on_core = iter([4, 5]), iter([0, 12_000]), iter([0, 3_000])
    monkeypatch.setattr("coordatt_deploy.runtimes.operator_times.preempted", lambda: next(counts))
    clock = SimpleNamespace(perf_counter_ns=lambda: next(wall), thread_time_ns=lambda: next(on_core))
    monkeypatch.setattr("coordatt_deploy.runtimes.operator_times.time", clock)

    assert timed(int, alone=True) == (3_000, False)


def test_core_ml_says_that_it_tells_none(tmp_path, files):
    """
    And where the time can be seen.
    """
    artifact = files[Format.ONNX][1]
    with pytest.raises(UsageError, match=r"tells no time per operator; open net\.mlpackage in Xcode"):
        operator_timer(Format.COREML).open_clock(tmp_path / "net.mlpackage", artifact, frozenset(), {}, 1)


def test_methods_are_words_of_the_document():
    """
    JSON has them as they stand.
    """
    assert [method.value for method in Method] == ["profiler", "submodels"]
