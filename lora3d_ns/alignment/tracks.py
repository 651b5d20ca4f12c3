"""Matches of all pairs joined into tracks: pixels of different photos that show one point."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lora3d_ns.alignment.matches import Matches
from lora3d_ns.errors import InvalidDataError, SettingsError


@dataclass(frozen=True, eq=False, kw_only=True)
class Tracks:
    """Pixels of different photos that show one point, as a flat list.

    Attributes:
        view, track, pixel: Of each observation; sorted by track, then view. No track has a view twice.
    """

    view: Int64[Tensor, " observations"]
    track: Int64[Tensor, " observations"]
    pixel: Float64[Tensor, "observations 2"]

    def __len__(self) -> int:
        """Number of tracks."""
        return int(self.track.max()) + 1 if len(self.track) else 0


def build_tracks(matches: Matches, view_count: int, *, merge_px: float = 0.5) -> Tracks:
    """Matches of all pairs joined: what matches the same pixel is the same point.

    Pixels that round to the same multiple of `merge_px` are one keypoint, at their mean. Where joining would give a
    point two keypoints in one photo, the track is split: pairs are joined in order as long as that does not happen.

    Args:
        matches: Of these views.
        view_count: Number of views.
        merge_px: How close pixels must be to be one.

    Returns:
        Tracks with observations in two photos or more.

    Raises:
        InvalidDataError: A match is of a view that does not exist.
        SettingsError: `merge_px` is not positive.
    """
    if not merge_px > 0:
        raise SettingsError(f"merge_px is {merge_px}", way_out="Use a positive number such as 0.5")
    if any(j >= view_count for _, j in matches.pairs):
        raise InvalidDataError(f"matches of more than {view_count} views", way_out="Give the views' own number")
    views, pixels = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 2, dtype=torch.float64)]
    for (i, j), pair in sorted(matches.pairs.items()):
        for view, at in ((i, pair.pixels_first), (j, pair.pixels_second)):
            views.append(torch.full((len(at),), view, dtype=torch.int64))
            pixels.append(at)
    view, pixel = torch.cat(views), torch.cat(pixels)
    starts = torch.cumsum(torch.tensor([0, *(len(part) for part in pixels[1:])]), dim=0)[:-1].tolist()
    cell = torch.cat([view[:, None], (pixel / merge_px).round().long()], dim=1)
    keypoint = torch.unique(cell, dim=0, return_inverse=True)[1] if len(cell) else view
    count = int(keypoint.max()) + 1 if len(keypoint) else 0
    where = torch.zeros(count, 2, dtype=torch.float64).index_add_(0, keypoint, pixel)
    where /= torch.bincount(keypoint, minlength=count).clamp(min=1)[:, None]
    view_of = torch.zeros(count, dtype=torch.int64).index_copy_(0, keypoint, view)

    ends = [torch.zeros(2, 0, dtype=torch.int64)]
    for first, second in zip(starts[::2], starts[1::2], strict=True):
        length = second - first
        ends.append(torch.stack([keypoint[first:second], keypoint[second : second + length]]))
    component = _components(torch.cat(ends, dim=1), view_of, view_count)
    sizes = torch.bincount(component, minlength=1) if count else component
    kept = (sizes[component] >= 2).nonzero()[:, 0]
    track = torch.unique(component[kept], return_inverse=True)[1]
    order = torch.argsort(track * view_count + view_of[kept], stable=True)
    kept = kept[order]
    return Tracks(view=view_of[kept], track=track[order], pixel=where[kept])


def _components(ends: Tensor, view_of: Tensor, view_count: int) -> Tensor:
    """Number of the connected component of each keypoint, split so that none has two keypoints in one view."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(view_of)
    if count == 0:
        return torch.zeros(0, dtype=torch.int64)
    joined = coo_matrix((np.ones(ends.shape[1]), ends.numpy()), shape=(count, count))
    component = torch.from_numpy(connected_components(joined, directed=False)[1].astype(np.int64))
    per_view = torch.bincount(component * view_count + view_of, minlength=(int(component.max()) + 1) * view_count)
    conflicting = (per_view.reshape(-1, view_count) > 1).any(dim=1)
    parent = list(range(count))
    seen_in = [1 << view for view in view_of.tolist()]

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for first, second in ends[:, conflicting[component[ends[0]]]].T.tolist():
        one, other = root(first), root(second)
        if one != other and not seen_in[one] & seen_in[other]:
            parent[other] = one
            seen_in[one] |= seen_in[other]
    split = conflicting[component]
    roots = torch.tensor([root(node) for node in range(count)], dtype=torch.int64)
    return torch.where(split, roots + int(component.max()) + 1, component)
