"""Reconstruction -> SceneDetails: what can be drawn and told of a finished scene, computed once when it is saved."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from lora3d_ns.alignment.calibrate import pair_residuals
from lora3d_ns.geometry.camera import points_from_depth, project
from lora3d_ns.reconstruct import Calibration, Reconstruction
from lora3d_ns.scene_io.details import DETAILS_FORMAT_VERSION, BeforeLearning, LearningDetails, SceneDetails
from lora3d_ns.types import AlignedScene, PairPredictions, Views

_LEAST_WEIGHT = 1e-6
_HALF_PRECISION = (1e-2, 6e4)
"""Between these the largest value of a map must lie for float16 to hold all of it to 1/2000 of that value."""


def scene_details(views: Views, reconstruction: Reconstruction) -> SceneDetails:
    """What a viewer and a report need of a reconstruction.

    Args:
        views: The photos it was made from.
        reconstruction: Nothing of it changes.
    """
    aligned, predictions = reconstruction.understood.aligned, reconstruction.understood.predictions
    K_network = [
        affine.K_network_from_source(K).float()
        for affine, K in zip(views.source_from_network, aligned.cameras.K, strict=True)
    ]
    confidences, residuals = _maps_over_pairs(predictions, aligned, K_network)
    weights = tuple(_compact(weight) for weight in aligned.view_weights)
    learning = None
    if reconstruction.calibration is not None:
        # Where nothing was accepted both are one scene: then the file holds its maps once.
        same = reconstruction.calibration.before is reconstruction.understood
        learning = _learning(reconstruction.calibration, weights if same else None)
    return SceneDetails(
        names=views.names,
        images=tuple((image.permute(1, 2, 0) * 255.0).round().to(torch.uint8) for image in views.images),
        masks=views.masks,
        source_from_network=views.source_from_network,
        focal_px=aligned.cameras.K[:, 0, 0].float(),
        depths=aligned.depths,
        weights=weights,
        confidences=tuple(_compact(confidence) for confidence in confidences),
        residuals=tuple(_compact(residual) for residual in residuals),
        moving=aligned.moving,
        edges=aligned.graph.edges,
        overlap=edge_overlap(
            aligned.graph.edges, aligned.depths, K_network, aligned.cameras.T_world_camera, views.masks
        ),
        dropped=dict(aligned.dropped_edges),
        losses=aligned.loss_history,
        seconds=aligned.history_seconds,
        diagnosis=aligned.diagnosis,
        learning=learning,
        format_version=DETAILS_FORMAT_VERSION,
    )


def first_view_alone(details: SceneDetails) -> SceneDetails:
    """What belongs to the first view, without any edge: for one photo, which the network saw beside itself.

    Args:
        details: Of a scene that nothing was learnt from.
    """
    assert details.learning is None
    diagnosis = details.diagnosis
    of_views = ("names", "images", "masks", "source_from_network", "focal_px")
    maps = ("depths", "weights", "confidences", "residuals", "moving")
    return dataclasses.replace(
        details,
        **{name: getattr(details, name)[:1] for name in (*of_views, *maps)},
        edges=(),
        overlap=details.overlap[:0],
        dropped={},
        diagnosis=dataclasses.replace(
            diagnosis,
            edge_residuals=diagnosis.edge_residuals[:0],
            focal_spread_percent=diagnosis.focal_spread_percent[:1],
            weighted_share=diagnosis.weighted_share[:1],
            uncut_views=tuple(view for view in diagnosis.uncut_views if view == 0),
            contested_views=(),
        ),
    )


def edge_overlap(
    edges: Sequence[tuple[int, int]],
    depths: Sequence[Float[Tensor, "_ _"]],
    K_network: Sequence[Float[Tensor, "3 3"]],
    T_world_camera: Float[Tensor, "views 4 4"],
    masks: Sequence[Bool[Tensor, "_ _"] | None],
    *,
    tolerance: float = 0.05,
    points_per_view: int = 10_000,
) -> Float32[Tensor, " edges"]:
    """Per edge the share of both photos' pixels that count and that the other photo sees: see `sees`.

    `(seen of i by j + seen of j by i) / (pixels of i + pixels of j)`; 0 where no pixel counts. A pixel behind the other
    photo's mask is not seen.

    Args:
        edges: Pairs of views.
        depths: Of each view.
        K_network: Intrinsics in pixels of the depths.
        T_world_camera: Poses.
        masks: True where a pixel counts.
        tolerance: See `sees`.
        points_per_view: A photo with more pixels is asked on a regular grid of at most about so many.
    """
    counted = [depth if mask is None else depth * mask for depth, mask in zip(depths, masks, strict=True)]
    asked = []
    for depth, K in zip(counted, K_network, strict=True):
        step = math.ceil(math.sqrt(depth.numel() / points_per_view))
        grid = points_from_depth(depth, K)[step // 2 :: step, step // 2 :: step].flatten(0, 1)
        asked.append(grid[grid[:, 2] > 0])
    poses = T_world_camera.double()
    T_camera_world = torch.linalg.inv(poses)
    shares: dict[frozenset[int], float] = {}
    for i, j in edges:
        if frozenset((i, j)) in shares:
            continue
        seen = 0
        for own, other in ((i, j), (j, i)):
            points = _moved(asked[own], T_camera_world[other] @ poses[own])
            seen += int(sees(points, counted[other], K_network[other], tolerance).sum())
        shares[frozenset((i, j))] = seen / max(1, len(asked[i]) + len(asked[j]))
    return torch.tensor([shares[frozenset(edge)] for edge in edges], dtype=torch.float32)


def sees(
    points_camera: Float[Tensor, "points 3"],
    depth: Float[Tensor, "height width"],
    K: Float[Tensor, "3 3"],
    tolerance: float,
) -> Bool[Tensor, " points"]:
    """Which points a camera sees: those that fall into its image, at the depth that it has at that pixel itself.

    Args:
        points_camera: Points in the camera's frame.
        depth: Its depth along z; 0 where it sees nothing.
        K: Its intrinsics in these pixels.
        tolerance: Largest difference of the two depths, as a share of the camera's own.
    """
    height, width = depth.shape
    pixels, z = project(points_camera, K).floor(), points_camera[:, 2]
    inside = (z > 0) & (pixels >= 0).all(dim=1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
    x, y = pixels[inside].long().unbind(dim=1)
    own = depth[y, x]
    seen = torch.zeros_like(inside)
    seen[inside] = (own > 0) & ((z[inside] - own).abs() <= tolerance * own)
    return seen


def _maps_over_pairs(
    predictions: PairPredictions, aligned: AlignedScene, K_network: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Per view the mean confidence over all pairs, and the mean residual over those not dropped; one pair at a time."""
    own = [points_from_depth(depth, K) for depth, K in zip(aligned.depths, K_network, strict=True)]
    said, pairs = [torch.zeros_like(depth) for depth in aligned.depths], [0] * len(own)
    total, weight = ([torch.zeros_like(depth) for depth in aligned.depths] for _ in range(2))
    poses = aligned.cameras.T_world_camera.double()
    T_camera_world = torch.linalg.inv(poses)
    for (i, j), pair in predictions:
        confidences = (pair.confidence_first, pair.confidence_second)
        for view, C in zip((i, j), confidences, strict=True):
            said[view] += C
            pairs[view] += 1
        if (i, j) in aligned.dropped_edges:
            continue
        lengths = pair_residuals(pair, own[i], _moved(own[j], T_camera_world[i] @ poses[j]))
        for view, C, length in zip((i, j), confidences, lengths, strict=True):
            # So that pixels of which no pair is sure have a residual all the same.
            total[view] += (C + _LEAST_WEIGHT) * length
            weight[view] += C + _LEAST_WEIGHT
    mean = [confidence / max(1, count) for confidence, count in zip(said, pairs, strict=True)]
    return mean, [length / w.clamp(min=_LEAST_WEIGHT) for length, w in zip(total, weight, strict=True)]


def _learning(calibration: Calibration, weights: tuple[Tensor, ...] | None) -> LearningDetails:
    """How it was learnt; `weights` are those of the scene before, where they are known already."""
    before, tuned = calibration.before.aligned, calibration.finetuned
    return LearningDetails(
        before=BeforeLearning(
            cameras=before.cameras,
            depths=before.depths,
            weights=weights or tuple(_compact(weight) for weight in before.view_weights),
            moving=before.moving,
            diagnosis=before.diagnosis,
        ),
        losses=tuned.losses,
        held_out=tuned.held_out,
        held_out_errors=tuned.held_out_errors,
        best_epoch=tuned.best_epoch,
        gate=None if calibration.gate is None else dataclasses.asdict(calibration.gate),
        label_coverage=calibration.labels.coverage,
        label_cutoff=calibration.labels.cutoff,
    )


def _compact(values: Tensor) -> Tensor:
    """The values in float16 where it holds them, else in float32."""
    least, most = _HALF_PRECISION
    largest = float(values.abs().max())
    return values.half() if largest == 0.0 or least <= largest <= most else values.float()


def _moved(points: Tensor, T: Tensor) -> Tensor:
    T = T.to(points)
    return points @ T[:3, :3].T + T[:3, 3]
