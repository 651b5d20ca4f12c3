"""How well a network understands pairs of photos of rooms it has never seen.

For each pair both orders are predicted. The relative pose comes from the point maps alone, without the true focal
length; the point error from the ordered pair itself. Two baselines stand beside them: a constant answer, and the
network with no second photo to look at.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.evaluation.metrics import rank_correlation, rotation_angle_deg
from lora3d_ns.geometry.similarity import weighted_similarity
from lora3d_ns.network.base import PairNetwork, PairOutput
from lora3d_ns.rooms.cameras import pairwise_overlap, sample_views
from lora3d_ns.rooms.domains import domain_by_name
from lora3d_ns.rooms.pretrain_loss import points_from_depth
from lora3d_ns.rooms.render import RoomRenders, render
from lora3d_ns.rooms.scenes import sample_scenes

VALIDATION_SEED = 7_500_001
"""Names the rooms of the validation; training and the benchmark use other sets."""

_VIEWS_PER_PATH = 10
_PAIRS_PER_ROOM = 2
_LEAST_WEIGHT = 1e-3
_SCALE_ITERATIONS = 8
_SPARSE_OVERLAP = (0.05, 0.3)
_USUAL_OVERLAP = (0.4, 1.01)


@dataclass(frozen=True, eq=False, kw_only=True)
class ValidationPairs:
    """Ordered pairs of photos (i, j) of rooms, with their truth.

    Attributes:
        images_first, images_second: sRGB in 0 to 1.
        points_first, points_second: The points of view i's and view j's pixels, both in camera i's frame, metres.
        T_first_second: Pose of camera j in camera i's frame, metres.
        mean_depth_m: Mean depth of both photos along their own viewing axes.
        overlap: Share of the first photo's pixels that the second sees.
    """

    images_first: Float32[Tensor, "pairs 3 height width"]
    images_second: Float32[Tensor, "pairs 3 height width"]
    points_first: Float32[Tensor, "pairs height width 3"]
    points_second: Float32[Tensor, "pairs height width 3"]
    T_first_second: Float32[Tensor, "pairs 4 4"]
    mean_depth_m: Float32[Tensor, " pairs"]
    overlap: Float32[Tensor, " pairs"]

    def __len__(self) -> int:
        return len(self.overlap)

    def select(self, rows: slice | Tensor) -> "ValidationPairs":
        """Some of the pairs."""
        return ValidationPairs(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to(self, device: torch.device | str) -> "ValidationPairs":
        """The same pairs on another device."""
        return ValidationPairs(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def sample_validation_pairs(
    domain_name: str,
    pair_count: int,
    *,
    image_size_px: int,
    seed: int = VALIDATION_SEED,
    longest_step: int = 3,
    device: torch.device | str = "cpu",
) -> ValidationPairs:
    """Pairs of one domain, the same for the same arguments.

    Each room is photographed ten times along a path, as in the benchmark. Of the pairs at most `longest_step` photos
    apart that share enough, two per room are drawn. Enough is an overlap of more than 40 % in both directions; in the
    domain `sparse`, where nothing shares that much, pairs of any distance along the path with an overlap of 5 to 30 %
    are drawn instead.

    Args:
        domain_name: One of `lora3d_ns.rooms.domains.DOMAINS`.
        pair_count: How many pairs.
        image_size_px: Side of the square photos.
        seed: Names the set of rooms.
        longest_step: See above; 9 takes all pairs of a path.
        device: Where to render and keep them.

    Raises:
        SettingsError: There is no such domain, or pair_count is not positive.
    """
    if pair_count < 1:
        raise SettingsError(f"{pair_count} pairs make no validation", way_out="Ask for at least one")
    domain = domain_by_name(domain_name)
    low, high = _SPARSE_OVERLAP if domain_name == "sparse" else _USUAL_OVERLAP
    longest_step = _VIEWS_PER_PATH - 1 if domain_name == "sparse" else longest_step
    size = (image_size_px, image_size_px)
    parts: list[ValidationPairs] = []
    rooms_at_once, start, found = min(16, -(-pair_count // _PAIRS_PER_ROOM)), 0, 0
    while found < pair_count:
        if start >= 20 * (pair_count + rooms_at_once):
            raise SettingsError(
                f"the domain {domain_name!r} has too few pairs with an overlap of {low:.0%} to {high:.0%}",
                way_out="Validate on another domain",
            )
        scenes = sample_scenes(domain, seed=seed, indices=range(start, start + rooms_at_once), device=device)
        cameras = sample_views(scenes, _VIEWS_PER_PATH, size=size)
        made = render(scenes, cameras, supersample=2)
        overlap = pairwise_overlap(made.depth_m, made.K, made.T_world_camera)
        least, most = torch.minimum(overlap, overlap.mT), torch.maximum(overlap, overlap.mT)
        apart = (torch.arange(_VIEWS_PER_PATH)[:, None] - torch.arange(_VIEWS_PER_PATH)).abs()
        near = ((apart >= 1) & (apart <= longest_step)).to(overlap.device)
        allowed = near & (least > low) & (most < high)
        for room in range(len(scenes)):
            candidates = allowed[room].nonzero()
            random = torch.Generator().manual_seed(seed + start + room)
            order = torch.randperm(len(candidates), generator=random)[:_PAIRS_PER_ROOM]
            chosen = candidates[order.to(candidates.device)]
            if len(chosen):
                parts.append(_pairs_of(made, room, chosen, overlap[room]))
                found += len(chosen)
        start += rooms_at_once
    joined = {field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(ValidationPairs)}
    return ValidationPairs(**joined).select(slice(pair_count))


def _pairs_of(made: RoomRenders, room: int, chosen: Tensor, overlap: Tensor) -> ValidationPairs:
    """The pairs of views `chosen[k]` of one room."""
    first, second = chosen.unbind(dim=1)
    depth_m, K, T_world_camera = made.depth_m[room], made.K[room], made.T_world_camera[room]
    images = made.rgb[room].clamp(0.0, 1.0).permute(0, 3, 1, 2)
    points = points_from_depth(depth_m, K)
    T_first_second = torch.linalg.inv(T_world_camera[first]) @ T_world_camera[second]
    points_second = points[second] @ T_first_second[:, None, :3, :3].mT + T_first_second[:, None, None, :3, 3]
    mean_depth_m = depth_m.mean(dim=(1, 2))
    return ValidationPairs(
        images_first=images[first].contiguous(),
        images_second=images[second].contiguous(),
        points_first=points[first],
        points_second=points_second,
        T_first_second=T_first_second,
        mean_depth_m=0.5 * (mean_depth_m[first] + mean_depth_m[second]),
        overlap=overlap[first, second],
    )


# --- from point maps to poses and errors --------------------------------------------------------


def relative_poses(forward: PairOutput, backward: PairOutput) -> Float[Tensor, "pairs 4 4"]:
    """Poses T_i_j of the second cameras in the first ones' frames, from the predictions of both orders.

    Every pixel of both photos has a point in camera i's frame (order (i, j)) and one in camera j's (order (j, i)): the
    similarity between the two is the relative pose and the ratio of the two predictions' scales. It is found by
    weighted Procrustes (Umeyama), as LoRA3D does (arXiv 2412.07746, Sec. 3), here with the points of both photos at
    once, with weights C C' (product of the log-confidences, plus a floor that keeps them positive). Translations have
    the scale of the first order's point maps. (Re-weighting against outliers, and PnP with the estimated focal length,
    were tried on the bundled network and were no better.)
    """
    batch = len(forward.points_first)

    def joined(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first.reshape(batch, -1, *first.shape[3:]), second.reshape(batch, -1, *second.shape[3:])], 1)

    weights = joined(forward.confidence_first, forward.confidence_second) * joined(
        backward.confidence_second, backward.confidence_first
    )
    second_to_first = weighted_similarity(
        joined(backward.points_second, backward.points_first),
        joined(forward.points_first, forward.points_second),
        weights + _LEAST_WEIGHT,
    )
    rotation = second_to_first.rotation
    T_first_second = torch.eye(4, dtype=rotation.dtype, device=rotation.device).repeat(batch, 1, 1)
    T_first_second[:, :3, :3], T_first_second[:, :3, 3] = rotation, second_to_first.translation
    return T_first_second


def rotation_errors_deg(
    estimate: Float[Tensor, "*batch 3 3"], truth: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch"]:
    """Angle of the rotation between the two, in degrees."""
    return rotation_angle_deg(estimate.mT @ truth)


def direction_errors_deg(
    estimate: Float[Tensor, "*batch 3"], truth: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch"]:
    """Angle between two vectors in degrees; 90 where the estimate is zero."""
    cross = torch.linalg.cross(estimate.double(), truth.double()).norm(dim=-1)
    dot = (estimate.double() * truth.double()).sum(dim=-1)
    angle = torch.atan2(cross, dot)
    nothing = (cross == 0) & (dot == 0)
    return torch.rad2deg(torch.where(nothing, torch.full_like(angle, torch.pi / 2), angle)).to(estimate.dtype)


def scaled_point_distances(
    points_first: Float[Tensor, "pairs height width 3"],
    points_second: Float[Tensor, "pairs height width 3"],
    pairs: ValidationPairs,
) -> tuple[Float[Tensor, "pairs height width"], Float[Tensor, "pairs height width"]]:
    """Distances to the true points in metres, after the one scale per pair that makes their sum smallest."""
    predicted = torch.cat([points_first.flatten(1, 2), points_second.flatten(1, 2)], dim=1)
    true = torch.cat([pairs.points_first.flatten(1, 2), pairs.points_second.flatten(1, 2)], dim=1)
    weights = torch.ones_like(predicted[..., 0])
    distances = weights
    # Weiszfeld: least squares, weighted by the inverse distances of the solution before.
    for _ in range(_SCALE_ITERATIONS):
        product = (weights * (predicted * true).sum(dim=-1)).sum(dim=1)
        scale = product / (weights * predicted.square().sum(dim=-1)).sum(dim=1).clamp_min(1e-12)
        distances = (scale[:, None, None] * predicted - true).norm(dim=-1)
        weights = 1.0 / distances.clamp_min(1e-4)
    pixels = points_first.shape[1] * points_first.shape[2]
    shape = points_first.shape[1:3]
    return distances[:, :pixels].unflatten(1, shape), distances[:, pixels:].unflatten(1, shape)


# --- metrics ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class PairErrors:
    """Errors of each pair.

    Attributes:
        rotation_deg: Angle between the predicted and the true relative rotation.
        translation_deg: Angle between the predicted and the true direction of translation.
        point_error: Mean distance of both point maps to the truth, after one scale per pair, over the mean depth.
    """

    rotation_deg: Float32[Tensor, " pairs"]
    translation_deg: Float32[Tensor, " pairs"]
    point_error: Float32[Tensor, " pairs"]

    def medians(self) -> dict[str, float]:
        """Medians under the benchmark's names."""
        return {f"{field.name}_median": float(getattr(self, field.name).median()) for field in fields(self)}


@dataclass(frozen=True, eq=False, kw_only=True)
class PairPredictionsOfNetwork:
    """What the network says of pairs, on the host: of both orders, and of each photo paired with itself."""

    forward: PairOutput
    backward: PairOutput
    alone_first: PairOutput
    alone_second: PairOutput


def _joined_outputs(outputs: list[PairOutput]) -> PairOutput:
    names = ("points_first", "points_second", "confidence_first", "confidence_second")
    return PairOutput(
        **{name: torch.cat([getattr(output, name).float().cpu() for output in outputs]) for name in names}
    )


@torch.no_grad()
def predict_pairs(network: PairNetwork, pairs: ValidationPairs, *, batch_size: int = 32) -> PairPredictionsOfNetwork:
    """Predictions for all pairs, both orders and each photo with itself."""
    made: tuple[list[PairOutput], ...] = ([], [], [], [])
    for start in range(0, len(pairs), batch_size):
        part = slice(start, start + batch_size)
        first = network.encode(pairs.images_first[part].to(network.device))
        second = network.encode(pairs.images_second[part].to(network.device))
        for outputs, (i, j) in zip(
            made, ((first, second), (second, first), (first, first), (second, second)), strict=True
        ):
            outputs.append(network.decode(i, j))
    forward, backward, alone_first, alone_second = (_joined_outputs(outputs) for outputs in made)
    return PairPredictionsOfNetwork(
        forward=forward, backward=backward, alone_first=alone_first, alone_second=alone_second
    )


def pair_errors(
    points_first: Tensor, points_second: Tensor, T_first_second: Tensor, pairs: ValidationPairs
) -> PairErrors:
    """Errors of point maps and poses of all pairs."""
    distances = scaled_point_distances(points_first, points_second, pairs)
    mean_distance = 0.5 * (distances[0].mean(dim=(1, 2)) + distances[1].mean(dim=(1, 2)))
    return PairErrors(
        rotation_deg=rotation_errors_deg(T_first_second[:, :3, :3], pairs.T_first_second[:, :3, :3]),
        translation_deg=direction_errors_deg(T_first_second[:, :3, 3], pairs.T_first_second[:, :3, 3]),
        point_error=mean_distance / pairs.mean_depth_m,
    )


def validate(
    network: PairNetwork, pairs: ValidationPairs, *, constant_from: ValidationPairs | None = None
) -> dict[str, Any]:
    """Metrics of a network on pairs, with both baselines.

    Args:
        network: In evaluation mode.
        pairs: On the host.
        constant_from: Pairs that the constant baseline is the mean of; from other rooms. Without it, it is left out.

    Returns:
        `pairs`, `rotation_true_deg_median`, `overlap_median`; `rotation_deg_median`, `translation_deg_median`,
        `point_error_median`; `confidence_rank_correlation` (Spearman, log-confidence against error over the mean
        depth, all pixels of both photos of all pairs together) and `confidence_rank_correlation_within_pair` (the
        median over pairs of the same within one pair); and under `single_view` and `constant` the first three of a
        network that sees each photo only by itself, with the cameras taken to coincide, and of the mean of
        `constant_from`'s normalised point maps with the identity as rotation. Where cameras coincide, the direction of
        translation is a guess, 90 degrees wrong.
    """
    predictions = predict_pairs(network, pairs)
    forward = predictions.forward
    errors = pair_errors(
        forward.points_first, forward.points_second, relative_poses(forward, predictions.backward), pairs
    )
    first, second = scaled_point_distances(forward.points_first, forward.points_second, pairs)
    relative = torch.cat([first, second], dim=1).flatten(1) / pairs.mean_depth_m[:, None]
    confidence = torch.cat([forward.confidence_first, forward.confidence_second], dim=1).flatten(1)
    within = torch.tensor([rank_correlation(c, e) for c, e in zip(confidence, relative, strict=True)])

    identity = torch.eye(4).expand(len(pairs), 4, 4)
    alone = pair_errors(predictions.alone_first.points_first, predictions.alone_second.points_first, identity, pairs)
    true_rotation = rotation_errors_deg(identity[:, :3, :3], pairs.T_first_second[:, :3, :3])
    result: dict[str, Any] = {
        "pairs": len(pairs),
        "rotation_true_deg_median": float(true_rotation.median()),
        "overlap_median": float(pairs.overlap.median()),
        **errors.medians(),
        "confidence_rank_correlation": rank_correlation(confidence.flatten(), relative.flatten()),
        "confidence_rank_correlation_within_pair": float(within.median()),
        "single_view": alone.medians(),
    }
    if constant_from is not None:
        result["constant"] = constant_errors(constant_from, pairs).medians()
    return result


def constant_errors(source: ValidationPairs, pairs: ValidationPairs) -> PairErrors:
    """Errors of one answer for all pairs: the mean of the normalised point maps of `source`, cameras coinciding."""
    if source.points_first.shape[1:] != pairs.points_first.shape[1:]:
        raise InvalidDataError("the constant is of photos of another size", way_out="Render both at one size")
    distance = 0.5 * (source.points_first.norm(dim=-1).mean((1, 2)) + source.points_second.norm(dim=-1).mean((1, 2)))
    mean_first, mean_second = (
        (points / distance[:, None, None, None]).mean(dim=0, keepdim=True).expand(len(pairs), -1, -1, -1)
        for points in (source.points_first, source.points_second)
    )
    return pair_errors(mean_first, mean_second, torch.eye(4).expand(len(pairs), 4, 4), pairs)


def headline(metrics: Mapping[str, Any]) -> str:
    """The four figures in one line."""
    return (
        f"rotation {metrics['rotation_deg_median']:.2f} deg of {metrics['rotation_true_deg_median']:.1f}, "
        f"translation {metrics['translation_deg_median']:.1f} deg, points {metrics['point_error_median']:.1%}, "
        f"rank correlation {metrics['confidence_rank_correlation']:.2f}"
    )
