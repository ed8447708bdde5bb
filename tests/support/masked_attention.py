"""Attention whose scores are masked, as padded tokens and shifted windows are."""

import torch
from torch import nn


class MaskedAttention(nn.Module):
    """Patches of 4x4 pixels look at those that the mask leaves: the first three quarters, or others."""

    def __init__(self, fill, how="fill", first=48):
        super().__init__()
        torch.manual_seed(0)
        self.fill, self.how = fill, how
        self.patches, self.qkv, self.last = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 48), nn.Linear(16, 5)
        self.register_buffer("hidden", torch.arange(64)[None, None] >= first)

    def forward(self, image):
        """(1, 3, 32, 32) to (1, 5)."""
        query, key, value = self.qkv(self.patches(image).flatten(2).transpose(1, 2)).chunk(3, -1)
        scores = query @ key.transpose(1, 2)
        if self.how == "fill":
            scores = scores.masked_fill(self.hidden, self.fill)
        else:
            scores = scores + self.hidden.float() * self.fill
        return self.last((scores.softmax(-1) @ value + value).relu().amax(1))
