"""Softmax attention, written out."""

import torch
from torch import Tensor


def attend_naively(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(batch, patches, heads, channels) -> (batch, patches, heads * channels), one head and one query at a time."""
    batch, patches, heads, channels = query.shape
    attended = torch.zeros_like(query)
    for b in range(batch):
        for head in range(heads):
            for patch in range(patches):
                scores = key[b, :, head] @ query[b, patch, head] / channels**0.5
                weights = scores.exp() / scores.exp().sum()
                attended[b, patch, head] = weights @ value[b, :, head]
    return attended.reshape(batch, patches, heads * channels)
