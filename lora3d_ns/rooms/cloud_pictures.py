"""Clouds of arms beside the true one, from above: what an adapter changes, to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.errors import InvalidDataError
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.geometry.similarity import weighted_similarity
from lora3d_ns.rooms.benchmark_arms import ArmResult
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.types import Cameras

_QUANTILES = (0.01, 0.99)
_LEAST_WEIGHT = 0.05
"""Of the weight that a tenth of the pixels exceeds: what weighs less is left out of a cloud."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Cloud:
    """Points in the true world.

    Attributes:
        points_m: All pixels that are believed, metres.
        colors: Of the photos, 0 to 1.
        centres_m: Where the cameras stand.
        error_m: Median distance of the points from where they truly are.
    """

    points_m: Float[Tensor, "points 3"]
    colors: Float[Tensor, "points 3"]
    centres_m: Float[Tensor, "views 3"]
    error_m: float


def true_cloud(truth: RoomPhotos) -> Cloud:
    """What the photos truly show."""
    points = torch.cat([part.reshape(-1, 3) for part in _world_points(truth.depths_m, truth.cameras, truth)])
    return Cloud(
        points_m=points,
        colors=_colors(truth),
        centres_m=truth.cameras.T_world_camera[:, :3, 3].float(),
        error_m=0.0,
    )


def cloud_of(result: ArmResult, truth: RoomPhotos) -> Cloud:
    """What an arm has made of the photos, moved, turned and scaled onto the truth by all points at once.

    Raises:
        InvalidDataError: The arm aligned nothing.
    """
    aligned = result.aligned
    if aligned is None:
        raise InvalidDataError("the arm has no scene", way_out="Draw arms that align")
    true = true_cloud(truth).points_m
    points = torch.cat([part.reshape(-1, 3) for part in _world_points(aligned.depths, aligned.cameras, truth)])
    static = torch.cat([mask.flatten() for mask in truth.static])
    weights = torch.cat([weight.flatten() for weight in aligned.view_weights]).float()
    onto = weighted_similarity(points[static], true[static], weights[static].clamp_min(1e-6))
    scale, rotation = float(onto.scale), onto.rotation
    moved = scale * points @ rotation.T + onto.translation
    centres = scale * aligned.cameras.T_world_camera[:, :3, 3].float() @ rotation.T + onto.translation
    shown = weights >= _LEAST_WEIGHT * weights.quantile(0.9)
    return Cloud(
        points_m=moved[shown],
        colors=_colors(truth)[shown],
        centres_m=centres,
        error_m=float((moved - true)[static].norm(dim=1).median()),
    )


def draw_clouds(rooms: Mapping[str, Mapping[str, Cloud]], path: Path) -> Path:
    """Writes a picture with a row for each room and a column for each cloud, all of a room at the same scale.

    Args:
        rooms: By name, clouds by name; the last of each is the truth, which sets what is shown.
        path: Where to; its folder must exist.
    """
    from matplotlib.figure import Figure

    columns = max(len(clouds) for clouds in rooms.values())
    figure = Figure(figsize=(3.6 * columns, 3.5 * len(rooms)), layout="constrained")
    grid = figure.subplots(len(rooms), columns, squeeze=False)
    for row, (room, clouds) in enumerate(rooms.items()):
        *_, truth = clouds.values()
        upright = _upright(truth)
        low, high = _bounds(truth.points_m @ upright.T, truth.centres_m @ upright.T)
        for column, (name, cloud) in enumerate(clouds.items()):
            axes = grid[row][column]
            points, centres = cloud.points_m @ upright.T, cloud.centres_m @ upright.T
            # What is high up is drawn last; y points down.
            order = torch.argsort(points[:, 1], descending=True)
            axes.scatter(points[order, 0], points[order, 2], c=cloud.colors[order].numpy(), s=1.2, linewidths=0)
            axes.plot(centres[:, 0], centres[:, 2], "k.-", linewidth=0.6, markersize=4)
            axes.set(xlim=(low[0], high[0]), ylim=(low[2], high[2]), aspect="equal", xticks=[], yticks=[])
            axes.set_title(name if cloud is truth else f"{name} ({cloud.error_m * 100:.1f} cm off)", fontsize=10)
            if column == 0:
                axes.set_ylabel(room)
    figure.savefig(path, dpi=80)
    return path


def _world_points(
    depths: Sequence[Float[Tensor, "_ _"]], cameras: Cameras, truth: RoomPhotos
) -> list[Float[Tensor, "_ _ 3"]]:
    points = []
    for view, depth in enumerate(depths):
        K = truth.views.source_from_network[view].K_network_from_source(cameras.K[view]).float()
        T = cameras.T_world_camera[view].float()
        points.append(points_from_depth(depth.float(), K) @ T[:3, :3].T + T[:3, 3])
    return points


def _colors(truth: RoomPhotos) -> Float[Tensor, "points 3"]:
    return torch.cat([image.permute(1, 2, 0).reshape(-1, 3) for image in truth.views.images])


def _upright(truth: Cloud) -> Float[Tensor, "3 3"]:
    """Axes that keep height and lay the longer side of the camera path to the right: rooms are z up."""
    across = truth.centres_m[-1, :2] - truth.centres_m[0, :2]
    across = across / across.norm().clamp_min(1e-6)
    right = torch.tensor([float(across[0]), float(across[1]), 0.0])
    down = torch.tensor([0.0, 0.0, -1.0])
    return torch.stack([right, down, torch.linalg.cross(right, down)])


def _bounds(points: Float[Tensor, "points 3"], centres: Float[Tensor, "views 3"]) -> tuple[list[float], list[float]]:
    """What to show: all cameras, and the points without the farthest on each side."""
    chosen = points[:: max(1, len(points) // 100_000)]
    low, high = (torch.quantile(chosen, share, dim=0) for share in _QUANTILES)
    low, high = torch.minimum(low, centres.amin(dim=0)), torch.maximum(high, centres.amax(dim=0))
    margin = 0.05 * (high - low).max()
    return (low - margin).tolist(), (high + margin).tolist()
