"""Which parts of a photo other photos see, and where a photo stands alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.scene_details import sees
from lora3d_ns.scene_io.details import SceneDetails
from lora3d_ns.types import Cameras

_TOLERANCE = 0.05
"""Largest difference of two depths that are one surface, as a share of depth: that of `scene_details.edge_overlap`."""
_POINTS_PER_VIEW = 1_600
_LEAST_OF_CELL = 0.5
"""A ninth of a photo is named where more than this share of it is thin."""
_MOST_NAMED, _MOST_OF_NINE = 3, 6
WHOLE_REGIONS = ("most of it", "all of it")
"""Named instead of single parts."""

_ROWS, _COLUMNS = ("upper", "middle", "lower"), ("left", "middle", "right")


@dataclass(frozen=True, eq=False, kw_only=True)
class Coverage:
    """One photo, on a regular grid of its pixels.

    Attributes:
        seen_by: How many other photos see what lies there.
        counted: Where a pixel counts: unmasked, static, with a depth.
        thin: Where no other photo sees it and its weight is low.
    """

    seen_by: Int[Tensor, "rows columns"]
    counted: Bool[Tensor, "rows columns"]
    thin: Bool[Tensor, "rows columns"]

    @property
    def seen_share(self) -> float | None:
        """Share of what counts that another photo sees; None where nothing counts."""
        return _share(self.seen_by > 0, self.counted)

    @property
    def thin_share(self) -> float | None:
        """Share of what counts that is thin; None where nothing counts."""
        return _share(self.thin, self.counted)


def coverage(details: SceneDetails, cameras: Cameras, *, thin_cutoff: float) -> tuple[Coverage, ...]:
    """For each photo, what other photos see of it: whatever falls into them at the depth that they have there.

    Args:
        details: Of the scene.
        cameras: Of the scene.
        thin_cutoff: Weight below which a pixel that nobody else sees is thin.
    """
    poses = cameras.T_world_camera.double()
    K_network = [
        affine.K_network_from_source(K).float()
        for affine, K in zip(details.source_from_network, cameras.K, strict=True)
    ]
    depths, grids, world = [], [], []
    for view, depth in enumerate(details.depths):
        mask = details.masks[view]
        usable = (depth > 0) & torch.isfinite(depth)
        depths.append(torch.where(usable if mask is None else usable & mask, depth, 0.0))
        step = math.ceil(math.sqrt(depth.numel() / _POINTS_PER_VIEW))
        grid = (slice(step // 2, None, step), slice(step // 2, None, step))
        grids.append(grid)
        points = points_from_depth(depths[view], K_network[view])[grid].flatten(0, 1).double()
        world.append(points @ poses[view, :3, :3].T + poses[view, :3, 3])
    sizes = [len(points) for points in world]
    everything, seen_by = torch.cat(world), torch.zeros(sum(sizes), dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    T_camera_world = torch.linalg.inv(poses)
    for other, depth in enumerate(depths):
        T = T_camera_world[other]
        seen = sees((everything @ T[:3, :3].T + T[:3, 3]).float(), depth, K_network[other], _TOLERANCE)
        seen_by += seen & (owner != other)
    found = []
    for view, seen in enumerate(seen_by.split(sizes)):
        grid = grids[view]
        counted = (depths[view] > 0)[grid] & ~details.moving[view][grid]
        count = seen.view(counted.shape)
        low = details.weights[view][grid].float() < thin_cutoff
        found.append(Coverage(seen_by=count, counted=counted, thin=counted & low & (count == 0)))
    return tuple(found)


def thin_regions(cover: Coverage) -> tuple[str, ...]:
    """Which ninths of a photo are thin, in words: rows and columns as thirds, at most three; or most or all of it."""
    rows, columns = cover.thin.shape
    cells = torch.zeros(3, 3, dtype=torch.bool)
    for row in range(3):
        for column in range(3):
            part = (
                slice(rows * row // 3, rows * (row + 1) // 3),
                slice(columns * column // 3, columns * (column + 1) // 3),
            )
            share = _share(cover.thin[part], cover.counted[part])
            cells[row, column] = share is not None and share > _LEAST_OF_CELL
    if int(cells.sum()) >= _MOST_OF_NINE:
        return (WHOLE_REGIONS[bool(cells.all())],)
    named: list[str] = []
    whole_columns = [column for column in range(3) if bool(cells[:, column].all())]
    named += [f"{_COLUMNS[column]} third" for column in whole_columns]
    cells[:, whole_columns] = False
    whole_rows = [row for row in range(3) if int(cells[row].sum()) == 3 - len(whole_columns)]
    named += [f"{_ROWS[row]} third" for row in whole_rows]
    cells[whole_rows] = False
    for row, column in cells.nonzero().tolist():
        named.append("middle" if (row, column) == (1, 1) else f"{_ROWS[row]} {_COLUMNS[column]}")
    return tuple(named[:_MOST_NAMED])


def median_weight(weights: Sequence[Float[Tensor, "_ _"]], masks: Sequence[Bool[Tensor, "_ _"] | None]) -> float:
    """Of all pixels that count; 0 where none does."""
    kept = [
        (weight if mask is None else weight[mask]).flatten().float()
        for weight, mask in zip(weights, masks, strict=True)
    ]
    every = torch.cat(kept)
    return float(every.median()) if len(every) else 0.0


def _share(chosen: Tensor, counted: Tensor) -> float | None:
    total = int(counted.sum())
    return int((chosen & counted).sum()) / total if total else None
