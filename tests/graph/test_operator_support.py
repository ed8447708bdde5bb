"""The table of operators: what was measured is what is refused, before a converter runs."""

import pickle
from pathlib import Path

import pytest
import torch
from operator_benchmark import ROWS, network, page
from torch import nn

from coordatt_deploy.errors import RefusedOperator, UnsupportedOperatorsError
from coordatt_deploy.formats import FORMATS, Format
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.graph import DynamicSize, is_call, op_name
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.graph.operator_support import REMEDIES, Verdict, check_supported, line_of, reason_against, table
from coordatt_deploy.graph.operator_variants import variant
from coordatt_deploy.graph.saved_graph import load_graph, save_graph

ROOT = Path(__file__).parents[2]
REFUSED = [(row, file_format) for row in table().rows for file_format, cell in row.cells.items()
           if cell.verdict is Verdict.REFUSED]  # fmt: skip
NETWORKS = {(row.operator, row.what): row for row in ROWS}


def captured(module, size=(8, 12)):
    torch.manual_seed(0)
    return capture(module.eval(), (torch.randn(1, 3, *size),))


class Transformed(nn.Module):
    """Two formats have no Fourier transform of two axes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)

    def forward(self, image):
        return torch.fft.rfft2(self.stem(image)).abs()  # this line is in the message


def test_the_table_has_a_cell_for_every_row_and_format():
    """
    Nobody can add a row without measuring it.
    """
    assert {(row.operator, row.what) for row in ROWS} == {(row.operator, row.what) for row in table().rows}
    assert [] == [row.what for row in table().rows if set(row.cells) != set(Format)]


def test_the_page_is_the_table():
    """
    The page in the docs is what the measured document gives.
    """
    assert page(table()) == (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")


def test_traits_tell_what_is_refused_from_what_is_not():
    """
    Two rows of one operator whose calls look alike have one verdict, or a call would be refused for another's fault.
    """
    verdicts = {}
    for row in table().rows:
        for file_format, cell in row.cells.items():
            verdicts.setdefault((row.operator, row.traits, file_format), set()).add(cell.verdict is Verdict.REFUSED)

    assert [] == [key for key, found in verdicts.items() if len(found) > 1]


@pytest.mark.parametrize(("row", "file_format"), REFUSED, ids=[f"{row.operator} {row.what} {f}" for row, f in REFUSED])
def test_what_is_refused_in_the_table_is_refused_before_conversion(row, file_format):
    """
    The error has the layer, the operator, the reason that was measured and a remedy.
    """
    network_row = NETWORKS[row.operator, row.what]
    graph, _ = lower(captured(network(network_row), network_row.size), target_of(file_format))

    with pytest.raises(UnsupportedOperatorsError) as caught:
        check_supported(graph, file_format)

    assert file_format == caught.value.file_format
    (found,) = [item for item in caught.value.refused if item.operator == row.operator]
    assert row.cells[file_format].detail == found.reason
    assert found.layer
    assert found.remedy


@pytest.mark.parametrize("file_format", Format)
def test_what_is_right_is_not_refused(file_format):
    """
    The negative twin: a usual network passes in every format.
    """
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Hardswish(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1), nn.Flatten())
    graph, _ = lower(captured(net, (32, 32)), target_of(file_format))

    check_supported(graph, file_format)


def test_the_message_names_layer_line_operator_format_and_remedy(tmp_path):
    """
    Also in the process that converts, which reads the graph from a folder; and an error survives the way back.
    """
    graph = captured(Transformed())
    save_graph(graph, tmp_path, lines=True)
    refusing = next(item for item in Format if reason_against(_call(graph, "fft_rfft2"), item, dynamic=False))

    with pytest.raises(UnsupportedOperatorsError) as caught:
        check_supported(load_graph(tmp_path), refusing)

    error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    (found,) = error.refused
    assert isinstance(found, RefusedOperator)
    assert "test_operator_support.py" in found.line
    for part in (
        FORMATS[refusing].title,
        "fft_rfft2",
        found.layer,
        "this line is in the message",
        REMEDIES["fft_rfft2"],
    ):
        assert part in str(error)


def test_a_bundle_keeps_no_lines_of_the_users_code(tmp_path):
    """
    What travels holds no paths of the machine that it was made on.
    """
    save_graph(captured(Transformed()), tmp_path)

    assert "test_operator_support" not in (tmp_path / "graph.json").read_text(encoding="utf-8")
    assert {None} == {line_of(node) for node in load_graph(tmp_path).module.graph.nodes}


def test_a_variant_with_more_traits_is_refused_like_one_with_fewer():
    """
    A dilated pool that also rounds up is a dilated pool.
    """
    pool = _call(captured(nn.MaxPool2d(3, 2, 1, dilation=2, ceil_mode=True)), "max_pool2d")
    dilated = _call(captured(nn.MaxPool2d(3, 2, 1, dilation=2)), "max_pool2d")

    assert {"dilated", "ceil_mode"} == variant(pool)
    for file_format in Format:
        reason = reason_against(dilated, file_format, dynamic=False)
        assert reason == reason_against(pool, file_format, dynamic=False)


def test_what_is_rewritten_for_known_sizes_alone_is_refused_with_dynamic_ones():
    """
    A bicubic resize becomes matrices of a known size; with another one Core ML cannot have it, and says so beforehand.
    """
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.Upsample(scale_factor=2, mode="bicubic"))
    torch.manual_seed(0)
    example = (torch.randn(1, 3, 8, 12),)
    target = target_of(Format.COREML)
    dynamic, _ = lower(capture(net.eval(), example, dynamic=DynamicSize(8, 64)), target)

    check_supported(lower(capture(net.eval(), example), target)[0], Format.COREML)
    with pytest.raises(UnsupportedOperatorsError, match="upsample_bicubic2d in 1: with a dynamic size"):
        check_supported(dynamic, Format.COREML)


def _call(graph, name):
    return next(node for node in graph.module.graph.nodes if is_call(node) and op_name(node) == name)
