"""What an output is, where the graph proves it."""

import torch
from torch import nn

from coordatt_deploy.artifact_specs import OutputKind
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.output_kinds import output_kinds


class Heads(nn.Module):
    def forward(self, image):
        scores = image.mean((2, 3))
        return (
            scores.softmax(1),
            image.argmax(1).to(torch.int32),
            scores,
            image.sigmoid(),
            image.softmax(1).flatten(2)[:, :, :4],
        )


def test_a_softmax_gives_scores_and_an_arg_max_a_mask():
    """
    Also moved, cut, or in another type. What nothing proves is not guessed: a linear head may give an embedding.
    """
    names = ("probabilities", "classes", "logits", "map", "moved")
    graph = capture(Heads().eval(), (torch.randn(1, 3, 4, 6),), output_names=names)

    assert {
        "probabilities": OutputKind.SCORES,
        "classes": OutputKind.MASK,
        "moved": OutputKind.SCORES,
    } == output_kinds(graph)
