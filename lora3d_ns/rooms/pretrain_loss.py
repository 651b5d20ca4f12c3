"""What the bundled network is trained to do: point maps with confidence, and matching descriptors.

The point map objective is DUSt3R's (arXiv 2312.14132, Eqs. 2 to 4), the one LoRA3D fine-tunes with (arXiv 2412.07746,
Eq. 12). The matching objective follows MASt3R (arXiv 2406.09756, Eqs. 10 and 11), per patch instead of per pixel:
without it a network that starts from nothing learns the average room and never looks at the other photo.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from lora3d_ns.adapter.loss import confidence_loss, point_errors
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.network.base import PairOutput
from lora3d_ns.rooms.cameras import reproject
from lora3d_ns.rooms.pretrain_data import Photos

# Another depth at the reprojected pixel than this share away means that something stands in front. Generous: the
# reprojection is compared with the nearest pixel, and surfaces are seen at a slant.
_SAME_DEPTH = 0.05


@dataclass(frozen=True, eq=False, kw_only=True)
class PairTruth:
    """Truth of a batch of ordered pairs (i, j).

    Attributes:
        points_first, points_second: The points of view i's and view j's pixels, both in camera i's frame, metres.
        matches_first: For each patch of view i how its surface point falls on the patches of view j: bilinear weights
            that sum to one, or zero where view j does not see the point.
        matches_second: The same from view j to view i.
    """

    points_first: Float32[Tensor, "pairs height width 3"]
    points_second: Float32[Tensor, "pairs height_second width_second 3"]
    matches_first: Float32[Tensor, "pairs patches other_patches"]
    matches_second: Float32[Tensor, "pairs other_patches patches"]


def pair_truth(first: Photos, second: Photos, patch_size: int) -> PairTruth:
    """Truth of the pairs (first[k], second[k])."""
    T_first_second = torch.linalg.inv(first.T_world_camera) @ second.T_world_camera
    points_second = points_from_depth(second.depth_m, second.K)
    return PairTruth(
        points_first=points_from_depth(first.depth_m, first.K),
        points_second=points_second @ T_first_second[:, None, :3, :3].mT + T_first_second[:, None, None, :3, 3],
        matches_first=patch_matches(first, second, patch_size),
        matches_second=patch_matches(second, first, patch_size),
    )


def points_from_depth(
    depth_m: Float32[Tensor, "batch height width"], K: Float32[Tensor, "batch 3 3"]
) -> Float32[Tensor, "batch height width 3"]:
    """Points of the pixel centres in their own camera's frame, `depth K^-1 (u, v, 1)`."""
    height, width = depth_m.shape[-2:]
    u = torch.arange(width, dtype=depth_m.dtype, device=depth_m.device) + 0.5
    v = torch.arange(height, dtype=depth_m.dtype, device=depth_m.device) + 0.5
    x = (u - K[:, 0, 2, None]) / K[:, 0, 0, None]
    y = (v - K[:, 1, 2, None]) / K[:, 1, 1, None]
    return torch.stack([x[:, None, :] * depth_m, y[:, :, None] * depth_m, depth_m], dim=-1)


def patch_matches(view_i: Photos, view_j: Photos, patch_size: int) -> Float32[Tensor, "batch patches other_patches"]:
    """How the point in the middle of each patch of view i falls on the centres of view j's patches.

    Bilinear weights over the four patches around the projection, clamped at the border of the photo: they say where
    the match lies more finely than the name of one patch would. A row is zero where the projection leaves the photo or
    another surface is seen there.
    """
    height, width = view_j.size
    rows, columns = height // patch_size, width // patch_size
    projected = reproject(view_i.depth_m, view_i.K, view_i.T_world_camera, view_j.K, view_j.T_world_camera)
    middles = slice(patch_size // 2, None, patch_size)
    u, v, z = (values[:, middles, middles].flatten(1) for values in projected)
    inside = (z > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    u, v = torch.where(inside, u, 0.0), torch.where(inside, v, 0.0)
    seen = view_j.depth_m.flatten(1).gather(1, v.long() * width + u.long())
    visible = inside & ((seen - z).abs() <= _SAME_DEPTH * z)

    def axis_weights(coordinate: Tensor, count: int) -> Tensor:
        """Linear weights over the patch centres along one axis."""
        position = (coordinate / patch_size - 0.5).clamp(0.0, count - 1.0)
        centres = torch.arange(count, dtype=coordinate.dtype, device=coordinate.device)
        return (1.0 - (position[..., None] - centres).abs()).clamp_min(0.0)

    weights = axis_weights(v, rows)[..., :, None] * axis_weights(u, columns)[..., None, :]
    return weights.flatten(2) * visible[..., None]


def matching_loss(
    descriptors_first: Float[Tensor, "pairs patches channels"],
    descriptors_second: Float[Tensor, "pairs other_patches channels"],
    matches_first: Float[Tensor, "pairs patches other_patches"],
    matches_second: Float[Tensor, "pairs other_patches patches"],
    temperature: float,
) -> Float[Tensor, ""]:
    """InfoNCE in both directions: `-mean_p sum_q w_pq log softmax_q(cos(d_p, d_q) / temperature)` (MASt3R, Eq. 10).

    The mean runs over the patches that have a match; 0 if none has.

    Args:
        descriptors_first, descriptors_second: Of either photo's patches, of any length.
        matches_first: w, of each of the first photo's patches over the second's; see `PairTruth`.
        matches_second: The same the other way round.
        temperature: In units of cosine similarity.
    """
    similarity = F.normalize(descriptors_first.float(), dim=-1) @ F.normalize(descriptors_second.float(), dim=-1).mT
    logits = similarity / temperature
    total = logits.new_zeros(())
    count = logits.new_zeros(())
    for direction, matches in ((logits, matches_first), (logits.mT, matches_second)):
        total = total - (matches * F.log_softmax(direction, dim=-1)).sum()
        count = count + matches.sum()
    return total / count.clamp_min(1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class PretrainLoss:
    """The objective of a batch and its parts, scalars.

    Attributes:
        total: `confidence + matching_weight * matching`, to be minimised.
        confidence: `confidence_loss` over both photos.
        matching: `matching_loss`.
        error_first, error_second: Mean normalised point error in the own and in the other photo.
    """

    total: Float[Tensor, ""]
    confidence: Float[Tensor, ""]
    matching: Float[Tensor, ""]
    error_first: Float[Tensor, ""]
    error_second: Float[Tensor, ""]

    def detached(self) -> Float[Tensor, "5"]:
        """The values in the order of the attributes, without gradients."""
        return torch.stack(
            [self.total, self.confidence, self.matching, self.error_first, self.error_second]
        ).detach()  # fmt: skip


def pretrain_loss(
    output: PairOutput, truth: PairTruth, *, confidence_alpha: float, matching_weight: float, temperature: float
) -> PretrainLoss:
    """The whole objective, `mean(C l - alpha log C) + matching_weight * InfoNCE`.

    Args:
        output: Of a network with descriptors, unless matching_weight is 0.
        truth: Of the same pairs.
        confidence_alpha: DUSt3R's alpha.
        matching_weight: Weight of the matching objective.
        temperature: Of the matching objective.

    Raises:
        InvalidDataError: matching_weight is not 0 and the network has no descriptors.
    """
    errors_first, errors_second = point_errors(
        output.points_first, output.points_second, truth.points_first, truth.points_second
    )
    # Both photos count alike, whatever their sizes.
    confidence = 0.5 * (
        confidence_loss(errors_first, output.confidence_first, confidence_alpha)
        + confidence_loss(errors_second, output.confidence_second, confidence_alpha)
    )
    matching = confidence.new_zeros(())
    if matching_weight > 0:
        if output.descriptors_first is None or output.descriptors_second is None:
            raise InvalidDataError(
                "the matching objective needs descriptors, and this network has none",
                way_out="Give the configuration a descriptor_width, or set matching_weight to 0",
            )
        matching = matching_loss(
            output.descriptors_first,
            output.descriptors_second,
            truth.matches_first,
            truth.matches_second,
            temperature,
        )
    return PretrainLoss(
        total=confidence + matching_weight * matching,
        confidence=confidence,
        matching=matching,
        error_first=errors_first.mean(),
        error_second=errors_second.mean(),
    )
