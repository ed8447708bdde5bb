"""Parts of an output are found wherever their elements end up."""

import pytest
import torch
from torch import nn

from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.graph import DynamicBatch
from coordatt_deploy.graph.output_regions import output_parts, output_regions


class Head(nn.Module):
    """Boxes from one convolution, scores from another, joined in a way of its own."""

    def __init__(self, join) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.box, self.score, self.join = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), join

    def forward(self, image):
        return self.join(self.box(image) * 64, self.score(image))


def regions(join):
    graph = capture(Head(join).eval(), (torch.rand(1, 3, 4, 4),), input_names=["image"], output_names=["output"])
    return output_regions(graph).get("output", ()), graph


@pytest.mark.parametrize(
    ("join", "boxes", "scores"),
    [
        (lambda b, s: torch.cat([b, s.sigmoid()], 1), (None, (0, 1, 2, 3), None, None), (None, (4, 5), None, None)),
        (lambda b, s: torch.cat([b.flatten(2), s.flatten(2).sigmoid()], 1).transpose(1, 2),
         (None, None, (0, 1, 2, 3)), (None, None, (4, 5))),
        (lambda b, s: torch.cat([b.flatten(2), s.flatten(2).sigmoid()], 1).permute(0, 2, 1).reshape(1, 4, 4, 6),
         (None, None, None, (0, 1, 2, 3)), (None, None, None, (4, 5))),
        (lambda b, s: torch.cat([s.sigmoid(), b], 1).flatten(2).unsqueeze(-1),
         (None, (2, 3, 4, 5), None, None), (None, (0, 1), None, None)),
        (lambda b, s: torch.stack([b[:, 0], s.sigmoid()[:, 0]], -1), (None, None, None, (0,)),
         (None, None, None, (1,))),
        (lambda b, s: torch.cat([*b.split(2, 1), *s.sigmoid().chunk(2, 1)], 1),
         (None, (0, 1, 2, 3), None, None), (None, (4, 5), None, None)),
    ],
)  # fmt: skip
def test_boxes_and_scores_are_told_apart(join, boxes, scores):
    """On the channels, on the last axis, behind reshapes, in another order, stacked."""
    found, _ = regions(join)

    assert {(boxes, None), (scores, "sigmoid")} == {(region.axes, region.operator) for region in found}


def test_levels_of_a_pyramid_are_parts_of_their_own():
    """Two scales joined along the places: scores are made twice, boxes once and cut."""

    def join(box, score):
        whole = torch.cat([box.flatten(2), score.flatten(2).sigmoid()], 1)
        half = torch.cat([box[:, :, ::2, ::2].flatten(2), score[:, :, ::2, ::2].flatten(2).sigmoid()], 1)
        return torch.cat([whole, half], 2)

    found, _ = regions(join)

    assert [(0, 1, 2, 3), (4, 5), (4, 5)] == [region.axes[1] for region in found]
    assert [None, tuple(range(16)), tuple(range(16, 20))] == [region.axes[2] for region in found]


def test_a_score_that_is_scaled_is_no_longer_bounded():
    """A sigmoid times 100 is judged as any other value, and the product belongs to the tail."""
    found, graph = regions(lambda b, s: torch.cat([b, s.sigmoid() * 100.0], 1))

    assert [None, None] == [region.operator for region in found]
    assert {"mul", "mul_1", "cat"} == set(output_parts(graph)["output"].tail)


def test_an_output_of_one_maker_has_no_parts():
    """A sum of both heads is one value everywhere; a lone sigmoid is one part, and bounded."""
    assert () == regions(lambda b, s: b[:, :2] + s)[0]
    (region,) = regions(lambda _, s: s.sigmoid())[0]
    assert "sigmoid" == region.operator


def test_parts_that_are_no_rows_of_any_axis_are_one():
    """Two parts that fill an L are not told apart."""
    found, _ = regions(
        lambda b, s: torch.cat([torch.cat([b[:, :2], s], 2), s.repeat(1, 1, 2, 1)], 3)[:, :, :6].flatten(2)
    )

    assert all(region.axes is not None for region in found)


def test_the_parts_of_an_output_do_not_depend_on_the_batch():
    """A dynamic batch leaves them where they are, also behind a reshape that asks for it."""

    def join(boxes, scores):
        return torch.cat([boxes, scores.sigmoid()], 1).view(boxes.shape[0], 6, -1).transpose(1, 2)

    network = Head(join).eval()
    graph = capture(
        network, (torch.rand(2, 3, 4, 4),), input_names=["image"], output_names=["output"], batch=DynamicBatch(1, 4)
    )

    assert regions(join)[0] == output_regions(graph)["output"]
    assert 2 == len(regions(join)[0])
